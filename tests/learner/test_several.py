"""Several inputs in a learner: freezing and rates, missing inputs, fusions, an encoder that was trained before."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fastai.learner import load_learner
from fastai.text.data import TextDataLoaders
from fastai.text.learner import language_model_learner
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_lm_config
from fastai.vision.core import PILImage

from fastai_heads.bodies.points import cut_points
from fastai_heads.bodies.table import TabularBody
from fastai_heads.bodies.text import TextBody
from fastai_heads.bodies.together import On
from fastai_heads.data.inputs import dls_inputs
from fastai_heads.data.partial import PartialBlock
from fastai_heads.heads.classification import ClassificationHead
from fastai_heads.heads.regression import RegressionHead
from fastai_heads.trunks import Trunk
from fastai_heads.view.interpret import HeadsInterpretation

from ..bodies.test_several import CrossAttention, GatedSum
from .inputs import INPUTS, N_VALID, ROW, TEXT, Pixels, archs, frame, gappy, loaders, make_learner

RESNET = "test_resnet"
KINDS = {
    "two images": (("photo", "other"), lambda: {"photo": Pixels(), "other": Pixels()}),
    "two images, one body": (("photo", "other"), lambda: {"photo": Pixels(), "other": On("other", same="photo")}),
    "two bodies, one image": (("photo",), lambda: {"a": On("photo", Pixels()), "b": On("photo", Pixels())}),
    "an image and a number": (("photo", "number"), lambda: {"photo": Pixels(), "row": TabularBody(layers=[3])}),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, folder, tmp_path_factory):
    "A trained learner, and the columns that its inputs are read from."
    inputs, make = KINDS[request.param]
    learn = make_learner(loaders(folder, inputs), make(), epochs=1)
    learn.path = tmp_path_factory.mktemp("learner")
    return learn, [{"number": "u"}.get(name, name) for name in inputs]


def part_by_part(learn, row):
    "An item as a tuple of its inputs; a row of a table is a dict."
    return tuple({"u": row["u"]} if source.kind == "row" else row[source.name] for source in dls_inputs(learn.dls))


def test_an_item_is_predicted_as_its_row_of_all(kind):
    learn, columns = kind
    preds, rows = learn.get_preds()[0], frame()[columns]
    for i in (0, N_VALID - 1):
        for item in (rows.iloc[i], rows.to_dict("records")[i]):
            assert torch.allclose(learn.predict(item)[2].mood, preds.mood[i], atol=1e-6)
    tuples = [part_by_part(learn, row) for row in rows[:N_VALID].to_dict("records")]
    if learn.dls.n_inp > 1:
        assert torch.equal(learn.predict(tuples[0])[2].mood, learn.predict(rows.iloc[0])[2].mood)
    for items in (rows[:N_VALID], rows[:N_VALID].to_dict("records"), *([tuples] if learn.dls.n_inp > 1 else [])):
        found = learn.get_preds(dl=learn.dls.test_dl(items))
        assert torch.allclose(found[0].n, preds.n, atol=1e-5) and found[1] is None


def test_everything_of_a_learner_works(kind):
    learn, columns = kind
    figures = [learn.show_batch(max_n=2), learn.show_results(max_n=2)]
    figures.append(HeadsInterpretation.from_learner(learn).plot_top_losses(2))
    assert all(figure.axes for figure in figures)
    assert learn.tta(n=1)[0].mood.shape == (N_VALID, 2)
    assert len(learn.validate()) == 5 and "mood" in str(learn.summary()) and learn.show_heads().axes
    view = learn.head("mood")
    with view.no_bar():
        assert torch.allclose(view.get_preds()[0], learn.get_preds()[0].mood, atol=1e-6)
    before = learn.get_preds()[0].n
    learn.save("kept")
    with torch.no_grad():
        for p in learn.model.parameters():
            p.add_(1)
    learn.load("kept")
    assert torch.equal(before, learn.get_preds()[0].n)
    learn.export("learn.pkl")
    again = load_learner(learn.path / "learn.pkl")
    item = frame()[columns].to_dict("records")[1]
    assert torch.equal(again.predict(item)[2].mood, learn.predict(item)[2].mood)


ELSEWHERE = """
import sys
from fastai.learner import load_learner
for file, item in zip(sys.argv[1::2], sys.argv[2::2]):
    print(float(load_learner(file).predict(eval(item))[0].n))
