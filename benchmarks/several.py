"""Several bodies in one learner against the same modules in a loop by hand: `python -m benchmarks.several`.

Three bodies, an image's, a row's and a text's, with three heads that read all of them; and two images through one
shared body against one pass of the joined batch. Steps are timed in turn, in one process, on one thread, by processor
time. The bodies by hand are called one by one, pooled and concatenated, without anything of this library's around."""

import copy
import tempfile
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import ColReader, RandomSplitter
from fastai.layers import AdaptiveConcatPool2d
from fastai.text.data import TextBlock
from fastai.text.models.awdlstm import AWD_LSTM
from fastai.torch_core import set_seed
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock
from fastcore.basics import noop
from torch import Tensor, nn

from benchmarks.cut import ratio
from benchmarks.strategies import FUSED, WD, Step, learner_step
from fastai_heads import MultiHeadLearner, On, TabularBlock, TabularBody, TextBody, multihead_learner

SIDE, BATCH, ROUNDS = 64, 32, 9
WORDS = [f"word{i}" for i in range(200)]
TEXT = TextBody(AWD_LSTM, config={"emb_sz": 100, "n_hid": 200, "n_layers": 2})


def loaders(folder: str, inputs: tuple[str, ...], n: int = 2 * BATCH) -> DataLoaders:
    "Make items with images of noise, rows and texts, and three targets."
    rng = np.random.default_rng(0)
    for i in range(n):
        PILImage.create(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(f"{folder}/{i}.png")
    frame = pd.DataFrame({"photo": [f"{i}.png" for i in range(n)], "mood": rng.choice(["p", "q"], n)})
    frame["k"], frame["note"] = rng.choice(list("abc"), n), [" ".join(rng.choice(WORDS, 40)) for _ in range(n)]
    frame["u"], frame["size"], frame["age"] = rng.normal(size=(3, n))
    frame["other"] = frame.photo.iloc[::-1].to_list()
    known = {
        "photo": (ImageBlock(), ColReader("photo", pref=f"{folder}/")),
        "other": (ImageBlock(), ColReader("other", pref=f"{folder}/")),
        "row": (TabularBlock(["k"], ["u"]), noop),
        "note": (TextBlock.from_df("note", min_freq=1), ColReader("text")),
    }
    blocks, getters = zip(*(known[name] for name in inputs))
    return DataBlock(
        [*blocks, CategoryBlock, RegressionBlock, RegressionBlock],
        n_inp=len(inputs),
        getters=[*getters, *map(ColReader, ("mood", "size", "age"))],
        splitter=RandomSplitter(0.2, seed=0),
    ).dataloaders(frame, bs=BATCH, num_workers=0)


def by_hand(
    learn: MultiHeadLearner,  # its modules are copied
    batch: tuple,  # from its data
    features: Callable[[nn.Module, tuple], Tensor],  # of the body and the inputs: what every head's layers read
) -> Step:
    "Make one step on the sum of the losses, as one writes it in PyTorch."
    model = copy.deepcopy(learn.model).train()
    opt = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=WD, fused=True)
    xs, (mood, *numbers) = batch[: learn.dls.n_inp], [y.as_subclass(Tensor) for y in batch[learn.dls.n_inp :]]
    xs = tuple(x.as_subclass(Tensor) if isinstance(x, Tensor) else x for x in xs)
    heads = [model[1][name].layers for name in learn.heads]

    def step() -> None:
        vector = features(model.body, xs)
        first, *others = (layers(vector) for layers in heads)
        loss = F.cross_entropy(first, mood)
        for pred, number in zip(others, numbers, strict=True):
            loss = loss + F.mse_loss(pred.view(-1), number)
        loss.backward()
        opt.step()
        opt.zero_grad()

    return step


POOL = AdaptiveConcatPool2d()


def of_three(bodies: nn.Module, xs: tuple) -> Tensor:
    "Call an image's, a row's and a text's body one by one."
    photo, row, note = (bodies[name](x)["features"] for name, x in zip(bodies.names, xs, strict=True))
    return torch.cat([POOL(photo).flatten(1), row, note], 1)


def of_pair(bodies: nn.Module, xs: tuple) -> Tensor:
    "Call the shared body once, on both images of every item."
    photo, other = bodies["photo"](torch.cat(xs))["features"].chunk(2)
    return torch.cat([POOL(photo).flatten(1), POOL(other).flatten(1)], 1)


def main() -> None:
    "Print the ratios of the steps."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    three = {"photo": "resnet18", "row": TabularBody(layers=[200, 100]), "note": TEXT}
    pair = {"photo": On("photo", "resnet18"), "other": On("other", same="photo")}
    print(f"resnet18 {SIDE} px, AWD_LSTM of 40 words, TabularBody, batches of {BATCH}, three heads, fused AdamW")
    for name, arch, features in (("three bodies", three, of_three), ("two images, one body", pair, of_pair)):
        inputs = ("photo", "row", "note") if arch is three else ("photo", "other")
        with tempfile.TemporaryDirectory() as folder:
            dls = loaders(folder, inputs)
            batch = dls.train.one_batch()
            set_seed(0)
            learn = multihead_learner(dls, arch, pretrained=False, opt_func=FUSED, wd=WD, fused=False)
        found, unit = ratio(learner_step(learn, batch), by_hand(learn, batch, features), ROUNDS)
        print(f"{name:22} {found:.3f} of the loop by hand ({unit * 1000:.0f} ms)", flush=True)


if __name__ == "__main__":
    main()
