"""Which tap a head should read: probes of every tap, `tap='auto'`, and the start that a probe gives."""

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from fastai.data.block import DataBlock, RegressionBlock
from fastai.tabular.core import Normalize
from fastai.tabular.data import TabularDataLoaders
from fastai.torch_core import set_seed
from fastai.vision.data import ImageBlock
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge as TheirRidge
from torch import nn

from fastai_heads.bodies.table import TabularBody
from fastai_heads.data.digits import digits_dls
from fastai_heads.errors import HeadsError
from fastai_heads.heads import ClassificationHead, CustomHead, MultiLabelHead, RegressionHead
from fastai_heads.learner import multihead_learner
from fastai_heads.learner.taps import probe_taps
from fastai_heads.probe.report import TapReport
from fastai_heads.probe.ridge import STRENGTHS, Ridge

from .inputs import ROW, TEXT, Pixels, loaders


class Scramble(nn.Module):
    "Leaves nothing that a linear probe can read."

    def forward(self, x):
        return torch.sin(1e4 * x)


class Forgetful(nn.Module):
    "Its first layer sees the image, and its last one gives nothing of it on."

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.LeakyReLU())
        self.last = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), Scramble())
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(self.last(self.first(x)).mean((2, 3)))


def lights(n: int = 60, wrong: Sequence[int] = ()):
    "Images of noise, a number that is how light each is, and one that is nothing of it; some images are black."
    rng = np.random.default_rng(0)
    light, other = rng.uniform(60, 190, n), rng.normal(size=n)

    def image(i):
        noise = np.random.default_rng(i).normal(0, 20, (48, 48, 3))
        return np.clip((i not in wrong) * light[i] + noise, 0, 255).astype(np.uint8)

    return DataBlock(
        (ImageBlock, RegressionBlock, RegressionBlock),
        n_inp=1,
        get_items=lambda _: list(range(n)),
        get_x=image,
        get_y=[lambda i: float(light[i]), lambda i: float(other[i])],
        splitter=lambda items: (items[: n * 4 // 5], items[n * 4 // 5 :]),
    ).dataloaders(None, bs=16, num_workers=0)


HEADS = {"light": RegressionHead(target=0, pool="avg"), "noise": RegressionHead(target=1, pool="avg")}


def auto(**fields):
    return {**HEADS, "light": RegressionHead(target=0, pool="avg", **fields)}


@pytest.fixture(scope="module")
def report() -> TapReport:
    set_seed(0)
    return probe_taps(lights(), Forgetful(), heads=HEADS)


def test_the_tap_that_knows_the_answer_is_chosen(report):
    assert report.taps["light"] == "first" and report.heads["light"].best == "first"
    scores = report.heads["light"].scores
    assert scores["first"].mean < 0.2 * scores["features"].mean
    assert "light reads 'first': mae" in str(report) and "<table>" in report._repr_html_()
    assert report.n == 48 and len(scores["first"].folds) == 5


def test_where_nothing_is_surely_better_the_usual_tap_stays(report):
    assert report.taps["noise"] == "features"


def test_a_score_is_that_of_scikit_learns_ridge_on_the_same_folds(report):
    "By hand: the strength by leave-one-out on all items, then the metric of each fold from a ridge without it."
    set_seed(0)
    dls, net = lights(), Forgetful()
    body = multihead_learner(dls, net, {"light": auto(tap="first")["light"], "regression_2": None}).model.body.eval()
    rows = list(range(len(dls.train_ds)))
    x = dls.train.new(shuffle=False, drop_last=False, bs=48).one_batch()
    with torch.no_grad():
        features = body(x[0].as_subclass(torch.Tensor))["first"].mean((2, 3)).double()
    y = x[1].double().numpy()
    z = ((features - features.mean(0)) / features.std(0, correction=0) / features.shape[1] ** 0.5).numpy()

    def left_out(i, strength):
        fitted = TheirRidge(alpha=strength).fit(np.delete(z, i, 0), np.delete(y, i))
        return (y[i] - fitted.predict(z[i : i + 1])[0]) ** 2

    loo = [sum(left_out(i, strength) for i in rows) for strength in STRENGTHS.tolist()]
    strength = STRENGTHS[int(np.argmin(loo))].item()
    folds = (torch.randperm(48, generator=torch.Generator().manual_seed(0)) % 5).numpy()
    wanted = []
    for fold in range(5):
        out = folds == fold
        said = TheirRidge(alpha=strength).fit(z[~out], y[~out]).predict(z[out])
        wanted.append(np.abs(said - y[out]).mean())
    assert report.heads["light"].scores["first"].folds == pytest.approx(wanted, rel=1e-4)


def test_nothing_of_the_data_or_the_network_changes():
    dls, net = lights(), Forgetful()
    before, transforms = copy.deepcopy(net.state_dict()), list(dls.train.after_batch.fs)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    probe_taps(dls, net, heads=HEADS)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert list(dls.train.after_batch.fs) == transforms and net.training


def test_validation_images_say_nothing(report):
    set_seed(0)
    other = probe_taps(lights(wrong=range(48, 60)), Forgetful(), heads=HEADS)
    assert {n: h.scores for n, h in other.heads.items()} == {n: h.scores for n, h in report.heads.items()}


def test_auto_reads_what_probes_choose_and_the_summary_says_why():
    set_seed(0)
    learn = multihead_learner(lights(), Forgetful(), auto(tap="auto"))
    assert learn.heads.light.spec.tap == "first" and learn.heads.noise.spec.tap == "features"
    assert "light reads 'first': mae" in str(learn.summary()) and set(learn.tap_report.heads) == {"light"}
    set_seed(0)
    both = multihead_learner(lights(), Forgetful(), HEADS, taps="auto")
    assert [head.spec.tap for head in both.heads.values()] == ["first", "features"]
    named = multihead_learner(lights(), Forgetful(), auto(tap="last"), taps="auto")
    assert named.heads.light.spec.tap == "last", "what is named is kept"


def test_every_kind_of_target_is_probed_and_missing_labels_are_left_out(tmp_path):
    targets = ("digit", "tags", "ink", "centre", "box", "mask")
    dls = digits_dls(targets, n=80, size=32, bs=16, path=tmp_path / "s", missing=0.3)
    found = probe_taps(dls, "test_resnet", taps=["layer1", "features"], pretrained=False)
    assert set(found.heads) == set(targets) and not found.left_out
    for head in found.heads.values():
        assert set(head.scores) >= {"layer1", "features"} - ({"features"} if head.name == "mask" else set())
        assert all(np.isfinite(score.mean) for score in head.scores.values()), head.name
    axes = found.plot().axes
    assert [ax.get_title() for ax in axes] == list(found.heads)


def test_several_bodies_are_probed_together(folder):
    dls = loaders(folder, table=None)
    found = probe_taps(dls, {"photo": Pixels(), "row": ROW, "note": TEXT}, pretrained=False)
    assert {"photo.stem", "row.features", "note.features"} <= set(found.heads["mood"].scores)
    with pytest.raises(HeadsError, match=r"chooses among the taps of one body.*probe_taps"):
        multihead_learner(dls, {"photo": Pixels(), "row": ROW, "note": TEXT}, taps="auto", pretrained=False)


@pytest.mark.parametrize("kind", ["number", "class", "tags"])
def test_a_head_that_starts_from_a_probe_answers_as_the_probe(kind, tmp_path):
    linear = {"lin_ftrs": [], "ps": 0.0, "from_probe": True}
    name, head = {
        "number": ("ink", RegressionHead(**linear)),
        "class": ("digit", ClassificationHead(**linear)),
        "tags": ("tags", MultiLabelHead(**linear)),
    }[kind]
    dls = digits_dls((name,), n=120, size=32, bs=16, path=tmp_path / "s")
    set_seed(0)
    learn = multihead_learner(dls, "test_resnet", {name: head}, pretrained=False)
    plain = multihead_learner(dls, "test_resnet", {name: type(head)(lin_ftrs=[], ps=0.0)}, pretrained=False)
    with learn.no_bar(), plain.no_bar():
        ours, theirs = learn.validate(ds_idx=0), plain.validate(ds_idx=0)
    assert ours[0] < theirs[0], "the loss of the training set begins below that of a plain start"


def test_a_number_from_a_probe_is_the_ridges_prediction():
    set_seed(0)
    spec = {
        "light": RegressionHead(target=0, tap="first", pool="avg", lin_ftrs=[], ps=0.0, from_probe=True),
        "regression_2": None,
    }
    learn = multihead_learner(lights(), Forgetful(), spec)
    dls = learn.dls
    batch = dls.train.new(shuffle=False, drop_last=False, bs=48).one_batch()
    model = learn.model.eval()
    with torch.no_grad():
        said = model(batch[0].as_subclass(torch.Tensor))[0].view(-1)
        features = model.body(batch[0].as_subclass(torch.Tensor))["first"].mean((2, 3)).double()
    y = batch[1].as_subclass(torch.Tensor).double().view(-1, 1)
    unit = (y - y.mean()) / y.std(correction=0)
    fitted = Ridge([features]).fit(unit, True)
    wanted = (features @ fitted.weights[0] + fitted.bias) * y.std(correction=0) + y.mean()
    torch.testing.assert_close(said.double(), wanted.view(-1), rtol=1e-3, atol=0.05)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda d: probe_taps(d, Forgetful(), taps=["frist"]), "'frist'.*Taps of Forgetful: .*first"),
        (lambda d: probe_taps(d, Forgetful(), n=3), "`n` is a whole number of at least 10, found 3"),
        (lambda d: probe_taps(d, Forgetful(), n="all"), "`n` is a whole number"),
        (lambda d: probe_taps(d, "resnet18x", pretrained=False), "resnet18x"),
        (lambda d: multihead_learner(d, Forgetful(), taps="first"), "`taps` is None or 'auto'"),
        (lambda d: multihead_learner(d, Forgetful(), auto(from_probe=True)), "`from_probe`.*`lin_ftrs=\\[\\]`"),
        (lambda d: multihead_learner(d, Forgetful(), auto(from_probe="yes")), "`from_probe`.*True or False"),
        (
            lambda d: multihead_learner(d, Forgetful(), {"light": CustomHead(nn.Flatten(), target=0, tap="auto")}),
            "`tap='auto'` is for pooled heads",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, said):
    with pytest.raises(HeadsError, match=said):
        call(lights())


def test_a_table_is_probed_too():
    frame = load_diabetes(as_frame=True).frame[:120]
    dls = TabularDataLoaders.from_df(
        frame, procs=[Normalize], cont_names=list(frame.columns[:10]), y_names="target", valid_idx=list(range(20))
    )
    found = probe_taps(dls, TabularBody(layers=[8, 4]))
    assert set(found.heads["target"].scores) >= {"embeddings", "layer1", "features"}
