"""The proof that a cut lost nothing: the arch's own classifier, applied to the taps, gives the arch's own logits."""

import torch
from torch import Tensor, nn

from fastai_heads.archs.records import FEATURES, PRE_LOGITS, Network
from fastai_heads.archs.surgery import get_path

__all__ = ["apply_classifier", "logits_from_taps", "loses_nothing"]


def apply_classifier(
    classifier: nn.Module,  # the layer that the arch reads its vector with
    vector: Tensor,  # (B, C)
) -> Tensor:  # (B, classes)
    "The classifier on the vector; a 1×1 convolution sees it as a map of one pixel."
    if isinstance(classifier, nn.Conv2d):
        return classifier(vector[:, :, None, None]).flatten(1)
    return classifier(vector)


def logits_from_taps(
    network: Network,  # with its classifier
    taps: dict[str, Tensor],  # what the body of that network gives
) -> Tensor | None:  # (B, classes), None where no tap gives them
    "What the arch's own classifier makes of the taps."
    cut, net = network.cut, network.net
    if cut.logits is not None:
        return cut.logits(net, taps)
    if cut.unproved or cut.no_vector:
        return None
    said = [apply_classifier(get_path(net, path), taps[PRE_LOGITS]) for path in cut.classifier]
    if not said:
        return taps[PRE_LOGITS]
    return said[0] if len(said) == 1 else (said[0] + said[1]) / 2


def loses_nothing(
    network: Network,  # with its classifier, in evaluation mode
    x: Tensor,  # images
) -> bool:
    "Whether the classifier on the taps gives the arch's logits, bit for bit."
    wanted = tuple(name for name in (FEATURES, PRE_LOGITS) if name != PRE_LOGITS or not network.cut.no_vector)
    with torch.no_grad():
        taps = network.cut.run(network.net, x, wanted)
        said, own = logits_from_taps(network, taps), network.net(x)
    return said is not None and torch.equal(said, own)
