"""A mask: a code for every pixel."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn
from typing_extensions import Self

from fastai_heads.archs.records import INPUT, Level
from fastai_heads.data.missing import IGNORE_PIXEL
from fastai_heads.data.targets import Target
from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.heads.decoders import (
    DECODERS,
    DPT,
    DYNAMIC_UNET,
    DptDecoder,
    DynamicDecoder,
    PaddedDecoder,
    SmpDecoder,
    make_decoder,
)
from fastai_heads.heads.mask_refine import REFINEMENTS, BoundaryRefine, PointRefine, resize_logits
from fastai_heads.heads.mask_start import code_shares, start_from_shares
from fastai_heads.heads.spec import HeadSpec, TapShape, check_weights, is_number
from fastai_heads.tasks.mask import MaskTask
from fastai_heads.tasks.mask_loss import MASK_LOSSES, MODES, WEIGHTED

__all__ = ["MaskModule", "SegmentationHead"]

STRIDES = (2, 4, 8, 16, 32)  # what the decoders read; 2 where the arch has it


@dataclass(frozen=True, kw_only=True)
class SegmentationHead(HeadSpec):
    """A mask at the size of the image, whatever that is. Logits (B, n_out, H, W); the target (B, H, W) holds codes, or
    (B, n_out, H, W) 0 and 1 where a pixel may have several labels. Pixels of the code `ignore_index` count nowhere.

    The decoders read the image and the maps at strides 2 (where the arch has it), 4, 8, 16 and 32, of the body or of a
    pyramid `Trunk` (`tap=('input', 'neck')`); 'dpt' also four depths of a ViT, 'dynamic_unet' two maps or more. No
    decoder changes the body that other heads share: where SMP dilates the last stage, its map is resized instead."""

    tap: str | int | tuple[str | int, ...] = (INPUT, *STRIDES)  # the image, then maps from fine to coarse
    decoder: str | nn.Module | Callable[..., nn.Module] = "unet"  # a name, a module, a function of the taps' channels
    decoder_options: Mapping[str, Any] | None = None  # for a decoder by name: `{'attention_type': 'scse'}`
    mode: str = "multiclass"  # codes exclude each other; 'binary': one logit for code 1; 'multilabel': they do not
    losses: str | Sequence[str] | Mapping[str, float] = "cross_entropy"  # also 'dice', 'focal', 'lovasz'; or their sum
    class_weights: Sequence[float] | Tensor | None = None  # (n_out,) for cross-entropy, Dice and focal
    ignore_index: int = IGNORE_PIXEL  # the code of a pixel without a label
    threshold: float = 0.5  # a probability, for 'binary' and 'multilabel'
    refine: bool | str = False  # sharper boundaries: True, a residual block on the logits; 'points', as in PointRend
    prior: bool | Sequence[float] = True  # the codes' shares, which its start predicts; True: of a sample; False: none

    kinds: ClassVar[frozenset[str]] = frozenset({"mask", "unknown"})
    predicts: ClassVar[type[MaskTask]] = MaskTask

    def __post_init__(self) -> None:
        super().__post_init__()
        named = isinstance(self.decoder, str)
        known = (*DECODERS, DPT, DYNAMIC_UNET)
        if named and self.decoder not in known:
            raise HeadsError(
                f"`decoder={self.decoder!r}` of {self.label} is none of {', '.join(known)}, nor a module."
                + did_you_mean(self.decoder, known)
            )
        self.check("decoder", named or callable(self.decoder), "a name, an nn.Module or a function that makes one")
        self.check("decoder_options", named or self.decoder_options is None, "for a decoder by name")
        self.check("mode", isinstance(self.mode, str) and self.mode in MODES, f"one of {', '.join(MODES)}")
        terms = self.terms
        fits = terms and all(t in MASK_LOSSES and is_number(w, least=0) for t, w in terms.items())
        self.check("losses", bool(fits), f"one of {', '.join(MASK_LOSSES)}, several, or a dict of each to its weight")
        self.check("ignore_index", type(self.ignore_index) is int, "a whole number")
        self.check("threshold", is_number(self.threshold, least=0, below=1), "a probability")
        self.check("prior", isinstance(self.prior, bool) or _are_shares(self.prior), "True, False or a share per code")
        self.check("refine", self.refine in REFINEMENTS, "False, True or 'points'")
        if not isinstance(self.tap, tuple) or self.tap[0] != INPUT or len(self.tap) < 2:
            raise HeadsError(f"`tap` of {self.label} is a tuple of 'input' and the maps, found {self.tap!r}.")
        own = self.loss is not None or not set(terms) & set(WEIGHTED) or self.mode != "multiclass"
        if self.class_weights is not None and own:
            raise HeadsError(
                f"`class_weights` of {self.label} are for its own {', '.join(WEIGHTED)}, of codes that exclude each "
                "other; with `loss=`, give them to that loss."
            )

    @property
    def terms(self) -> dict[str, float]:
        "The losses that are summed, with their weights."
        if isinstance(self.losses, Mapping):
            return dict(self.losses)
        return dict.fromkeys((self.losses,) if isinstance(self.losses, str) else tuple(self.losses), 1.0)

    @property
    def reads(self) -> tuple[str | int | Level, ...]:
        "As of every head; stride 2 only where the arch has it, and not for 'dpt', which does not read it."
        taps = (Level(2, optional=True) if tap == Level(2) else tap for tap in super().reads)
        return tuple(tap for tap in taps if self.decoder != DPT or tap != Level(2, optional=True))

    def infer_n_out(self, target: Target) -> int | None:
        "Return a channel per code; one for code 1 alone where `mode='binary'`. Of several masks `n_out` may say it."
        if self.mode != "binary":
            of_another = target.n_out is None and target.vocab is not None and self.n_out is None
            return len(target.vocab) if of_another else target.n_out
        if target.n_out not in (None, 2):
            raise HeadsError(f"`mode='binary'` of {self.label} is for two codes; {target.name!r} has {target.n_out}.")
        return 1

    def fit(self, target: Target, labels: Callable[[], Tensor]) -> Self:
        "Fit as every head does, with one class weight per code."
        if target.kind == "unknown" and (self.mode != "multilabel" or self.n_out is None):
            raise HeadsError(
                f"{self.label} needs a target of kind mask, and target {target.name!r} is of none that is known: for "
                "0 and 1 in every channel, (C, H, W), pass `mode='multilabel', n_out=C`."
            )
        spec = super().fit(target, labels)
        if spec.mode == "multiclass" and spec.n_out < 2:
            raise HeadsError(f"`n_out={spec.n_out}` of {self.label}: for one logit pass `mode='binary'`.")
        if spec.class_weights is not None:
            weights = check_weights("class_weights", spec.class_weights, spec.n_out, target)
            spec = replace(spec, class_weights=weights)
        return replace(spec, prior=spec._find_prior(target, labels), decoder_options=spec._full_options())

    def _full_options(self) -> Mapping[str, Any] | None:
        "Say the level at the image's stride in so many words: specs in files that do not say it have none."
        channels = DECODERS[self.decoder].image_channels if self.decoder in DECODERS else 0
        given = self.decoder_options or {}
        return {"image_channels": channels, **given} if channels else self.decoder_options

    def _find_prior(self, target: Target, labels: Callable[[], Tensor]) -> bool | tuple[float, ...]:
        "Measure the codes' shares, for a decoder and a loss that can start from them."
        if not isinstance(self.prior, bool):
            return check_weights("prior", self.prior, self.n_out, target)
        rare = set(self.terms) & {"cross_entropy", "focal"}  # losses that a rare code pulls hard at the start
        starts = self.loss is None and isinstance(self.decoder, str) and target.kind == "mask"
        if not (self.prior and rare and starts):
            return False
        return code_shares(labels(), self.n_out, self.mode, self.ignore_index) or False

    def build(self, taps: tuple[TapShape, ...]) -> nn.Module:
        "Make the decoder, and the refinement behind it."
        decoder = self._decoder(taps)
        if self.prior is not False and isinstance(self.decoder, str):
            start_from_shares(decoder.last, self.prior, self.mode)
        return MaskModule(decoder, self.n_out, self._refinement(taps))

    def _refinement(self, taps: Sequence[TapShape]) -> nn.Module | None:
        if self.refine != "points":
            return BoundaryRefine(self.n_out) if self.refine else None
        fine = next((tap.channels for tap in taps[1:]), 0)
        return PointRefine(self.n_out, taps[0].channels, fine, exclusive=self.mode == "multiclass")

    def _decoder(self, taps: tuple[TapShape, ...]) -> nn.Module:
        channels = [tap.channels for tap in taps]
        if not isinstance(self.decoder, str):
            return make_decoder(self.decoder, channels)
        strides = [tap.stride for tap in taps[1:]]
        options = dict(self.decoder_options or {})
        if self.decoder == DYNAMIC_UNET:
            if len(strides) < 2 or None in strides or strides != sorted(strides):
                raise HeadsError(f"`decoder='dynamic_unet'` needs two maps at least, fine to coarse, found {strides}.")
            try:
                return DynamicDecoder(channels, self.n_out, **options)
            except TypeError as error:
                raise HeadsError(f"`decoder_options`: {error}.") from None
        if self.decoder == DPT:
            return DptDecoder(channels[1:], strides, self.n_out, **options)
        missing = [s for s in STRIDES[1:] if s not in strides]
        if missing or len(set(strides)) < len(strides) or not set(strides) <= set(STRIDES):
            raise HeadsError(
                f"`decoder={self.decoder!r}` reads maps at strides 4, 8, 16 and 32, and 2 where there is one; the taps "
                f"are at {strides}. 'dynamic_unet' takes any."
            )
        by_stride = dict(zip(strides, channels[1:]))
        levels = [channels[0], *(by_stride.get(s, 0) for s in STRIDES)]
        return SmpDecoder(DECODERS[self.decoder], levels, self.n_out, **options)


class MaskModule(nn.Module):
    "A decoder whose answer has the image's height and width."

    def __init__(
        self,
        decoder: nn.Module,  # takes the image and the maps, gives (B, n_out, h, w)
        n_out: int,  # channels
        refine: nn.Module | None = None,  # a `BoundaryRefine` or `PointRefine` of the logits
    ):
        super().__init__()
        self.decoder, self.n_out = decoder, n_out
        self.refine = nn.Identity() if refine is None else refine

    def forward(
        self,
        image: Tensor,  # (B, C, H, W)
        *maps: Tensor,  # what the decoder reads, fine to coarse
    ) -> Tensor:  # (B, n_out, H, W)
        x = self.decoder(image, *maps)
        if x.shape[1] != self.n_out:
            raise HeadsError(f"`decoder` gives {x.shape[1]} channels for {self.n_out} codes.")
        height, width = image.shape[-2:]
        size = self.decoder.pad_size((height, width)) if isinstance(self.decoder, PaddedDecoder) else (height, width)
        if isinstance(self.refine, PointRefine):
            return self.refine(x, image, maps[:1], size)[..., :height, :width]
        return self.refine(resize_logits(x, size)[..., :height, :width])


def _are_shares(value: object) -> bool:
    numbers = value.tolist() if isinstance(value, Tensor) else value
    shares = isinstance(numbers, list | tuple) and all(is_number(v, least=0, below=1) and v > 0 for v in numbers)
    return shares and bool(numbers)
