"""The claims that hold for every arch, as checks of one arch. The sweep over the zoos and the tests run them."""

import copy
import math
import pickle
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from fastai_heads.archs.probe import measure_taps
from fastai_heads.archs.proof.equality import logits_from_taps
from fastai_heads.archs.proof.shrunken import smaller
from fastai_heads.archs.records import FEATURES, INPUT, PRE_LOGITS, Measured, Network
from fastai_heads.archs.source import Request, find_empty, find_network
from fastai_heads.archs.surgery import get_path
from fastai_heads.archs.timm_rows import NOT_EXPORTED, RESIZED

__all__ = ["CHECKS", "FAULT", "NOT_RUN", "OK", "Case", "NotRun", "Report", "check_arch"]

OK, FAULT, NOT_RUN = "ok", "fault", "not run"
"The results of a check. A colon and a reason may follow the last two."
LARGE = 300_000_000
"With more parameters, shapes are checked on the meta device and values in a smaller configuration."
ON_META = ("shapes", "second_size")
"The checks that need no values."
SMALLEST_SIDE = 64
"Least side of an image that was halved to save time."
SIZES_APART = 256
"Least difference in pixels between the two sizes at which strides are measured."
TOLERANCE = 1e-3
"For the same sums in another order: a part of the largest value."
LAYOUT_TOLERANCE = 0.1
"For another memory layout. A wrong layout gives other values; a random network (visformer) only magnifies rounding."


class NotRun(Exception):
    "Raised by a check if the arch makes no such claim. Its text says why."


@dataclass
class Report:
    "The results of one arch."

    arch: str
    zoo: str = ""
    params: int = 0
    shrunken: str = ""  # the smaller configuration whose values were checked, '' for the arch itself
    results: dict[str, str] = field(default_factory=dict)  # by check: 'ok', 'fault: …', 'not run', 'not run: …'
    note: str = ""  # why the arch makes less than all claims
    seconds: float = 0.0

    @property
    def faults(self) -> dict[str, str]:
        "The checks that do not hold."
        return {k: v for k, v in self.results.items() if v.startswith(FAULT)}

    @property
    def ok(self) -> bool:
        "True if every check that ran holds, and at least one ran."
        return not self.faults and OK in self.results.values()


