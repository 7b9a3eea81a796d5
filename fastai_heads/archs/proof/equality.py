"""A cut loses nothing: the arch's own classifier, applied to the taps, gives the arch's own logits."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastai_heads.archs.probe import on_meta
from fastai_heads.archs.records import PRE_LOGITS, Measured, Network
from fastai_heads.archs.surgery import get_path, snapshot
from fastai_heads.errors import MISFITS, HeadsError
from fastai_heads.modes import evaluate

__all__ = ["apply_classifier", "cut_off", "logits_from_taps"]

CHEAP = 500_000_000
"Products of numbers and cells of 16 × 16 pixels up to which a network is run with its values when it is cut."
SIDE = 32
"Side of the image that it is run on, where the network takes it."


def apply_classifier(
    classifier: nn.Module,  # the layer that the arch reads its vector with
    vector: Tensor,  # (B, C)
) -> Tensor:  # (B, classes)
    "Apply the classifier to the vector; a 1×1 convolution sees it as a map of one pixel."
    if isinstance(classifier, nn.Conv2d):
        return classifier(vector[:, :, None, None]).flatten(1)
    return classifier(vector)


def logits_from_taps(
    network: Network,  # with its classifier
    taps: dict[str, Tensor],  # what the body of that network gives
) -> Tensor | None:  # (B, classes), None where no tap gives them
    "Give what the arch's own classifier makes of the taps."
    cut, net = network.cut, network.net
    if cut.logits is not None:
        return cut.logits(net, taps)
    if cut.unproved or cut.no_vector:
        return None
    said = [apply_classifier(get_path(net, path), taps[PRE_LOGITS]) for path in cut.classifier]
    if not said:
        return taps[PRE_LOGITS]
    return said[0] if len(said) == 1 else (said[0] + said[1]) / 2


def cut_off(
    network: Network,  # changed in place
    taps: tuple[str, ...],
    measured: Measured,
) -> None:
    """Take off what the taps do not need, and run what is left: it gives what it gave before, bit for bit. Where it
    does not, all that the code asks for stays."""
    before, undo = _given(network, taps), snapshot(network.net)
    width = {p.name: p.channels for p in (*measured.taps, *measured.by_hand)}
    for careful in (False, True):
        try:
            network.cut.prune(network.net, taps, measured, network.shape, careful)
            after = _run(network, before.x, taps) if before else {}
        except MISFITS as e:
            why = f"{type(e).__name__}: {e}"
        else:
            wrong = [t for t, x in after.items() if x.shape[1] != width[t] or not before.fits(t, x)]
            if not wrong:
                return
            why = f"{', '.join(wrong)} differs"
        undo()
    raise HeadsError(
        f"`arch`: {network.name} does not work without what {', '.join(taps)} does not need ({why}). "
        "Wrap it in a module that gives its last map."
    )


@dataclass(frozen=True)
class _Given:
    "What a network gave, on which image; nothing where it was run without values."

    x: Tensor
    out: dict[str, Tensor]

    def fits(self, tap: str, now: Tensor) -> bool:
        "Tell whether a tap gives what it gave, bit for bit."
        return not self.out or torch.equal(now.nan_to_num(), self.out[tap].nan_to_num())


def _given(network: Network, taps: tuple[str, ...]) -> _Given | None:
    "Return what the taps give on the smallest image that works; where values would take long, an image without them."
    p = next(network.net.parameters(), None)
    if p is None or p.is_meta:
        return None
    size = sum(p.numel() for p in network.net.parameters())
    for side in dict.fromkeys((network.fixed_size or network.least_size or SIDE, network.size)):
        shape = (1, *network.shape[1:2], side, side)
        if size * (side / 16) ** 2 > CHEAP:
            return _Given(torch.empty((2, *network.shape[1:]), device="meta"), {})
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(p.device, p.dtype)
        try:
            return _Given(x, _run(network, x, taps))
        except MISFITS:
            continue
    return None


def _run(network: Network, x: Tensor, taps: tuple[str, ...]) -> dict[str, Tensor]:
    "Run to the taps in evaluation mode; random numbers are drawn alike each time, and none of the caller's."
    if x.is_meta:
        return on_meta(network.net, x.shape, lambda n, z: network.cut.run(n, z, taps))
    with evaluate(network.net), torch.random.fork_rng(_devices(x)):
        torch.manual_seed(0)
        return network.cut.run(network.net, x, taps)


def _devices(x: Tensor) -> list[torch.device]:
    return [x.device] if x.is_cuda else []
