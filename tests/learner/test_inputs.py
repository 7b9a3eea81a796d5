"""A learner over texts and over several inputs: all of its calls, taps of several bodies, missing inputs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fastai.learner import load_learner
from fastai.text.models.awdlstm import AWD_LSTM
from torch import nn

from fastai_heads.bodies.points import cut_points
from fastai_heads.bodies.table import TabularBody
from fastai_heads.bodies.text import TextBody
from fastai_heads.bodies.together import On
from fastai_heads.data.partial import PartialBlock
from fastai_heads.errors import HeadsError
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.trunks import Trunk
from fastai_heads.view.interpret import HeadsInterpretation

from .inputs import INPUTS, N_VALID, ROW, TEXT, Pixels, archs, frame, gappy, loaders, make_learner


@pytest.fixture(scope="module", params=["note", "photo row note"])
def learn(request, folder, tmp_path_factory):
    "A trained learner of a text, and one of three inputs."
    inputs = request.param.split()
    made = make_learner(loaders(folder, inputs), TEXT if inputs == ["note"] else archs(), epochs=1)
    made.path = tmp_path_factory.mktemp("learner")
    return made


# all of the learner


def test_an_item_is_predicted_as_its_row_of_all(learn):
    preds, table = learn.get_preds()[0], frame()
    for i in range(N_VALID):
        for item in (table.iloc[i], table[INPUTS].to_dict("records")[i]):
            values, _, activated = learn.predict(item)
            assert torch.allclose(activated.mood, preds.mood[i], atol=1e-6)
            assert values.mood == "pq"[preds.mood[i].argmax()]


def test_many_predictions_are_each_of_them(learn):
    rows = frame()[INPUTS].iloc[:N_VALID]
    for items in (rows, rows.to_dict("records"), [row for _, row in rows.iterrows()]):
        for found, (_, row) in zip(learn.predict_many(items, bs=3), rows.iterrows(), strict=True):
            one = learn.predict(row)
            assert found[0].mood == one[0].mood and found[0].n == pytest.approx(one[0].n, abs=1e-5)
            assert torch.allclose(found[2].mood, one[2].mood, atol=1e-6)


def test_rows_without_labels_are_predicted_in_any_form(learn):
    rows = frame()[INPUTS].iloc[:N_VALID]
    want = learn.get_preds()[0]
    for items in (rows, rows.to_dict("records"), [row for _, row in rows.iterrows()]):
        found = learn.get_preds(dl=learn.dls.test_dl(items))
        assert torch.allclose(found[0].n, want.n, atol=1e-5) and found[1] is None


def test_rows_with_labels_are_measured(learn):
    dl = learn.dls.test_dl(frame().iloc[:N_VALID], with_labels=True)
    assert list(learn.validate(dl=dl)) == pytest.approx(list(learn.validate()), rel=1e-5)


def test_it_is_shown(learn):
    drawn = [learn.show_batch(max_n=2), learn.show_results(max_n=2)]
    drawn += [HeadsInterpretation.from_learner(learn).plot_top_losses(2), learn.head("mood").show_results(max_n=2)]
    for figure in drawn:
        texts = [t.get_text() for ax in figure.axes for t in ax.texts]
        assert any("xxbos" in t for t in texts) and any(t.startswith("mood") for t in texts)
        if learn.dls.n_inp == 3:
            cells = [c.get_text().get_text() for ax in figure.axes for t in ax.tables for c in t.get_celld().values()]
            assert "kind" in cells and {"photo", "row"} <= {ax.get_title(loc="left") for ax in figure.axes}
            assert any(t.startswith("note: ") for t in texts) and any(ax.images for ax in figure.axes)
    assert "AWD_LSTM" in str(learn.summary()) and learn.show_heads().axes


def test_one_head_is_a_learner_of_its_own(learn):
    view, item = learn.head("mood"), frame()[INPUTS].iloc[0]
    with view.no_bar():
        assert view.validate()[0] == pytest.approx(learn.validate()[1])
        assert view.predict(item)[0] == learn.predict(item)[0].mood


def test_weights_are_saved_and_loaded(learn):
    before = learn.get_preds()[0].n
    learn.save("kept")
    for p in learn.model.parameters():
        p.data.add_(1)
    learn.load("kept")
    assert torch.equal(before, learn.get_preds()[0].n)


def test_an_exported_learner_predicts_in_another_process(learn):
    learn.export("learn.pkl")
    item = frame()[INPUTS].to_dict("records")[1]
    again = load_learner(learn.path / "learn.pkl")
    assert torch.equal(again.predict(item)[2].mood, learn.predict(item)[2].mood)
    if learn.dls.n_inp > 1:  # its body is this file's own
        return
    code = (
        f"import sys; from fastai.learner import load_learner; print(load_learner(sys.argv[1]).predict({item!r})[0].n)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(Path(learn.path, "learn.pkl"))]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(said.split()[-1]) == pytest.approx(float(learn.predict(item)[0].n), rel=1e-4)


def test_test_time_augmentation_runs(learn):
    assert learn.tta(n=2)[0].mood.shape == (N_VALID, 2)


def test_a_head_is_added(folder):
    learn = make_learner(loaders(folder, ["row", "note"]), {"row": ROW, "note": TEXT})
    learn.add_head("aux", ClassificationHead(train_only=True), target="mood")
    assert learn.model[1].reads["aux"] == ("row.features", "note.features")


# taps of several bodies


@pytest.mark.parametrize(
    ("tap", "reads"),
    [
        ("features", ("photo.features", "row.features", "note.features")),
        ("row.features", ("row.features",)),
        (("photo.stem", "note.features"), ("photo.stem", "note.features")),
        ("row.embeddings", ("row.embeddings",)),
        (("stem", "embeddings"), ("photo.stem", "row.embeddings")),
    ],
)
def test_a_head_reads_what_it_names(folder, tap, reads):
    heads = {"mood": ClassificationHead(tap=tap), "n": RegressionHead()}
    learn = make_learner(loaders(folder), archs(), heads)
    assert learn.model[1].reads["mood"] == reads
    x = learn.dls.one_batch()[:3]
    taps = learn.model[0].eval()(*x)
    head = learn.model[1]["mood"].eval()
    pooled = [torch.cat([t.amax((2, 3)), t.mean((2, 3))], 1) if t.ndim == 4 else t for t in map(taps.get, reads)]
    assert torch.allclose(head.layers(torch.cat(pooled, 1)), learn.model.eval()(*x)[0], atol=1e-5)


class Gate(nn.Module):
    "A sum of two taps, made as wide."

    def __init__(self, channels):
        super().__init__()
        self.one, self.two = (nn.Linear(c, 3) for c in channels)

    def forward(self, taps):
        one, two = taps.values()
        return self.one(one) + self.two(two)


def test_a_view_of_one_head_computes_what_that_head_reads(folder):
    heads = {"n": RegressionHead(tap="row.features"), "mood": ClassificationHead(tap=("photo.layer", "note.features"))}
    learn = make_learner(loaders(folder), archs(), heads)
    ran, bodies = [], learn.model[0]
    for name in bodies.names:
        bodies[name].register_forward_hook(lambda *_, name=name: ran.append(name))
    want = learn.get_preds()[0]
    for name, read in (("n", {"row"}), ("mood", {"photo", "note"})):
        ran.clear()
        with learn.head(name).no_bar():
            found = learn.head(name).get_preds()[0]
        assert set(ran) == read
        assert torch.allclose(found.squeeze(), want[name].squeeze(), atol=1e-6)


def test_a_trunk_joins_bodies(folder):
    trunk = {"both": Trunk(Gate, tap=("row.features", "note.features"))}
    heads = {"mood": ClassificationHead(tap="both"), "n": RegressionHead(tap="both")}
    learn = make_learner(loaders(folder, ["row", "note"]), {"row": ROW, "note": TEXT}, heads, trunk=trunk, epochs=1)
    assert learn.model[1].trunk_reads["both"] == ("row.features", "note.features")


def test_taps_of_several_bodies_are_listed(folder):
    dls = loaders(folder)
    points = cut_points(archs(photo="resnet10t"), dls=dls)
    assert {n: [p.name for p in found.taps][-1] for n, found in points.bodies.items()} == {
        "photo": "pre_logits", "row": "features", "note": "features",
    }  # fmt: skip
    assert points["photo"].removed and "photo: resnet10t" in str(points) and "<h4>row</h4>" in points._repr_html_()
    with pytest.raises(HeadsError, match="has no body"):
        cut_points({"photo": "resnet10t"}, dls=dls)
    with pytest.raises(HeadsError, match="several bodies depend on the data"):
        cut_points(archs())


def test_two_bodies_read_one_image(folder):
    arch = {"small": On("photo", Pixels()), "large": On("photo", Pixels())}
    learn = make_learner(loaders(folder, ["photo"]), arch, epochs=1)
    assert learn.model[0].taps == ("small.features", "large.features")


def test_two_images_share_a_body(folder):
    arch = {"photo": On("photo", Pixels()), "other": On("other", same="photo")}
    learn = make_learner(loaders(folder, ["photo", "other"]), arch, epochs=1)
    item = frame()[["photo", "other"]].iloc[0]
    assert torch.allclose(learn.predict(item)[2].mood, learn.get_preds()[0].mood[0], atol=1e-6)


def test_an_image_and_one_number(folder):
    learn = make_learner(loaders(folder, ["photo", "number"]), {"photo": Pixels(), "row": TabularBody(layers=[3])})
    one, other = (learn.predict({"photo": "1.png", "u": u})[2].n for u in (0.0, 5.0))
    assert not torch.equal(one, other)


def test_users_loaders_make_a_second_learner(folder):
    dls = loaders(folder)
    found = [make_learner(dls, archs()).get_preds()[0].mood.shape for _ in range(2)]
    assert found == [(N_VALID, 2)] * 2


# what is frozen


def test_freeze_holds_what_is_pretrained(folder, tmp_path):
    dls = loaders(folder, ["row", "note"])
    start = make_learner(dls, {"row": ROW, "note": TEXT})
    torch.save(start.model[0]["note"].net.state_dict(), tmp_path / "encoder.pth")
    text = TextBody(AWD_LSTM, config=TEXT.config, weights=tmp_path / "encoder.pth")
    learn = make_learner(dls, {"row": ROW, "note": text})
    body = learn.model[0]
    before = {name: [p.clone() for p in body[name].parameters()] for name in body.names}
    with learn.no_logging():
        learn.fit(1, 1e-2)
    said = str(learn.summary())
    assert "note: AWD_LSTM (encoder.pth) on note, a text; " in said and "on row, a row of a table; " in said
    states = {line.split()[1]: line.split()[-1] for line in said.splitlines() if line.startswith("Body:")}
    assert states == {"row:": "trained", "note:": "frozen"}
    same = {n: all(map(torch.equal, before[n], body[n].parameters())) for n in body.names}
    assert same == {"row": False, "note": True}
    learn.unfreeze()
    assert all(p.requires_grad for p in body.parameters())


# a missing input


@pytest.fixture(scope="module")
def partial_learn(folder):
    return make_learner(loaders(folder, table=gappy(), wrap=PartialBlock), archs(), epochs=1)


def test_missing_inputs_are_learned_vectors(partial_learn):
    preds = partial_learn.get_preds()[0]
    assert not preds.mood.isnan().any() and len(partial_learn.model[0].missing) == 3
    assert all(v.abs().sum() > 0 for v in partial_learn.model[0].missing.values()), "they are learned"
    for i, item in enumerate(gappy()[INPUTS].to_dict("records")[:N_VALID]):
        assert torch.allclose(partial_learn.predict(item)[2].mood, preds.mood[i], atol=1e-6)
    assert partial_learn.show_batch(max_n=4) and partial_learn.show_results(max_n=4)


def test_an_item_without_any_input_is_refused_by_row(folder, partial_learn):
    table = gappy()
    table.loc[5, INPUTS] = None
    with pytest.raises(HeadsError, match=r"row 5 .* of the validation set has none of its inputs \(1 in all\)"):
        make_learner(loaders(folder, table=table, wrap=PartialBlock), archs())
    with pytest.raises(HeadsError, match="row 0 of the items has none of its inputs"):
        partial_learn.predict(dict.fromkeys(INPUTS))