"""


def test_exported_learners_predict_in_another_process(folder, tmp_path):
    args, wanted = [], []
    for i, (inputs, make) in enumerate(KINDS.values()):
        arch = {k: RESNET if isinstance(a, Pixels) else a for k, a in make().items()}
        arch = {k: On(a.input, RESNET) if isinstance(a, On) and a.arch else a for k, a in arch.items()}
        learn = make_learner(loaders(folder, inputs), arch, pretrained=False)
        learn.path = tmp_path
        learn.export(f"{i}.pkl")
        item = frame()[[{"number": "u"}.get(name, name) for name in inputs]].to_dict("records")[2]
        args += [str(tmp_path / f"{i}.pkl"), repr(item)]
        wanted.append(float(learn.predict(item)[0].n))
    command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE, *args]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [float(line) for line in said.split()] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_a_head_is_added_and_taps_are_listed(folder, name):
    inputs, make = KINDS[name]
    learn = make_learner(loaders(folder, inputs), make())
    learn.add_head("aux", ClassificationHead(train_only=True), target="mood")
    assert learn.model.heads.reads["aux"] == learn.model.heads.reads["mood"]
    with learn.no_logging():
        learn.fit(1, 1e-3)
    names = [body for body, arch in make().items() if not (isinstance(arch, On) and arch.same)]
    assert set(names) <= set(cut_points(make(), dls=learn.dls).bodies)


def test_the_diagram_has_a_box_for_every_input_and_body(folder):
    arch = archs(other=On("other", same="photo"))
    heads = {"mood": ClassificationHead(tap=("photo.stem", "note.features", "other.features")),
             "n": RegressionHead(tap="row.features")}  # fmt: skip
    learn = make_learner(loaders(folder, ("photo", "other", "row", "note")), arch, heads)
    ax = learn.show_heads().axes[0]
    said = [t.get_text() for t in ax.texts if t.get_fontweight() == "bold"]
    assert said[:4] == ["photo", "other", "row", "note"]
    assert said[4:8] == ["photo: Pixels", "row: TabularBody", "note: AWD_LSTM", "other: the weights of photo"]
    arrows = [t for t in ax.texts if not t.get_text()]
    assert len(arrows) == 4 + 4 + 4 + 2 + 2, "to bodies, taps, heads, losses and the step"


# freezing and rates


def test_slice_rates_are_of_the_early_and_the_late_layers_of_all_bodies(folder):
    learn = make_learner(loaders(folder), {"photo": RESNET, "row": ROW, "note": TEXT}, pretrained=False)
    learn.create_opt()
    learn.opt.set_hypers(lr=[1e-4, 1e-3, 1e-2])
    rates = {id(p): h["lr"] for group, h in zip(learn.opt.param_lists, learn.opt.hypers) for p in group}
    named = dict(learn.model.named_parameters())
    found = {name: rates[id(p)] for name, p in named.items()}
    early, late = ({id(p) for p in group} for group in learn.model.body.groups())
    assert {rates[i] for i in early} == {1e-4} and {rates[i] for i in late} == {1e-3}
    assert {rate for name, rate in found.items() if name.startswith("1.")} == {1e-2}
    for body in ("photo", "row", "note"):
        of_body = {r for name, r in found.items() if name.startswith(f"0.bodies.body_{body}.")}
        assert of_body == {1e-4, 1e-3}, f"{body} has early and late layers"


def test_a_slice_reaches_them_in_a_fit(folder):
    learn = make_learner(loaders(folder, ["row", "note"]), {"row": ROW, "note": TEXT})
    learn.unfreeze()
    with learn.no_logging():
        learn.fit_one_cycle(1, slice(1e-4, 1e-2))
    assert [h["lr"] / learn.opt.hypers[-1]["lr"] for h in learn.opt.hypers] == pytest.approx([0.01, 0.1, 1])


def test_an_encoder_of_a_language_model_is_loaded_held_and_thawed(folder, tmp_path):
    dls = loaders(folder, ["row", "note"])
    lm_dls = TextDataLoaders.from_df(
        frame(), path=tmp_path, text_col="note", is_lm=True, bs=4, seq_len=5, text_vocab=dls.vocab[0], valid_pct=0.3
    )
    config = {**awd_lstm_lm_config, "emb_sz": 8, "n_hid": 12, "n_layers": 2}
    lm = language_model_learner(lm_dls, AWD_LSTM, config=config, pretrained=False, path=tmp_path)
    with lm.no_bar(), lm.no_logging():
        lm.fit(1, 1e-2)
    lm.save_encoder("encoder")
    text = TextBody(AWD_LSTM, config=TEXT.config, weights=tmp_path / "models" / "encoder.pth")
    learn = make_learner(dls, {"row": ROW, "note": text})
    encoder, theirs = learn.model.body["note"].net, lm.model[0].state_dict()

    def same():
        ours = encoder.state_dict()
        assert theirs.keys() & ours.keys()
        return all(torch.equal(ours[name], theirs[name]) for name in theirs.keys() & ours.keys())

    assert same() and "note: AWD_LSTM (encoder.pth)" in str(learn.summary())
    learn.freeze()
    with learn.no_logging():
        learn.fit(1, 1e-2)
        assert same()
        learn.unfreeze()
        learn.fit(1, 1e-2)
    assert not same()


# missing inputs


def test_of_a_missing_input_no_file_is_opened(folder, monkeypatch):
    opened, create = [], PILImage.create.__func__
    table = gappy()
    missing = set(table.index[table.photo.isna()])
    dls = loaders(folder, table=table, wrap=PartialBlock)
    monkeypatch.setattr(PILImage, "create", classmethod(lambda cls, fn, **k: opened.append(fn) or create(cls, fn, **k)))
    for dl in dls.loaders:
        for batch in dl.new(shuffle=False, drop_last=False):
            assert len(batch[0]) == len(batch[-1])
    names = {Path(str(f)).stem for f in opened}
    assert len(missing) == 2 and not names & set(map(str, missing))


def test_items_without_an_image_change_no_batch_norm_and_no_other_item(folder):
    "A fit on the items that have a photo, and one in which others stand between them: one body, the same statistics."
    table, heads = gappy(), {"mood": ClassificationHead(tap="photo.features"), "n": RegressionHead(tap="row.features")}
    dls = loaders(folder, ("photo", "row"), table, PartialBlock)
    learn = make_learner(dls, {"photo": Pixels(), "row": ROW}, heads)
    batch = next(iter(dls.valid.new(shuffle=False, bs=N_VALID)))
    here = ~batch[0].flatten(1).isnan().any(1)
    assert not here.all()
    body = learn.model.body["photo"].train()
    x = batch[0].as_subclass(torch.Tensor)
    start = {k: v.clone() for k, v in body.state_dict().items()}
    alone = body(x[here])["features"]
    alone_stats = {k: v.clone() for k, v in body.state_dict().items()}
    body.load_state_dict(start)
    learn.model.body.train()
    beside = learn.model.body(*batch[:2])["photo.features"]
    assert torch.allclose(beside[here], alone, atol=1e-6)
    assert all(torch.equal(v, alone_stats[k]) for k, v in body.state_dict().items())
    vector = learn.model.body.missing[next(k for k in learn.model.body.missing if "photo" in k)]
    assert torch.equal(beside[~here].mean((2, 3)), vector.expand(int((~here).sum()), -1))


def test_a_learner_with_missing_inputs_is_exported_and_shown(folder, tmp_path):
    learn = make_learner(loaders(folder, table=gappy(), wrap=PartialBlock), archs(), epochs=1)
    learn.path = tmp_path
    assert learn.show_results(max_n=3).axes and HeadsInterpretation.from_learner(learn).plot_top_losses(3).axes
    learn.export("learn.pkl")
    item = {"photo": None, "kind": "x", "u": 0.5, "note": None}
    again = load_learner(tmp_path / "learn.pkl")
    assert torch.equal(again.predict(item)[2].mood, learn.predict(item)[2].mood)
    some = learn.predict({**item, "note": "the cat sat"})[2].mood
    assert not torch.equal(some, learn.predict(item)[2].mood)


# fusions


@pytest.mark.parametrize(
    ("fusion", "tap"),
    [(GatedSum, ("photo.features", "row.features", "note.features")), (CrossAttention, ("photo.stem", "note.tokens"))],
    ids=["gated sum", "cross-attention"],
)
def test_a_fusion_trains_and_answers_alone_as_beside_others(folder, fusion, tap):
    heads = {"mood": ClassificationHead(tap="both"), "n": RegressionHead(tap=("both", "row.features", "note.features"))}
    learn = make_learner(loaders(folder), archs(), heads, trunk={"both": Trunk(fusion, tap=tap)})
    before = [p.clone() for p in learn.model.heads.trunk("both").parameters()]
    with learn.no_logging():
        learn.fit(1, 1e-2)
    after = list(learn.model.heads.trunk("both").parameters())
    assert sum(not torch.equal(a, b) for a, b in zip(before, after)) == len(before)
    preds = learn.get_preds()[0]
    for i in (0, 3):
        item = frame()[INPUTS].to_dict("records")[i]
        assert torch.allclose(learn.predict(item)[2].mood, preds.mood[i], atol=1e-5)
