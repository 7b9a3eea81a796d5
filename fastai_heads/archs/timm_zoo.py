"""Cutting timm's networks through timm's own interface."""

import math
from dataclasses import dataclass

import timm
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn

from fastai_heads.archs.probe import measure_taps, on_meta, ran, reached
from fastai_heads.archs.records import FEATURES, INPUT, PRE_LOGITS, Measured, Network
from fastai_heads.archs.surgery import blank, halves, keep_only, with_parents
from fastai_heads.errors import HeadsError, did_you_mean

__all__ = ["TimmCut", "build_timm", "is_timm", "timm_network"]

NO_HEAD = "it is an encoder without a classifier"


@dataclass(frozen=True)
class TimmCut:
    "Follows a timm network with `forward_intermediates` and `forward_head`."

    levels: tuple[str, ...]  # tap of each of timm's intermediates, by index
    classifier: tuple[str, ...]  # paths of what reads `pre_logits`
    no_vector: str = ""  # why it has no `pre_logits`, where it has none

    def taps(self, net: nn.Module) -> tuple[tuple[str, str], ...]:
        "(name, module) of every tap, from the image on."
        head = ((PRE_LOGITS, "forward_head"),) if not self.no_vector else ()
        return (*((n, n) for n in self.levels), (FEATURES, "forward_features"), *head)

    def run(self, net: nn.Module, x: Tensor, taps: tuple[str, ...]) -> dict[str, Tensor]:
        "Every tap asked for, in one pass."
        inner = [i for i, name in enumerate(self.levels) if name in taps]
        if not (FEATURES in taps or PRE_LOGITS in taps):
            if not inner:
                return {}
            maps = net.forward_intermediates(x, inner, stop_early=True, intermediates_only=True, output_fmt="NCHW")
            return {self.levels[i]: m for i, m in zip(inner, maps)}
        if taps == (PRE_LOGITS,):
            return {PRE_LOGITS: net.forward_head(net.forward_features(x), pre_logits=True)}
        indices = sorted({*inner, len(self.levels) - 1})
        out, maps = net.forward_intermediates(x, indices, output_fmt="NCHW")
        found = {self.levels[i]: m for i, m in zip(indices, maps) if i in inner}
        if FEATURES in taps:
            found[FEATURES] = as_map(out, maps[-1])
        if PRE_LOGITS in taps:
            found[PRE_LOGITS] = net.forward_head(out, pre_logits=True)
        return found

    def measure(self, net: nn.Module, shape: tuple[int, ...]) -> Measured:
        "Channels and strides of all taps; which modules a map needs and which only the vector needs."

        def follow(n: nn.Module, x: Tensor):
            with ran(n) as first:
                out, maps = n.forward_intermediates(x, output_fmt="NCHW")
            shapes = {name: m.shape for name, m in zip(self.levels, maps, strict=True)}
            shapes[FEATURES] = as_map(out, maps[-1]).shape
            with ran(n) as then:
                if not self.no_vector:
                    shapes[PRE_LOGITS] = n.forward_head(out, pre_logits=True).shape
            return shapes, tuple(first), frozenset(then)

        shapes, order, then = on_meta(net, shape, follow)
        params = {name: _params_upto(net, order, name) for name in self.levels if name in order}
        first = frozenset(order)
        first |= self._read(net, shape, first, (FEATURES,))
        if not self.no_vector:
            then |= self._read(net, shape, first | then, (FEATURES, PRE_LOGITS))
        params[FEATURES] = _count(net, first)
        params[PRE_LOGITS] = _count(net, first | then)
        return Measured(measure_taps(self.taps(net), shapes, shape, params), first, then - first)

    def _read(self, net: nn.Module, shape: tuple[int, ...], used: frozenset[str], taps: tuple[str, ...]):
        "Parameters that the taps read without calling the module that owns them."
        live = with_parents(used)
        owners = {k: k.rpartition(".")[0] for k, _ in net.named_parameters()}
        doubtful = {
            k
            for k, owner in owners.items()
            if owner and owner not in live and with_parents([owner]) & used and not self._of_classifier(owner)
        }
        return reached(net, shape, lambda n, x: list(self.run(n, x, taps).values()), doubtful)

    def _of_classifier(self, path: str) -> bool:
        return any(path == c or path.startswith(f"{c}.") for c in self.classifier)

    def prune(self, net: nn.Module, taps: tuple[str, ...], measured: Measured, shape: tuple[int, ...]) -> None:
        "Takes off, in place, all that the taps do not need."
        if PRE_LOGITS in taps:
            blank(net, measured.map_modules | measured.head_modules)
        elif FEATURES in taps:
            blank(net, measured.map_modules)
        else:
            self._prune_inner(net, taps, shape)

    def _prune_inner(self, net: nn.Module, taps: tuple[str, ...], shape: tuple[int, ...]) -> None:
        indices = [i for i, name in enumerate(self.levels) if name in taps]
        if not indices:
            keep_only(net, ())
            return
        net.prune_intermediate_layers(indices, prune_norm=True, prune_head=True)

        def follow(n: nn.Module, x: Tensor) -> frozenset[str]:
            with ran(n) as paths:
                self.run(n, x, taps)
            return frozenset(paths)

        used = on_meta(net, shape, follow)
        blank(net, used | self._read(net, shape, used, taps))

    def groups(self, net: nn.Module) -> list[list[nn.Parameter]]:
        "The parameters in two groups, early and late, by timm's own order of depth."
        if not hasattr(net, "group_matcher"):
            by_depth = [[p] for p in net.parameters()]
        else:
            found = group_with_matcher(net.named_parameters(), net.group_matcher(coarse=False), return_values=True)
            by_depth = [found[i] for i in sorted(found)]
        return halves(by_depth, math.ceil(len(by_depth) / 2))


