"""Rows and weights of fastai's networks."""

from fastai.vision.models import xresnet
from fastai.vision.models.xresnet import XResNet
from torch import nn
from torch.hub import load_state_dict_from_url

from fastai_heads.archs.family import Family
from fastai_heads.archs.steps import Step, step
from fastai_heads.errors import HeadsError

__all__ = ["BROKEN", "FASTAI", "FASTAI_BUILDERS", "FASTAI_WEIGHTS", "load_fastai_weights"]


def xresnet_steps(net: XResNet) -> tuple[Step, ...]:
    """List the steps: three convolutions, max pool, as many layers as there are, pool, flatten. Dropout and linear are
    left out."""
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

BROKEN = frozenset({"xsenet154"})
"fastai's functions that always raise. This one leaves out the layers."

FASTAI_BUILDERS = {
    name: getattr(xresnet, name) for name in xresnet.__all__ if name.startswith(("xres", "xse")) and name not in BROKEN
}
"fastai's functions by name."

FASTAI_WEIGHTS = {"xresnet50": "https://s3.amazonaws.com/fast-ai-modelzoo/xrn50_940.pth"}
"The functions for which fastai has weights. The others take `pretrained` and ignore it, or load the wrong file."


def load_fastai_weights(
    net: nn.Module,  # built without weights, changed in place
    name: str,  # of its function
) -> None:
    """Load the weights that fastai's function would load. fastai silently skips keys that do not match; here such keys
    raise a `HeadsError`."""
    state = load_state_dict_from_url(FASTAI_WEIGHTS[name], map_location="cpu")["model"]
    try:
        missing, unexpected = net.load_state_dict(state, strict=False)
    except RuntimeError as e:  # shapes
        raise HeadsError(f"`pretrained=True`: the checkpoint of {name} does not fit: {e}") from e
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise HeadsError(
            f"`pretrained=True`: the checkpoint of {name} does not fit. "
            f"Keys that it lacks: {_some(missing)}; keys that the network does not have: {_some(unexpected)}."
        )


def _some(keys: list[str]) -> str:
    return f"{', '.join(keys[:5]) or 'none'}{f' and {len(keys) - 5} more' if len(keys) > 5 else ''}"
