"""One head as a plain fastai `Learner`."""

import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
import torch
from fastai.callback.hook import hook_output
from fastai.interpret import ClassificationInterpretation, Interpretation, SegmentationInterpretation
from fastai.layers import ConvLayer
from fastai.learner import Learner
from fastcore.basics import noop

from fastai_heads.errors import HeadsError
from fastai_heads.heads import BoxHead, ClassificationHead, CustomHead, DetectionHead, SegmentationHead
from fastai_heads.trunks import Trunk

TARGETS = ("digit", "tags", "ink", "centre", "box")


@pytest.fixture
def learn(make_learner):
    return make_learner(
        *TARGETS,
        heads={"box": BoxHead(tap="neck"), "hint": ClassificationHead(target="digit", tap=8, train_only=True)},
        trunk={"neck": Trunk(lambda channels: ConvLayer(channels, 16))},
    )


@pytest.mark.parametrize("name", TARGETS)
def test_predictions_are_those_of_the_whole(learn, quiet, name):
    view = quiet(learn.head(name))
    preds, targs = view.get_preds()
    whole, all_targs = learn.get_preds()
    assert torch.equal(preds, whole[name]) and torch.equal(targs, all_targs[name])


@pytest.mark.parametrize("name", TARGETS)
def test_fastai_shows_predicts_and_sums_up(learn, quiet, table, name):
    view = quiet(learn.head(name))
    view.show_results(max_n=2)
    assert plt.get_fignums()
    view.predict(table.iloc[0])
    assert "Total params" in str(view.summary())


def test_it_is_a_learner_of_fastais_with_one_target(learn):
    view = learn.head("digit")
    assert type(view) is Learner
    assert view.dls.n_inp == 1 and len(view.dls.one_batch()) == 2
    assert list(view.dls.vocab) == list(learn.heads.digit.vocab)
    assert [m.name for m in view.metrics] == ["accuracy"]


def test_training_it_trains_that_head_and_the_body_of_the_whole(learn, quiet):
    view = quiet(learn.head("digit"))
    body, digit, box = _copies(learn)
    view.fit(1, 1e-2)
    after = _copies(learn)
    assert not _equal(body, after[0]) and not _equal(digit, after[1]) and _equal(box, after[2])


def test_a_frozen_body_stays_frozen(learn, quiet):
    learn.freeze()
    fixed = {n: p.clone() for n, p in learn.model[0].named_parameters() if not p.requires_grad}
    quiet(learn.head("digit")).fit(1, 1e-2)
    assert fixed and all(torch.equal(p, dict(learn.model[0].named_parameters())[n]) for n, p in fixed.items())


def test_slices_and_freezing_count_body_and_head(learn):
    view = learn.head("box")
    view.freeze()
    assert len(view.opt.param_lists) == len(learn.model[0].groups()) + 1
    heads = {*learn.model[1]["box"].parameters(), *learn.model[1].trunk("neck").parameters()}
    assert set(view.opt.param_lists[-1]) == heads


def test_classification_interpretation(learn, quiet):
    interp = ClassificationInterpretation.from_learner(quiet(learn.head("digit")))
    preds, targs = learn.get_preds()
    matrix = interp.confusion_matrix()
    assert matrix.sum() == len(targs.digit)
    assert matrix.trace() == (preds.digit.argmax(1) == targs.digit).sum()
    losses = learn.get_preds(with_loss=True)[-1].digit
    torch.testing.assert_close(torch.as_tensor(interp.top_losses(3)[0]), torch.as_tensor(losses.topk(3)[0]))
    interp.plot_top_losses(2)
    interp.plot_confusion_matrix()


def test_items_without_a_label_rank_last(make_dls, make_learner, quiet):
    learn = make_learner(dls=make_dls("digit", "ink", missing=0.4))
    for name in ("digit", "ink"):
        interp = Interpretation.from_learner(quiet(learn.head(name)), ds_idx=0)
        known = learn.dls.train_ds.items[name].notna().to_numpy()
        losses = torch.as_tensor(learn.get_preds(ds_idx=0, with_loss=True)[-1].heads[name])
        assert losses.isnan().tolist() == (~known).tolist()
        for largest in (True, False):
            values, idx = interp.top_losses(largest=largest)
            n = int(known.sum())
            assert known[idx[:n]].all() and not known[idx[n:]].any()
            wanted = losses[losses.isfinite()].sort(descending=largest)[0]
            torch.testing.assert_close(torch.as_tensor(values[:n]), wanted)


def test_the_loss_of_one_head_is_not_weighted(make_learner, quiet):
    learn = make_learner("digit", "ink", heads={"digit": ClassificationHead(loss_weight=0.25)})
    view = quiet(learn.head("digit"))
    total, digit, ink, *_ = learn.validate()
    assert view.validate()[0] == pytest.approx(digit, rel=1e-6) and total == pytest.approx(0.25 * digit + ink, rel=1e-6)


