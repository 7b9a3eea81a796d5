"""One of each that CONTRIBUTING.md has a row for, in a package of its own."""

import textwrap
from importlib import import_module

import pytest
import torch
from fastai.data.block import DataBlock
from fastai.data.transforms import IndexSplitter
from fastai.vision.data import ImageBlock

from fastai_heads.archs import registry
from fastai_heads.archs.proof.checks import check_arch
from fastai_heads.bodies.image import ImageBody
from fastai_heads.errors import HeadsError
from fastai_heads.learner.factory import multihead_learner

FILES = {
    "archs/rows.py": """
        import torch
        from torch import nn
        from fastai_heads.archs.family import Family
        from fastai_heads.archs.registry import register_arch
        from fastai_heads.archs.steps import flatten, step

        class Small(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.pool = nn.Conv2d(3, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1)
                self.fc = nn.Linear(8, 10)

            def forward(self, x):
                return self.fc(torch.flatten(self.pool(torch.relu(self.stem(x))), 1))

        def last_relu(net, x):
            return torch.relu(x)

        SMALL = Family(
            name="small", module=Small, classifier=("fc",), late="stem",
            steps=(step("stem", "stem"), step(last_relu, "features"), step("pool"), step(flatten, "pre_logits")),
        )
        register_arch("own_small", Small, SMALL)
        """,
    "archs/smallest.py": """
        SMALLEST = {"small": "own_small"}
        """,
    "data/angle.py": """
        import torch
        from fastai.data.block import TransformBlock
        from fasttransform import Transform
        from fastai_heads.data.kinds import TellsKind

        class MakeAngle(TellsKind, Transform):
            def target_kind(self):
                return "angle", 2, None

            def encodes(self, o: float):
                return torch.tensor(o)

        def AngleBlock():
            return TransformBlock(type_tfms=[MakeAngle()])
        """,
    "tasks/angle.py": """
        import torch
        from fastai_heads.tasks.task import Task

        def turned(pred, targ, reduction="mean"):
            each = 1 - (torch.atan2(pred[:, 0], pred[:, 1]) - targ).cos()
            return each.mean() if reduction == "mean" else each

        class AngleTask(Task):
            def default_loss(self):
                return turned

            def decode(self, pred):
                return torch.atan2(pred[:, 0], pred[:, 1])
        """,
    "heads/angle.py": """
        from dataclasses import dataclass
        from fastai_heads.heads.pooled import PooledSpec
        from own_heads.tasks.angle import AngleTask

        @dataclass(frozen=True, kw_only=True)
        class AngleHead(PooledSpec):
            kinds = frozenset({"angle"})
            predicts = AngleTask
        """,
    "heads/__init__.py": """
        from own_heads.heads.angle import AngleHead
        """,
    "data/signal.py": """
        import torch
        from dataclasses import dataclass
        from fastai.data.block import TransformBlock
        from fasttransform import Transform
        from fastai_heads.data.inputs import Input, TellsInput

        @dataclass(frozen=True)
        class SignalInput(Input):
            n_in: int = 1
            kind, a, arch = "signal", "a signal", "SignalBody()"

        class MakeSignal(TellsInput, Transform):
            def tell_input(self):
                return SignalInput, {"n_in": 2}

            def encodes(self, o: list):
                return torch.tensor(o)

        def SignalBlock():
            return TransformBlock(type_tfms=[MakeSignal()])
        """,
    "bodies/signal.py": """
        from dataclasses import dataclass
        from functools import partial
        from torch import nn
        from fastai_heads.archs.records import TapPoint
        from fastai_heads.bodies.contract import Body, BodySpec, Found, split_in_two
        from fastai_heads.errors import HeadsError
        from own_heads.data.signal import SignalInput

        @dataclass(frozen=True)
        class SignalBody(BodySpec):
            width: int = 6

            def find(self, source):
                if not isinstance(source, SignalInput):
                    raise HeadsError(f"`arch`: SignalBody reads a signal, and input {source.name!r} is {source.a}.")
                points = (TapPoint("features", "net", self.width),)
                return Found(points, partial(SignalNet, self.width, source.n_in, points))

        class SignalNet(Body):
            arch, input_names = "SignalBody", ("signal",)

            def __init__(self, width, n_in, points, taps):
                super().__init__()
                self.points = points
                self.net = nn.Sequential(nn.Conv1d(n_in, width, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
                self.use_taps(taps)

            def forward(self, x):
                return self.through_taps({"features": self.net(x)})

            def groups(self):
                return split_in_two(list(self.net))

            def check_inputs(self, inputs):
                if inputs[0].ndim != 3:
                    raise HeadsError(f"SignalBody takes signals (B, C, L), found {tuple(inputs[0].shape)}.")
        """,
    "strategies/largest.py": """
        import torch
        from fastai_heads.training.strategies.base import Strategy

        class Largest(Strategy):
            label, weights = "the largest loss", {}

            def objective(self, learn):
                losses = self.losses(learn)
                name = max(losses, key=lambda name: losses[name].item())
                self.weights = {name: 1.0}
                return losses[name]
        """,
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    "Write the package and make it importable. The registry is afterwards as it was before."
    monkeypatch.setattr(registry, "_ARCHS", dict(registry._ARCHS))
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    for name, text in FILES.items():
        file = tmp_path / "own_heads" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name: import_module(f"own_heads.{name}")


def make_dls(own, lengths=(9,)):
    blocks = (ImageBlock, own("data.signal").SignalBlock, own("data.angle").AngleBlock)
    getters = [
        lambda i: torch.full((32, 32, 3), 20 * i, dtype=torch.uint8).numpy(),
        lambda i: [[float(i)] * lengths[i % len(lengths)]] * 2,
        lambda i: i / 2,
    ]
    block = DataBlock(blocks=blocks, getters=getters, n_inp=2, splitter=IndexSplitter([0, 1, 2, 3]))
    return block.dataloaders(range(12), bs=4, num_workers=0)


def test_one_of_each_in_one_learner(own):
    own("archs.rows")
    smallest = own("archs.smallest").SMALLEST["small"]
    assert set(check_arch(smallest, ImageBody).results.values()) == {"ok"}
    signal, heads, largest = own("bodies.signal"), own("heads"), own("strategies.largest").Largest()
    learn = multihead_learner(
        make_dls(own),
        {"image": "own_small", "signal": signal.SignalBody()},
        {"angle": heads.AngleHead()},
        strategy=largest,
        pretrained=False,
    )
    assert {part.arch for part in learn.model.body.bodies.values()} == {"own_small", "SignalBody"}
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
    assert learn.strategy.weights == {"angle": 1.0}
    preds, targs, decoded = learn.get_preds(with_decoded=True)
    torch.testing.assert_close(decoded.angle, torch.atan2(preds.angle[:, 0], preds.angle[:, 1]))
    assert torch.equal(targs.angle, torch.tensor([0.0, 0.5, 1.0, 1.5]))


def test_what_does_not_fit_is_refused_in_the_words_of_the_new_kinds(own):
    archs = {"image": "test_resnet", "signal": "test_resnet"}
    with pytest.raises(HeadsError, match=r"input 'signal' is a signal, which .* does not read. Say SignalBody\(\)"):
        multihead_learner(make_dls(own), archs, {"angle": own("heads").AngleHead()}, pretrained=False)
    with pytest.raises(HeadsError, match=r"`arch=\{'image': 'resnet18', 'signal': SignalBody\(\)\}`"):
        multihead_learner(make_dls(own), "test_resnet", {"angle": own("heads").AngleHead()}, pretrained=False)
    with pytest.raises(HeadsError, match=r"input 'signal' has two shapes in one batch, \(2, 9\) and \(2, 8\)"):
        multihead_learner(make_dls(own, (9, 8)), archs, {"angle": own("heads").AngleHead()}, pretrained=False)
