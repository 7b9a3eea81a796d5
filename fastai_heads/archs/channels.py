"""The first convolution for images that do not have three channels."""

import torch
from torch import Tensor, nn

from fastai_heads.archs.surgery import get_path
from fastai_heads.errors import HeadsError

__all__ = ["adapt_input", "adapt_weight", "first_conv"]


def adapt_weight(
    weight: Tensor,  # (out, 3, height, width) of the pretrained layer
    n_in: int,  # channels of the image
) -> Tensor:  # (out, n_in, height, width)
    """Adapt the pretrained weight to another number of channels, as fastai does. One channel gets the sum of the
    three: a grey image then gives what three equal channels gave. Two channels get the first two times 1.5. More
    channels get the three, and zeros. Source: `fastai.vision.learner._load_pretrained_weights`."""
    if n_in == 1:
        return weight.sum(dim=1, keepdim=True)
    if n_in == 2:
        return weight[:, :2] * 1.5
    extra = weight.new_zeros(weight.shape[0], n_in - 3, *weight.shape[2:])
    return torch.cat([weight, extra], dim=1)


def first_conv(net: nn.Module) -> tuple[str, nn.Conv2d] | None:
    "Find the path and the module of the first convolution. It is None if there is no convolution."
    return next(((path, m) for path, m in net.named_modules() if isinstance(m, nn.Conv2d)), None)


def adapt_input(
    net: nn.Module,  # changed in place
    n_in: int,  # channels of the image
    pretrained: bool,  # keep the first layer's weights, adapted
    name: str = "arch",  # for messages
) -> None:
    "Replace the first convolution by one that takes `n_in` channels."
    found = first_conv(net)
    if found is None:
        raise HeadsError(f"`n_in={n_in}`: {name} has no convolution that could be adapted to other channels.")
    path, old = found
    if old.in_channels == n_in:
        return
    if old.in_channels != 3 or old.groups != 1:
        raise HeadsError(
            f"`n_in={n_in}`: only a first layer of 3 channels in one group can be adapted; "
            f"{path!r} of {name} takes {old.in_channels} in {old.groups}."
        )
    new = _widen(old, n_in)
    if pretrained:
        with torch.no_grad():
            new.weight.copy_(adapt_weight(old.weight, n_in))
            if old.bias is not None:
                new.bias.copy_(old.bias)
    parent, _, last = path.rpartition(".")
    setattr(get_path(net, parent), last, new)


def _widen(conv: nn.Conv2d, n_in: int) -> nn.Conv2d:
    "Make a plain convolution for `n_in` channels. All its other settings are those of the old one."
    new = nn.Conv2d(
        n_in,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    new.training = conv.training
    return new