def test_segmentation_interpretation(make_learner, quiet):
    learn = make_learner("digit", "mask", heads={"mask": SegmentationHead(decoder="dynamic_unet")})
    interp = SegmentationInterpretation.from_learner(quiet(learn.head("mask")))
    losses = learn.get_preds(with_loss=True)[-1].mask
    torch.testing.assert_close(torch.as_tensor(interp.top_losses(3)[0]), torch.as_tensor(losses.topk(3)[0]))
    interp.plot_top_losses(2)
    assert [len(ax.images) for ax in plt.gcf().axes] == [1] * 6  # input, target and prediction by themselves
    plt.close("all")
    interp.show_results([0, 1])
    assert [len(ax.images) for ax in plt.gcf().axes] == [2] * 4  # target and prediction over the input


def test_boxes_with_labels_alone(make_learner, make_dls, quiet, table):
    fields = {"channels": 64, "tap": (4, 8), "extra_levels": 0, "score_thresh": 0.0, "metrics": []}
    learn = make_learner("digit", "boxes", heads={"boxes": DetectionHead(**fields)})
    view = quiet(learn.head("boxes"))
    assert torch.equal(view.loss_func.activation(view.get_preds(act=noop)[0]), learn.get_preds()[0].boxes)
    assert torch.equal(view.get_preds()[0], learn.get_preds()[0].boxes)
    losses, _ = Interpretation.from_learner(view).top_losses(2)
    torch.testing.assert_close(losses, torch.as_tensor(learn.get_preds(with_loss=True)[-1].boxes.topk(2)[0]))
    view.predict(table.iloc[0])
    fig = view.show_results(max_n=2, shuffle=False)
    assert any(ax.patches for ax in fig.axes)
    view.fit(1)


def test_interpretation_of_a_box(learn, quiet):
    Interpretation.from_learner(quiet(learn.head("box"))).top_losses(2)


def test_hooks_on_the_body_see_the_heads_tensor(learn):
    view = learn.head("digit")
    x = learn.dls.valid.one_batch()[0]
    with hook_output(view.model[0]) as hook:
        view.model.eval()(x)
    channels = learn.model[0].channels["features"]
    assert hook.stored.shape[:2] == (len(x), channels)


def test_a_head_on_several_taps(make_learner, quiet):
    class Both(torch.nn.Module):
        def __init__(self, a, b):
            super().__init__()
            self.lin = torch.nn.Linear(a + b, 10)

        def forward(self, a, b):
            return self.lin(torch.cat([a.mean((2, 3)), b.mean((2, 3))], 1))

    learn = make_learner("digit", heads={"digit": CustomHead(Both, tap=(8, "features"))})
    view = quiet(learn.head("digit"))
    assert torch.equal(view.get_preds()[0], learn.get_preds()[0].digit)
    view.fit(1)


def test_missing_labels_do_not_count(make_dls, make_learner, quiet):
    learn = make_learner(dls=make_dls("digit", "ink", missing=0.5))
    view = quiet(learn.head("digit"))
    view.fit(1, 1e-3)
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())
    assert view.recorder.metric_names[-2] == "accuracy"


def test_it_exports_and_loads_in_another_process(learn, quiet, table, scenes, tmp_path):
    view = quiet(learn.head("digit"))
    expected = view.predict(scenes / table.image[0])[2]
    view.export(tmp_path / "digit.pkl")
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); from fastai.vision.all import *\n"
        "learn = load_learner(sys.argv[1])\n"
        "with learn.no_bar(): print(learn.predict(sys.argv[2])[2].tolist())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "digit.pkl", scenes / table.image[0]],
        capture_output=True,
        text=True,
        check=True,
    )
    torch.testing.assert_close(torch.tensor(eval(run.stdout)), expected)


def test_an_unknown_head_gets_the_nearest(learn):
    with pytest.raises(HeadsError, match="Did you mean 'digit'"):
        learn.head("digti")


def _copies(learn):
    parts = (learn.model[0], learn.model[1]["digit"], learn.model[1]["box"])
    return [[p.clone() for p in part.parameters()] for part in parts]


def _equal(before, after):
    return all(torch.equal(a, b) for a, b in zip(before, after))


def test_files_of_views_with_bare_names_of_trunks_load(learn):
    view = learn.head("box")
    state = {k.replace("trunks.head_neck.", "trunks.neck."): v.clone() for k, v in view.model.state_dict().items()}
    old = [key for key in state if key.startswith("0.trunks.neck.")]
    assert old and not any("head_neck" in key for key in state)
    state[old[0]] += 1
    assert str(view.model.load_state_dict(state)) == "<All keys matched successfully>"
    assert torch.equal(
        learn.model.heads.trunk("neck").state_dict()[old[0].removeprefix("0.trunks.neck.")], state[old[0]]
    )