def _params_upto(net: nn.Module, order: tuple[str, ...], path: str) -> int:
    "Numbers in the modules that run before, or in, the one at `path`."
    last = max(i for i, p in enumerate(order) if p == path or p.startswith(f"{path}."))
    return _count(net, frozenset(order[: last + 1]))


def _count(net: nn.Module, used: frozenset[str]) -> int:
    "Numbers in the parameters of the modules that ran, in parameters named, and in those of the network itself."
    live = with_parents(used)
    return sum(p.numel() for k, p in net.named_parameters() if k in live or k.rpartition(".")[0] in {"", *live})


def as_map(
    out: Tensor,  # what `forward_features` gives: NCHW, NHWC, or tokens (B, prefix + H·W, C)
    like: Tensor,  # the last level, NCHW
) -> Tensor:  # (B, C, H, W)
    "The final map as NCHW, without the prefix tokens."
    height, width = like.shape[-2:]
    if out.ndim == 3:
        tokens = out[:, out.shape[1] - height * width :]
        return tokens.reshape(out.shape[0], height, width, -1).permute(0, 3, 1, 2).contiguous()
    if out.shape[-2:] == (height, width):
        return out
    if out.shape[1:3] == (height, width):
        return out.permute(0, 3, 1, 2).contiguous()
    raise HeadsError(f"`features`: expected a map of {height}×{width}, found a tensor of shape {tuple(out.shape)}.")


def is_timm(net: object) -> bool:
    "Whether a module has timm's interface."
    return all(hasattr(net, a) for a in ("forward_intermediates", "forward_features", "pretrained_cfg", "feature_info"))


def build_timm(
    name: str,  # with or without a tag: 'resnet50.a1_in1k'
    pretrained: bool,
    weights: str | None,  # a tag of that arch
    n_in: int,  # channels of the image
    kwargs: dict,  # for timm.create_model
) -> Network:
    "A timm network by name, with timm's own adaptation of the first layer to `n_in`."
    arch, _, tag = name.partition(".")
    if weights is not None:
        _check_tag(arch, tag, weights)
        name = f"{arch}.{weights}"
    try:
        net = timm.create_model(name, pretrained=pretrained, in_chans=n_in, **kwargs)
    except RuntimeError as e:
        raise HeadsError(f"`arch`: timm could not build {name!r} with pretrained={pretrained}: {e}") from e
    return timm_network(net, arch, pretrained, n_in)


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
) -> Network:
    "What is to be known of a timm network before it is cut."
    cfg = net.pretrained_cfg
    size = _image_side(net, cfg)
    cut = TimmCut(_level_names(net), _classifier(cfg), "" if hasattr(net, "forward_head") else NO_HEAD)
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
    clean = len(set(names)) == len(names) and not {INPUT, FEATURES, PRE_LOGITS} & set(names)
    return tuple(names) if clean else tuple(f"level{i}" for i in range(len(names)))


def _classifier(cfg: dict) -> tuple[str, ...]:
    found = cfg.get("classifier") or ()
    return (found,) if isinstance(found, str) else tuple(found)


def _image_side(net: nn.Module, cfg: dict) -> int:
    side = getattr(getattr(net, "patch_embed", None), "img_size", None) or cfg.get("input_size", (3, 224, 224))[-1]
    return side[-1] if isinstance(side, tuple | list) else side


def _fixed(net: nn.Module, cfg: dict) -> bool:
    embed = getattr(net, "patch_embed", None)
    loose = getattr(embed, "dynamic_img_pad", False) or not getattr(embed, "strict_img_size", True)
    return bool(cfg.get("fixed_input_size")) and not loose
