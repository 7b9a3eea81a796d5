"""Boxes in scenes of several digits, and a training step beside torchvision's: `python -m benchmarks.detection`."""

import statistics
import tempfile
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from fastai.data.core import DataLoaders
from fastai.optimizer import OptimWrapper
from fastai.torch_core import set_seed
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet

from benchmarks.steps import learner_steps, quiet_fit, seconds_per_step
from fastai_heads.data.detection_block import to_pixels
from fastai_heads.data.digits import digits_dls
from fastai_heads.heads.detection import DetectionHead
from fastai_heads.learner import MultiHeadLearner, multihead_learner
from fastai_heads.tasks.detection_loss import anchor_generator
from fastai_heads.tasks.mean_ap import MeanAP

ARCH, SIDE, SEEDS, EPOCHS, LR = "resnet10t", 96, (0, 1), 4, 3e-3
FIELDS = {"tap": (8, 16), "extra_levels": 0, "channels": 64}
GOAL, MINUTES, LIMIT = 0.80, 15, 1.05


def learner(kind: str, dls: DataLoaders) -> MultiHeadLearner:
    "Make a learner of one head of boxes on a small body. It has the optimizer that torchvision's network gets below."
    scale = {"anchor_scale": 2.0} if kind == "retinanet" else {}
    head = DetectionHead(kind=kind, metrics=[MeanAP(0.5), MeanAP()], **FIELDS, **scale)
    opt = partial(OptimWrapper, opt=partial(torch.optim.AdamW, fused=True))
    return multihead_learner(dls, ARCH, heads={"boxes": head}, pretrained=False, opt_func=opt)


def theirs(kind: str, learn: MultiHeadLearner) -> nn.Module:
    "Make torchvision's network over a body and a pyramid like the learner's."
    twin = learner(kind, learn.dls)
    body, module = twin.model[0], twin.model[1]["boxes"]
    maps = [name for name in twin.model[1].reads["boxes"] if name != "input"]

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.pyramid, self.out_channels = body, module.pyramid, FIELDS["channels"]

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            taps = self.body(x)
            return self.pyramid(OrderedDict((name, taps[name]) for name in maps))

    net = RetinaNet if kind == "retinanet" else FCOS
    anchors = anchor_generator(kind, FIELDS["tap"], twin.heads.boxes.spec.anchor_scale)
    sizes = {"min_size": SIDE, "max_size": SIDE, "_skip_resize": True}
    return net(Backbone(), 10, anchor_generator=anchors, head=module.head, **sizes).train()


def their_steps(net: nn.Module, dls: DataLoaders) -> Callable[[], list[float]]:
    """Make an epoch of torchvision's own training: forward, the sum of its losses, backward, a step of the same
    optimizer."""
    opt = torch.optim.AdamW(net.parameters(), 1e-3, fused=True)

    def steps() -> list[float]:
        found = []
        for x, y in dls.train:
            images = [image.as_subclass(Tensor) for image in x]
            rows = [t[t[:, 4] >= 0] for t in y.as_subclass(Tensor)]
            targets = [{"boxes": to_pixels(r[:, :4], SIDE, SIDE), "labels": r[:, 4].long()} for r in rows]
            start = time.process_time()
            sum(net(images, targets).values()).backward()
            opt.step()
            opt.zero_grad()
            found.append(time.process_time() - start)
        return found

    return steps


def main() -> None:
    "Print what is found after a fit from scratch, and the ratios of the steps."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:

        def data(n: int) -> DataLoaders:
            path = f"{folder}/{n}"
            return digits_dls(("boxes",), bs=16, path=path, n=n, size=SIDE, digits_per_scene=(1, 5))

        print(f"{ARCH}, {SIDE}×{SIDE}, 1 to 5 digits, batches of 16, one thread")
        for kind in ("fcos", "retinanet"):
            learn = learner(kind, data(200))
            steps = {"ours": learner_steps(learn), "theirs": their_steps(theirs(kind, learn), learn.dls)}
            times = seconds_per_step(steps)
            print(f"{kind}: a step is {times['ours'] / times['theirs']:.3f} of torchvision's (at most {LIMIT})")
        found = []
        for seed in SEEDS:
            set_seed(seed, reproducible=True)
            learn, start = learner("fcos", data(2000)), time.process_time()
            quiet_fit(learn, lambda: learn.fit_one_cycle(EPOCHS, LR))  # noqa: B023
            minutes = (time.process_time() - start) / 60
            map50, whole = (m.value for m in learn.metrics)
            found.append(map50)
            print(f"seed {seed}: mAP@.5 {map50:.3f}, mAP@[.5:.95] {whole:.3f} after {EPOCHS} epochs, {minutes:.1f} min")
        print(f"mean mAP@.5 {statistics.mean(found):.3f} (at least {GOAL}, in {MINUTES} min)")


if __name__ == "__main__":
    main()
