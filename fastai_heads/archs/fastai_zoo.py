"""Cutting fastai's networks."""

from fastai.vision.models import xresnet
from fastai.vision.models.xresnet import XResNet

from fastai_heads.archs.family import Family
from fastai_heads.archs.steps import Step, step

__all__ = ["FASTAI", "FASTAI_BUILDERS", "FASTAI_WEIGHTS"]


def xresnet_steps(net: XResNet) -> tuple[Step, ...]:
    "Three convolutions, max pool, as many layers as there are, then pool and flatten before dropout and linear."
    n_layers = len(net) - 8
    layers = (step(str(4 + i), f"layer{i + 1}") for i in range(n_layers - 1))
    last = step(str(3 + n_layers), f"layer{n_layers}", "features")
    pool, flat = str(4 + n_layers), str(5 + n_layers)
    stem = (step("0"), step("1"), step("2", "stem"), step("3"))
    return (*stem, *layers, last, step(pool), step(flat, "pre_logits"))


FASTAI = (
    Family(
        name="xresnet",
        module=XResNet,
        steps=xresnet_steps,
        classifier=lambda net: (str(len(net) - 1),),
        late="3",
    ),
)
"A row per family of fastai's networks."

FASTAI_BUILDERS = {name: getattr(xresnet, name) for name in xresnet.__all__ if name.startswith(("xres", "xse"))}
"fastai's functions by name."

FASTAI_WEIGHTS = frozenset({"xresnet50"})
"Those for which fastai has weights; its other functions take `pretrained` and drop it, or load the wrong file."
