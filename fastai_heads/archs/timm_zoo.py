"""Cutting timm's networks through timm's own interface."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import timm
from timm.models._features import FeatureInfo
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn

from fastai_heads.archs.probe import measure_taps, on_meta, ran, reached, touched_by
from fastai_heads.archs.records import FEATURES, INPUT, PRE_LOGITS, Measured, Network
from fastai_heads.archs.surgery import blank, drop_parameter, get_path, halves, keep_only, with_parents
from fastai_heads.archs.timm_rows import ENCODERS, SIDEWAYS, TIMM_ROWS
from fastai_heads.archs.touched import touched
from fastai_heads.errors import HeadsError, did_you_mean

__all__ = ["TimmCut", "build_timm", "feature_names", "is_timm", "timm_network"]

NORMS = (nn.LayerNorm, nn.BatchNorm2d, nn.BatchNorm1d)
"Layers that give back the shape that they get."
NO_HEAD = "it is an encoder without a classifier"


@dataclass(frozen=True)
class TimmCut:
    "Follows a timm network with `forward_intermediates` and `forward_head`."

    levels: tuple[str, ...]  # tap of each of timm's intermediates, by index
    classifier: tuple[str, ...]  # paths of what reads `pre_logits`
    tail: tuple[str, ...] = ()  # modules between timm's `pre_logits` and the classifier
    no_vector: str = ""  # why it has no `pre_logits`, where it has none
    logits: Callable[[nn.Module, dict[str, Tensor]], Tensor] | None = None  # how the taps make them, where not simply
    unproved: str = ""  # why no tap gives the logits, where none does

    def taps(self, net: nn.Module) -> tuple[tuple[str, str], ...]:
        "(name, module) of every tap, from the image on."
        head = ((PRE_LOGITS, "forward_head"),) if not self.no_vector else ()
        return (*((n, n.partition("#")[0]) for n in self.levels), (FEATURES, "forward_features"), *head)

    def run(self, net: nn.Module, x: Tensor, taps: tuple[str, ...]) -> dict[str, Tensor]:
        "Give every tap asked for, in one pass."
        inner = [i for i, name in enumerate(self.levels) if name in taps]
        if not (FEATURES in taps or PRE_LOGITS in taps):
            if not inner:
                return {}
            maps = net.forward_intermediates(
                x, indices=inner, stop_early=True, intermediates_only=True, output_fmt="NCHW"
            )
            return {self.levels[i]: m for i, m in zip(inner, maps)}
        if taps == (PRE_LOGITS,):
            return {PRE_LOGITS: self._vector(net, net.forward_features(x))}
        indices = sorted({*inner, len(self.levels) - 1})
        out, maps = net.forward_intermediates(x, indices=indices, output_fmt="NCHW")
        found = {self.levels[i]: m for i, m in zip(indices, maps) if i in inner}
        if FEATURES in taps:
            found[FEATURES] = as_map(out, maps[-1])
        if PRE_LOGITS in taps:
            found[PRE_LOGITS] = self._vector(net, out)
        return found

    def _vector(self, net: nn.Module, out: Tensor | list[Tensor]) -> Tensor:
        "Give what the classifier reads, after the batch norm that timm counts to its classifier."
        x = net.forward_head(out, pre_logits=True)
        for path in self.tail:
            x = net.get_submodule(path)(x)
        return x

    def measure(self, net: nn.Module, shape: tuple[int, ...]) -> Measured:
        "Channels and strides of all taps; which modules a map needs and which only the vector needs."

        def follow(n: nn.Module, x: Tensor):
            with ran(n) as order, touched(n) as first:
                out, maps = n.forward_intermediates(x, output_fmt="NCHW")
            shapes = {name: m.shape for name, m in zip(self.levels, maps, strict=True)}
            shapes[FEATURES] = as_map(out, maps[-1]).shape
            with touched(n) as then:
                if not self.no_vector:
                    shapes[PRE_LOGITS] = self._vector(n, out).shape
            return shapes, tuple(order), frozenset(first.used), frozenset(then.used)

        shapes, order, first, then = on_meta(net, shape, follow)
        params = _params_by_tap(net, order, [name for name in self.levels if name in order])
        params[FEATURES] = _count(net, first)
        params[PRE_LOGITS] = _count(net, first | then)
        return Measured(measure_taps(self.taps(net), shapes, shape, params), first, then - first)

    def prune(self, net: nn.Module, taps: tuple[str, ...], measured: Measured, shape: tuple[int, ...],
              careful: bool = False) -> None:  # fmt: skip
        "Takes off, in place, all that the taps do not need."
        inner = [i for i, name in enumerate(self.levels) if name in taps]
        if inner and not (FEATURES in taps or PRE_LOGITS in taps):
            net.prune_intermediate_layers(inner, prune_norm=True, prune_head=True)
        if not (inner or FEATURES in taps or PRE_LOGITS in taps):
            keep_only(net, ())
        else:
            blank(net, self._needed(net, taps, measured, shape, careful), measured.map_modules | measured.head_modules)
        for path in self.classifier:
            drop_parameter(net, path)
        if type(net) in SIDEWAYS:
            self._settle(net, taps, shape)

    def _needed(
        self, net: nn.Module, taps: tuple[str, ...], measured: Measured, shape: tuple[int, ...], careful: bool
    ) -> Collection[str]:
        "Return what the taps use, as that was measured; for a careful cut, and for inner taps, by a run to them."
        if careful or not (FEATURES in taps or PRE_LOGITS in taps):
            seen = touched_by(net, shape, lambda n, x: self.run(n, x, taps))
            return seen.used | seen.asked if careful else seen.used
        return measured.map_modules | (measured.head_modules if PRE_LOGITS in taps else frozenset())

    def _settle(self, net: nn.Module, taps: tuple[str, ...], shape: tuple[int, ...]) -> None:
        "Settle what the arch computes more than the taps need: norms without effect go, the rest is frozen."
        every = [k for k, _ in net.named_parameters()]
        live = reached(net, shape, lambda n, x: list(self.run(n, x, taps).values()), every)
        idle_owners = {k.rpartition(".")[0] for k in every if k not in live}
        for path in idle_owners:
            owner = get_path(net, path)
            if isinstance(owner, NORMS):
                parent, _, name = path.rpartition(".")
                get_path(net, parent)._modules[name] = nn.Identity()
        for k, p in net.named_parameters():
            if k not in live:
                p.requires_grad_(False)

    def add_checkpoints(self, net: nn.Module) -> "TimmCut":
        "Compute activations again in the backward pass. timm sets this on the network."
        try:
            net.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as e:
            raise HeadsError(f"`grad_checkpointing`: timm's {type(net).__name__} does not have it.") from e
        return self

    def groups(self, net: nn.Module) -> list[list[nn.Parameter]]:
        "List the parameters in two groups, early and late, by timm's own order of depth."
        if not hasattr(net, "group_matcher"):
            by_depth = [[p] for p in net.parameters()]
        else:
            found = group_with_matcher(net.named_parameters(), net.group_matcher(coarse=False), return_values=True)
            by_depth = [found[i] for i in sorted(found)]
        return halves(by_depth, math.ceil(len(by_depth) / 2))


def _params_by_tap(net: nn.Module, order: tuple[str, ...], taps: Sequence[str]) -> dict[str, int]:
    "Numbers in the modules that run before, or in, the one that is a tap."
    turn: dict[str, int] = {"": 0}
    for i, path in enumerate(order):
        for part in with_parents([path]) - turn.keys():
            turn[part] = i
    never = len(order)
    sizes = [(min(turn.get(k, never), turn.get(k.rpartition(".")[0], never)), p.numel())
             for k, p in net.named_parameters()]  # fmt: skip
    ends = {tap: max(i for i, p in enumerate(order) if p == tap or p.startswith(f"{tap}.")) for tap in taps}
    return {tap: sum(n for i, n in sizes if i <= end) for tap, end in ends.items()}


def _count(net: nn.Module, used: frozenset[str]) -> int:
    "Numbers in the parameters of the modules that ran, in parameters named, and in those of the network itself."
    live = with_parents(used)
    live |= {""}
    return sum(p.numel() for k, p in net.named_parameters() if k in live or k.rpartition(".")[0] in live)


def as_map(
    out: Tensor | list[Tensor],  # of `forward_features`: NCHW, NHWC, tokens (B, prefix + H·W, C), (B, C, H·W), a list
    like: Tensor,  # the last level, NCHW
) -> Tensor:  # (B, C, H, W)
    "Give the final map as NCHW, without the prefix tokens."
    if isinstance(out, list):  # a tensor per branch or stage, the last one's is the last level
        out = out[-1]
    height, width = like.shape[-2:]
    if out.ndim == 4:
        nhwc = out.shape[1:3] == (height, width) != out.shape[-2:]
        return out.permute(0, 3, 1, 2).contiguous() if nhwc else out
    if out.shape[1] == like.shape[1] and out.shape[2] == height * width != like.shape[1]:
        return out.reshape(like.shape)
    n_prefix = out.shape[1] - height * width
    if n_prefix < 0:  # cells that were merged, or only the prefix tokens
        return _merged(out, like) if out.shape[2] != like.shape[1] else like
    return out[:, n_prefix:].reshape(out.shape[0], height, width, -1).permute(0, 3, 1, 2).contiguous()


def _merged(tokens: Tensor, like: Tensor) -> Tensor:
    "Give the map whose tokens (B, N, C) each stand for some cells of the last level; where none fits, that level."
    ways = range(2, max(like.shape[-2:]) + 1)
    sides = ([math.ceil(side / r) for side in like.shape[-2:]] for r in ways)
    fits = next((s for s in sides if math.prod(s) == tokens.shape[1]), None)
    return tokens.transpose(1, 2).unflatten(2, fits).contiguous() if fits else like


def is_timm(net: object) -> bool:
    "Tell whether a module has timm's interface, and gives logits: one made with `features_only` gives its maps."
    parts = ("forward_intermediates", "forward_features", "pretrained_cfg", "feature_info")
    return all(hasattr(net, a) for a in parts) and not feature_names(net)


def feature_names(net: object) -> tuple[str, ...]:
    "Name the modules of the maps that a network made with timm's `features_only` gives, () for any other."
    info = getattr(net, "feature_info", None)
    return tuple(info.module_name()) if isinstance(info, FeatureInfo) else ()


def build_timm(
    name: str,  # with or without a tag: 'resnet50.a1_in1k'
    pretrained: bool,
    weights: str | None,  # a tag of that arch
    n_in: int,  # channels of the image
    kwargs: dict,  # for timm.create_model
) -> Network:
    "Build a timm network by name, with timm's own adaptation of the first layer to `n_in`."
    arch, _, tag = name.partition(".")
    if kwargs.get("features_only"):
        raise HeadsError(
            f"`features_only`: every map of {arch} is a tap already; leave it out, and name strides or taps."
        )
    if weights is not None:
        _check_tag(arch, tag, weights)
        name = f"{arch}.{weights}"
    try:
        net = timm.create_model(name, pretrained=pretrained, in_chans=n_in, **kwargs)
    except ImportError as e:
        missing = f" Run: pip install {e.name}" if e.name else ""
        raise HeadsError(f"`arch`: {name!r} needs a package that is missing: {e}.{missing}") from e
    except (RuntimeError, TypeError, AssertionError, ValueError) as e:
        given = "".join(f", {k}={v!r}" for k, v in kwargs.items())
        only = _only_size(arch) if "img_size" in kwargs else ""
        raise HeadsError(f"`arch`: timm could not build {name!r} with pretrained={pretrained}{given}: {e}{only}") from e
    return timm_network(net, name if ":" in name else arch, pretrained, n_in, kwargs.get("img_size"))


def _only_size(arch: str) -> str:
    "Say what size an arch takes that was refused another one."
    cfg = timm.get_pretrained_cfg(arch)
    fixed = cfg is not None and cfg.fixed_input_size
    return f"\n{arch} takes {'×'.join(map(str, cfg.input_size[1:]))} pixels only." if fixed else ""


def _check_tag(arch: str, tag: str, weights: object) -> None:
    tags = [t.partition(".")[2] for t in timm.list_models(f"{arch}.*", pretrained=True)]
    if not isinstance(weights, str):
        raise HeadsError(f"`weights` of the timm arch {arch!r}: expected a tag's name, found {weights!r}.")
    if tag and tag != weights:
        raise HeadsError(f"`weights={weights!r}` contradicts the tag in `arch={arch}.{tag}`; give one of the two.")
    if weights not in tags:
        raise HeadsError(
            f"`weights={weights!r}`: timm has no such weights for {arch!r}.{did_you_mean(weights, tags)} "
            f"Tags: {', '.join(tags) or 'none'}."
        )


def timm_network(
    net: nn.Module,
    name: str,
    pretrained: bool,
    n_in: int | None = None,  # None: what the network takes
    img_size: int | tuple[int, ...] | None = None,  # what it was built for; None: as the network or its weights say
) -> Network:
    "Gather what is to be known of a timm network before it is cut."
    cfg = net.pretrained_cfg
    size = _image_side(net, cfg, img_size)
    cut = _cut_of(net)
    n_in = n_in or getattr(net, "in_chans", cfg.get("input_size", (3,))[0])
    shown = pretrained and n_in == len(cfg.get("mean", ()))
    least = cfg.get("min_input_size")
    return Network(
        net=net,
        name=name,
        zoo="timm",
        cut=cut,
        n_in=n_in,
        mean=tuple(cfg["mean"]) if shown else None,
        std=tuple(cfg["std"]) if shown else None,
        size=size,
        fixed_size=size if _fixed(net, cfg) else None,
        least_size=least[-1] if least else None,
        weights=(cfg.get("tag") or "default") if pretrained else "",
    )


def _level_names(net: nn.Module) -> tuple[str, ...]:
    info = net.feature_info
    names = [i["module"] for i in (info if isinstance(info, list) else info.get_dicts())]
    taken = (INPUT, FEATURES, PRE_LOGITS)
    several = {n for n in names if names.count(n) > 1 or n in taken}
    return tuple(f"{n}#{names[:i].count(n)}" if n in several else n for i, n in enumerate(names))


def _cut_of(net: nn.Module) -> TimmCut:
    declared = net.pretrained_cfg.get("classifier") or ()
    paths = (declared,) if isinstance(declared, str) else tuple(declared)
    paths = tuple(p for p in paths if get_path(net, p) is not None)
    parents = tuple(p.rpartition(".")[0] for p in paths)
    norms = tuple(_norm_of(get_path(net, parent)) for parent in parents)
    tail: tuple[str, ...] = ()
    if all(norms) and len(paths) == 1:
        tail = (f"{parents[0]}.{norms[0]}",)
    elif all(norms):
        paths = parents
    row = TIMM_ROWS.get(type(net))
    particular = row is not None and len(paths) > 1
    return TimmCut(
        levels=_level_names(net),
        classifier=(*paths, *(row.also if particular else ())),
        tail=tail,
        no_vector="" if hasattr(net, "forward_head") and type(net) not in ENCODERS else NO_HEAD,
        logits=row.logits if particular else None,
        unproved=row.why if particular and row.logits is None else "",
    )


def _norm_of(module: nn.Module | None) -> str:
    "Name the batch norm in timm's `NormLinear` classifiers. In other modules the name is ''."
    first = next(iter(module.named_children()), ("", None)) if module is not None else ("", None)
    return first[0] if isinstance(first[1], nn.BatchNorm1d) else ""


def _image_side(net: nn.Module, cfg: dict, img_size: int | tuple[int, ...] | None) -> int:
    places = (getattr(net, "patch_embed", None), getattr(net, "stem", None), net)
    side = img_size or next((s for m in places if (s := getattr(m, "img_size", None))), None)
    side = side or cfg.get("input_size", (3, 224, 224))[-1]
    return side[-1] if isinstance(side, tuple | list) else side


def _fixed(net: nn.Module, cfg: dict) -> bool:
    embed = getattr(net, "patch_embed", None)
    loose = getattr(embed, "dynamic_img_pad", False) or not getattr(embed, "strict_img_size", True)
    return bool(cfg.get("fixed_input_size")) and not loose
