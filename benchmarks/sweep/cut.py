"""The cut itself, judged for one name by the network that its zoo builds, without the library's own code of the cut."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.sweep.kinds import kinds
from benchmarks.sweep.names import family_name, zoo_of
from benchmarks.sweep.original import Original, as_asked, on_paper, outputs, smallest
from benchmarks.sweep.passing import Place, answer, find, follows, in_another_order
from fastai_heads.archs.proof.checks import FAULT, NOT_RUN, OK
from fastai_heads.archs.proof.shrunken import smaller
from fastai_heads.archs.records import FEATURES, PRE_LOGITS
from fastai_heads.archs.source import Request, find_network
from fastai_heads.archs.timm_rows import RESIZED, SIDEWAYS
from fastai_heads.bodies.image import ImageBody

__all__ = ["CUT", "CUT_FIELDS", "cut_row", "empty_row"]

LARGE = 300_000_000
"With more parameters, a smaller configuration is checked."
DEPTH = {"depth", "depths", "layers", "stages", "serial_depths", "parallel_depth", "num_blocks_list"}
DEPTH |= {"global_attn_indexes"}
"Arguments that make a smaller configuration shallower. It goes without them where it can."
GROWN = 64
"Pixels that a second image has more, for maps that are made without padding."
CUT = ("build", "taps", "vector", "map", "shapes", "parameters", "state", "gradients")
"The columns that hold a result, in the order in which they are found."
CUT_FIELDS = ("arch", "zoo", "family", "mparams", "shrunken", "side", *CUT, "kinds", "note", "seconds")
Row = dict[str, str]


def empty_row(name: str) -> Row:
    "Make the row of a name that has not run."
    row = dict.fromkeys(CUT_FIELDS, "") | {"arch": name, "zoo": zoo_of(name), "family": family_name(name)}
    return row | dict.fromkeys(CUT, NOT_RUN)


def cut_row(
    name: str,
    tell: Callable[[Row], object] = lambda row: None,  # called after each check
) -> Row:
    "Check the cut of one name."
    start, row = time.perf_counter(), empty_row(name)
    case = Case.__new__(Case)
    for check in CUT:
        try:
            wrong = _start(case, row) if check == "build" else getattr(case, check)()
        except Exception as e:  # an error of any kind is a fault
            wrong = f"{FAULT}: {type(e).__name__}: {(str(e).strip().splitlines() or [''])[0][:200]}"
        row |= {check: wrong or OK, "seconds": f"{time.perf_counter() - start:.1f}"}
        row["note"] = "; ".join(getattr(case, "notes", ()))
        tell(row)
        if row["build"] != OK:
            break
    return row


def _start(case: "Case", row: Row) -> str:
    whole = Original(row["arch"], row["zoo"])
    size, arch = _choose(whole)
    net, arch = smallest(arch)
    row |= {"mparams": f"{size / 1e6:.2f}", "side": str(arch.side)}
    row["shrunken"] = "" if size <= LARGE else as_asked(arch)
    case.__init__(net, arch)
    row["kinds"] = kinds(case.net)
    return ""


def _choose(arch: Original) -> tuple[int, Original]:
    "Count an arch's parameters. Return it; of a large one a smaller configuration, as deep where there is one."
    net = on_paper(arch)
    size = _count(net)
    less = smaller(type(net), arch.plain) if size > LARGE else None
    shallow = dict(less.kwargs) if less else {}
    for kwargs in ({k: v for k, v in shallow.items() if k not in DEPTH}, shallow) if less else ():
        tried = Original(less.arch if ":" not in arch.name else f"torchvision:{less.arch}", arch.zoo, kwargs)
        try:
            if _count(on_paper(tried)) <= LARGE:
                return size, tried
        except Exception:  # without the depth, these arguments do not fit each other
            continue
    return size, arch


def _count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


class Case:
    "A network as its zoo builds it, the library's bodies of it, and two batches."

    def __init__(self, net: nn.Module, arch: Original):
        self.net, self.arch, self.notes = net.eval(), arch, []
        torch.manual_seed(0)
        self.found = find_network(Request(arch.name, pretrained=False, kwargs=dict(arch.kwargs)))
        self.measured = self.found.cut.measure(self.found.net, self.found.shape)
        self.wrong_values = _compare_values(self.found.net, self.net)
        self.x, self.other = (_images(arch.side, seed) for seed in (1, 2))
        _wake(self.net)
        if self._asleep():
            _fit_norms(self.net, self.x)
        if self._asleep():
            raise ValueError("what the network gives does not depend on its images, or is not finite")
        self.every = self.cut(*(p.name for p in self.measured.taps))
        with torch.no_grad():
            torch.manual_seed(0)
            self.values = self.every(self.x.clone())
        self.logits, self.places = find(self.net, self.x, self.values)

    def _asleep(self) -> bool:
        "Tell whether the network gives the same for both batches, or nothing finite."
        pairs = zip(answer(self.net, self.x), answer(self.net, self.other), strict=True)
        return not any(a.isfinite().all() and not torch.equal(a, b) for a, b in pairs)

    def cut(self, *taps: str, net: nn.Module | None = None) -> ImageBody:
        "Cut a network by the library: a copy of the zoo's, or another one, in place."
        net = copy.deepcopy(self.net) if net is None else net
        return ImageBody(replace(self.found, net=net), taps, self.measured).eval()

    def taps(self) -> str:
        "Check that the value of every tap stands, bit for bit, in the run of the network."
        lost = [t for t, x in self.values.items() if not self._whole(x, self.places[t])]
        if lost and (moved := in_another_order(self.net, self.x, {t: self.values[t] for t in lost})):
            lost = [t for t in lost if t not in moved]
            self.notes.append(f"cells in another order: {', '.join(sorted(moved))}")
        if lost == [PRE_LOGITS] and self.arch.zoo == "timm" and self._timms_own(self.values[PRE_LOGITS]):
            lost = []
        return f"{FAULT}: {', '.join(lost)} stands nowhere in the network's own run" if lost else ""

    def _whole(self, value: Tensor, places: list[Place]) -> bool:
        "Tell whether the parts that stand somewhere are all of the value."
        return len({c for place in places for c in range(*place.columns)}) == value.shape[1]

    def _timms_own(self, value: Tensor) -> bool:
        "Tell whether timm's own interface gives this vector. The mean of two tokens stands in no run."
        own = answer(lambda x: self.net.forward_head(self.net.forward_features(x), pre_logits=True), self.x)
        return torch.equal(own[0], value)

    def vector(self) -> str:
        "Check that the network's logits follow from `pre_logits`, bit for bit."
        why = self.found.cut.no_vector or self.found.cut.unproved
        if why:
            return f"{NOT_RUN}: {why}"
        if self._proves(PRE_LOGITS):
            return ""
        if (
            not self._whole(self.values[PRE_LOGITS], self.places[PRE_LOGITS])
            or self._proves(FEATURES)
            or not self._proves(PRE_LOGITS, FEATURES)
        ):
            return f"{FAULT}: other logits"
        self.notes.append("logits from `pre_logits` and `features` together")
        return ""

    def map(self) -> str:
        "Check that the network's logits follow from `features`, bit for bit, where they read nothing else."
        if self._proves(FEATURES):
            return ""
        if self._proves(FEATURES, whole=True):
            return f"{NOT_RUN}: the logits read other tokens beside it"
        parts = {place.columns for place in self.places.get(PRE_LOGITS, ())}
        several = len(parts) > 1 or self.found.cut.logits is not None or type(self.net) in SIDEWAYS
        return f"{NOT_RUN}: the logits read several maps" if several else f"{FAULT}: other logits"

    def _proves(self, *taps: str, whole: bool = False) -> bool:
        said = follows(self.net, self.other, [p for tap in taps for p in self.places[tap]], whole)
        return all(torch.equal(a, b) for a, b in zip(said, self.logits, strict=True))

    def shapes(self) -> str:
        "Check that every tap has the declared width, and the declared stride where its map has more than one cell."
        if type(self.net) in RESIZED:
            return f"{NOT_RUN}: {RESIZED[type(self.net)]}"
        wrong = []
        for tap, x in self.values.items():
            stride, channels = self.every.strides[tap], self.every.channels[tap]
            fits = x.ndim == (2 if stride is None else 4) and x.shape[1] == channels
            if not fits or (stride and x.shape[-1] > 1 and not self._strides(tap, x, stride)):
                wrong.append(f"{tap} {tuple(x.shape)}, declared {channels}, stride {stride}")
        return f"{FAULT}: {'; '.join(wrong[:3])}" if wrong else ""

    def _strides(self, tap: str, x: Tensor, stride: int) -> bool:
        "Tell whether a map has a cell for every so many pixels. Without padding it has fewer, but grows so."
        sides, whole = {*x.shape[2:]}, self.arch.side / stride
        if sides <= {math.floor(whole), math.ceil(whole)}:
            return True
        if not hasattr(self, "_larger"):
            with torch.no_grad():
                self._larger = self.every(_images(self.arch.side + GROWN, 1))
        return {*self._larger[tap].shape[2:]} == {side + GROWN // stride for side in sides}

    def parameters(self) -> str:
        "Check that what is kept and what is removed add up to the network."
        for body in self.bodies():
            kept, removed = _count(body), sum(p.params for p in body.removed)
            if kept + removed != _count(self.net):
                return f"{FAULT}: {body.taps[0]}: {kept} kept, {removed} removed, the arch has {_count(self.net)}"
        return ""

    def state(self) -> str:
        "Check that weights keep their names and values, and that a `state_dict` goes into a body that was built apart."
        for body in self.bodies():
            if wrong := _compare_values(body.net, self.net):
                return f"{FAULT}: {body.taps[0]}: {wrong}"
        if self.wrong_values:
            return f"{FAULT}: built by the library: {self.wrong_values}"
        apart = self.cut(FEATURES, net=self.found.net)
        apart.load_state_dict(self.bodies()[0].state_dict())
        with torch.no_grad():
            torch.manual_seed(0)
            same = torch.equal(apart(self.x.clone())[FEATURES], self.values[FEATURES])
        return "" if same else f"{FAULT}: loaded into a body that was built apart, it gives another map"

    def gradients(self) -> str:
        "Check that a gradient reaches every kept parameter that the network's own loss reaches."
        live = _reached(self.net, self.x)
        for body in self.bodies():
            tap = body.taps[0]
            got = {k.removeprefix("net.") for k in _reached(body, self.x)}
            kept = {k for k, p in body.net.named_parameters() if p.requires_grad}
            if dead := sorted((live & kept) - got):
                return f"{FAULT}: {tap}: none for {len(dead)}, {', '.join(dead[:3])}"
            every = {k for k, _ in body.net.named_parameters()}
            if frozen := (live & every) - kept:
                self.notes.append(f"{tap}: {len(frozen)} frozen")
            if idle := every - live - got:
                self.notes.append(f"{tap}: {len(idle)} idle")
        return ""

    def bodies(self) -> list[ImageBody]:
        "Cut at the map alone, and at the vector alone."
        if not hasattr(self, "_bodies"):
            self._bodies = [self.cut(tap) for tap in (FEATURES, PRE_LOGITS) if tap in self.values]
        return self._bodies


def _images(side: int, seed: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def _wake(net: nn.Module) -> None:
    "Fill what is all zeros with random numbers: zeros would hide what passes through them."
    torch.manual_seed(3)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.normal_(std=0.1)


def _fit_norms(net: nn.Module, x: Tensor) -> None:
    "Give batch norms the statistics of a batch: without them, what passes through a random network may fade away."
    norms = {m: m.momentum for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        net.train()(x.clone())
    for norm, momentum in norms.items():
        norm.momentum = momentum
    net.eval()


def _reached(net: nn.Module, x: Tensor) -> set[str]:
    "Name the parameters that a loss over all that a network gives reaches, in training."
    torch.manual_seed(0)
    net.train()
    out = [t.float() for t in outputs(net(x.clone()))]
    sum((t * torch.randn_like(t)).sum() for t in out).backward()
    found = {k for k, p in net.named_parameters() if p.grad is not None}
    net.zero_grad(set_to_none=True)
    net.eval()
    return found


def _compare_values(mine: nn.Module, net: nn.Module) -> str:
    "Say which weights of a network, or of what is left of it, are not those of the zoo's, '' if all are."
    there, here = net.state_dict(), mine.state_dict()
    strange = [k for k in here if k not in there]
    wrong = [k for k, v in here.items() if k in there and not torch.equal(v, there[k])]
    what = "strange names" if strange else "other values"
    return f"{what}: {', '.join((strange or wrong)[:3])}" if strange or wrong else ""