@dataclass
class Case:
    "One arch under check."

    network: Network
    measured: Measured
    make: Callable[[Network, list[str], Measured], nn.Module]  # `ImageBody`
    x: Tensor

    @property
    def taps(self) -> list[str]:
        return [p.name for p in self.measured.taps]

    def body(self, taps: list[str]) -> nn.Module:
        "Make a body of a copy of the network."
        return self.make(replace(self.network, net=copy.deepcopy(self.network.net)), taps, self.measured)

    @cached_property
    def every(self) -> dict[str, Tensor]:
        "The output of all taps together, in evaluation mode."
        with torch.no_grad():
            return self.body(self.taps).eval()(self.x)

    @cached_property
    def little(self) -> Tensor:
        """Images of half the side, where the arch takes them. They need a quarter of the time, for checks that do not
        depend on the size: whether a parameter gets a gradient, or whether a body survives a copy."""
        side = -(-self.network.size // 64) * 32  # half, in whole cells of 32 pixels
        shape = (*self.x.shape[:2], side, side)
        if self.network.fixed_size or side >= self.network.size or side < SMALLEST_SIDE:
            return self.x
        try:
            self.network.cut.measure(self.network.net, shape)
        except (RuntimeError, AssertionError, ValueError):
            return self.x
        return self.x[..., :side, :side].contiguous()

    def ends(self) -> list[str]:
        "List the first tap, one half-way, the last map and the vector."
        inner = [t for t in self.taps if t not in (FEATURES, PRE_LOGITS)]
        picked = [inner[0], inner[len(inner) // 2], FEATURES, PRE_LOGITS] if inner else [FEATURES, PRE_LOGITS]
        return [t for t in dict.fromkeys(picked) if t in self.taps]


def equality(case: Case) -> str:
    "Check that the arch's own classifier, applied to the taps, gives the arch's own logits, bit for bit."
    net = case.network.net
    with torch.no_grad():
        said = logits_from_taps(case.network, {**case.every, INPUT: case.x})
        if said is None:
            raise NotRun(case.network.cut.unproved or case.network.cut.no_vector)
        own = net(case.x)
        own = own["out"] if isinstance(own, dict) else own  # a network that gives a mask
    if said.shape != own.shape:
        return f"logits {tuple(said.shape)}, the arch gives {tuple(own.shape)}"
    return "" if torch.equal(said, own) else f"logits differ by {(said - own).abs().max().item():.1e}"


def shapes(case: Case) -> str:
    "Check that every tap has the declared width and stride, and that a map has four dimensions and a vector two."
    declared = case.measured.taps
    shown = {t: tuple(v.shape) for t, v in case.every.items()}
    found = measure_taps(tuple((p.name, p.module) for p in declared), shown, tuple(case.x.shape), {})
    wrong = [p.name for p, f in zip(declared, found) if p.channels != f.channels]
    # a map of one cell has no stride to measure
    wrong += [p.name for p, f in zip(declared, found) if p.stride != f.stride and shown[p.name][-1] > 1]
    wrong += [p.name for p in declared if len(shown[p.name]) != (2 if p.stride is None else 4)]
    return f"width, stride or dimensions of {', '.join(wrong)}" if wrong else ""


def second_size(case: Case) -> str:
    "Check that every tap has the same stride at a larger size, where the arch takes other sizes."
    network = case.network
    if network.fixed_size:
        raise NotRun(f"takes {network.fixed_size} pixels only")
    if type(network.net) in RESIZED:
        raise NotRun(RESIZED[type(network.net)])
    whole = math.lcm(*(p.stride or 1 for p in case.measured.taps))
    side = max(network.size, whole) + whole * math.ceil(SIZES_APART / whole)  # larger by whole cells of every map
    try:
        there = {p.name: p for p in network.cut.measure(network.net, (2, network.n_in, side, side)).taps}
    except (RuntimeError, AssertionError, ValueError) as e:
        raise NotRun(f"does not take {side} pixels") from e
    wrong = [p.name for p in case.measured.taps if there[p.name].stride != p.stride]
    return f"stride of {', '.join(wrong)} differs at {side} pixels" if wrong else ""


def one_by_one(case: Case) -> str:
    "Check that a tap alone, with the rest of the network taken off, gives the same as among all taps."
    with torch.no_grad():
        every = case.body(case.taps).eval()(case.little)
        wrong = [t for t in case.ends() if not torch.equal(case.body([t]).eval()(case.little)[t], every[t])]
    return f"{', '.join(wrong)} alone differs" if wrong else ""


def gradients(case: Case) -> str:
    "Check that in training every kept parameter that is not frozen receives a gradient, and belongs to one group."
    for tap in case.ends():
        body = case.body([tap]).train()
        out = body(case.little)[tap].float()
        (out * torch.randn_like(out)).sum().backward()
        dead = [k for k, p in body.named_parameters() if p.grad is None and p.requires_grad]
        if dead:
            return f"{tap}: no gradient for {len(dead)}, {', '.join(dead[:3])}"
        groups = body.groups()
        params = list(body.parameters())
        every = sorted(id(p) for g in groups for p in g) == sorted(map(id, params))
        if not every or (len(params) > 1 and not all(groups)):
            return f"{tap}: groups of {[len(g) for g in groups]}"
    return ""


def survival(case: Case) -> str:
    "Check that a body survives pickle, deepcopy, state_dict, channels_last and bfloat16."
    body, x = case.body([FEATURES]).eval(), case.little[:1]
    other = case.body([FEATURES]).eval()
    for t in other.state_dict().values():
        t.zero_()
    other.load_state_dict(body.state_dict())
    with torch.no_grad():
        want = body(x)[FEATURES]
        for name, again in (("pickle", pickle.loads(pickle.dumps(body))), ("deepcopy", copy.deepcopy(body)),
                            ("state_dict", other)):  # fmt: skip
            if not torch.equal(again(x)[FEATURES], want):
                return f"{name} differs"
        there = other.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))[FEATURES]
        if _measure_difference(there, want) > LAYOUT_TOLERANCE:
            return f"channels_last differs by {_measure_difference(there, want):.1e}"
        half = body.to(torch.bfloat16)(x.to(torch.bfloat16))[FEATURES]
    return "" if half.dtype == torch.bfloat16 and half.shape == want.shape else f"bfloat16 gives {half.dtype}"


def export(case: Case) -> str:
    "Check that `torch.export` gives a program with the same output."
    body, x = case.body([FEATURES]).eval(), case.little[:1]
    with torch.no_grad():
        try:
            program = torch.export.export(body, (x,)).module()
        except Exception as e:  # torch raises errors of many kinds here
            if type(case.network.net) in NOT_EXPORTED:
                raise NotRun(NOT_EXPORTED[type(case.network.net)]) from e
            raise
        there, want = program(x)[FEATURES], body(x)[FEATURES]
    return "" if _measure_difference(there, want) <= TOLERANCE else f"differs by {_measure_difference(there, want):.1e}"


def _measure_difference(there: Tensor, want: Tensor) -> float:
    "Measure the largest difference, as a part of the largest value."
    return ((there - want).abs().max() / want.abs().max().clamp_min(1e-12)).item()


CHECKS: dict[str, Callable[[Case], str]] = {
    c.__name__: c for c in (equality, shapes, second_size, one_by_one, gradients, survival, export)
}
"The checks by name, in the order in which they run."


def check_arch(
    name: str,  # of any zoo
    make: Callable[[Network, list[str], Measured], nn.Module],  # `ImageBody`
    checks: Mapping[str, Callable[[Case], str]] = CHECKS,  # to run; each returns a fault, or '' for none
    batch: int = 2,  # images
    tell: Callable[[Report], object] = lambda report: None,  # called with the report after each check
    shrink: bool = False,  # check the smaller configuration, where there is one, of a small arch, too
) -> Report:
    """Run the checks on a random network of that name. A check that raises is a fault, and the rest still run. The
    shapes of a large arch are checked on the meta device, and its values in a smaller configuration."""
    start = time.perf_counter()
    request = Request(name, pretrained=False)
    whole = find_empty(request)
    report = _begin(whole, name, checks)
    large = report.params > LARGE
    less = smaller(type(whole.net), whole.name) if large or shrink else None
    report.shrunken = str(less or "")
    torch.manual_seed(0)
    on_paper = _case(whole, make, batch) if large else None
    valued = None if large and not less else _case(find_network(less.request if less else request), make, batch)
    for check, claim in checks.items():
        case = on_paper if check in ON_META and on_paper else valued
        report.results[check] = _run(claim, case) if case else f"{FAULT}: it is large and has no smaller configuration"
        report.seconds = time.perf_counter() - start
        tell(report)
    return report


def _begin(whole: Network, name: str, checks: Iterable[str]) -> Report:
    return Report(
        name,
        zoo=whole.zoo,
        params=sum(p.numel() for p in whole.net.parameters()),
        results=dict.fromkeys(checks, NOT_RUN),
        note=whole.cut.unproved or whole.cut.no_vector,
    )


def _case(network: Network, make: Callable[[Network, list[str], Measured], nn.Module], batch: int) -> Case:
    measured = network.cut.measure(network.net, network.shape)
    device = next((p.device for p in network.net.parameters()), torch.device("cpu"))
    if device.type != "meta":
        _wake(network)
    return Case(network, measured, make, torch.randn(batch, *network.shape[1:], device=device))


def _wake(network: Network) -> None:
    "Fill the classifiers with random numbers. Some are initialised with zeros and would prove nothing."
    network.net.eval()
    for path in network.cut.classifier:
        part = get_path(network.net, path)
        for p in [part] if isinstance(part, nn.Parameter) else part.parameters():
            nn.init.normal_(p, std=0.5)


def _run(check: Callable[[Case], str], case: Case) -> str:
    try:
        wrong = check(case)
    except NotRun as e:
        return f"{NOT_RUN}: {e}"
    except Exception as e:  # an error of any kind is a fault
        text = str(e).strip()
        wrong = f"{type(e).__name__}: {text.splitlines()[0][:200] if text else ''}"
    return f"{FAULT}: {wrong}" if wrong else OK
