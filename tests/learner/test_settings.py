"""What may be set on a learner: its metrics, its network as it is or wrapped; what may not."""

import pytest
import torch
from fastai.learner import load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import Dice, accuracy, error_rate, mae
from torch import nn

from fastai_heads.errors import HeadsError, HeadsWarning
from fastai_heads.heads import ClassificationHead
from fastai_heads.learner import multihead_learner


def names(learn):
    return [metric.name for metric in learn.metrics]


# the loss


def test_a_loss_of_the_whole_is_refused(make_learner):
    learn = make_learner("digit", "ink")
    before = learn.loss_func
    with pytest.raises(
        HeadsError, match=r"`loss_func`.*`loss=` of its spec.*ClassificationHead\(loss=CrossEntropyLossF"
    ):
        learn.loss_func = CrossEntropyLossFlat()
    assert learn.loss_func is before


# metrics


@pytest.mark.parametrize("given", [error_rate, [error_rate], [error_rate, mae]], ids=["one", "a list", "two"])
def test_metrics_that_are_set_are_those_that_are_passed(make_learner, make_dls, given):
    learn = make_learner("digit", "ink", "box")
    learn.metrics = given
    assert names(learn) == names(make_learner("digit", "ink", "box", metrics=given))
    learn.fit(1)
    assert dict(zip(learn.recorder.metric_names, learn.rows[0]))["digit_error_rate"] is not None
    assert [m.name for m in learn.head("digit").metrics] == ["error_rate"]


def test_metrics_are_set_beside_those_that_are_there(make_learner):
    learn = make_learner("digit", "ink", heads={"digit": ClassificationHead()})
    learn.metrics = [*learn.metrics, error_rate]
    assert names(learn) == ["digit_accuracy", "ink_mae", "digit_error_rate"]
    learn.metrics = []
    assert names(learn) == []
    with pytest.raises(HeadsError, match=r"`metrics` is a metric.*found 'acuracy'\. Did you mean 'accuracy'"):
        learn.metrics = ["acuracy"]
    with pytest.raises(HeadsError, match=r"`metrics`: no head takes foreground_acc"):
        from fastai.metrics import foreground_acc

        learn.metrics = [foreground_acc]
    assert names(learn) == []


def shape_of_ten(pred, targ):
    "A metric of the user's, which only ten numbers have."
    return (pred.view(-1, 10).argmax(1) == targ.view(-1)).float().mean()


@pytest.mark.parametrize("given", [[Dice()], [Dice]], ids=["object", "class"])
def test_a_metric_of_masks_goes_to_the_mask_and_the_others_are_named(make_dls, given):
    dls = make_dls("digit", "ink", "mask")
    with pytest.warns(HeadsWarning, match=r"`metrics`: dice fits mask; digit, ink got none"):
        learn = multihead_learner(dls, "test_resnet", pretrained=False, metrics=given)
    assert names(learn) == ["digit_accuracy", "ink_mae", "mask_dice"]
    with pytest.raises(HeadsError, match=r"`metrics`: no head takes dice"):
        multihead_learner(make_dls("digit"), "test_resnet", pretrained=False, metrics=given)


def test_a_metric_of_the_users_goes_to_the_heads_on_which_it_runs(make_dls):
    dls = make_dls("digit", "ink", "tags")
    with pytest.warns(HeadsWarning, match=r"shape_of_ten fits digit; ink, tags got none"):
        learn = multihead_learner(dls, "test_resnet", pretrained=False, metrics=shape_of_ten)
    assert names(learn) == ["digit_shape_of_ten", "ink_mae", "tags_accuracy_multi"]


def test_a_metric_that_is_tried_keeps_nothing(make_learner):
    learn = make_learner("digit", metrics=accuracy)
    assert learn.metrics[0].metric.total == 0 and learn.metrics[0].metric.count == 0


# the network


def wrapped(how, model):
    if how == "compiled":
        return torch.compile(model, backend="eager")
    parallel = nn.DataParallel(model)
    return parallel if how == "parallel" else nn.DataParallel(torch.compile(model, backend="eager"))


@pytest.mark.parametrize("how", ["compiled", "parallel", "both"])
def test_a_wrapped_network_does_all_that_a_plain_one_does(make_learner, table, tmp_path, how):
    learn = make_learner("digit", "ink")
    expected, keys = learn.predict(table.iloc[0])[2], list(learn.model.state_dict())
    learn.model = wrapped(how, learn.model)
    found = learn.predict(table.iloc[0])[2]
    assert all(torch.allclose(found[name], expected[name], rtol=1e-4) for name in expected.names)
    learn.fit(1, 1e-3)
    assert "with 2 heads" in str(learn.summary())
    learn.show_heads()
    learn.freeze()
    file = learn.save("weights")
    trained = learn.get_preds()[0]
    plain = make_learner("digit", "ink")
    assert list(plain.model.state_dict()) == keys
    plain.load(file)
    learn.load(file)
    for name in ("digit", "ink"):
        assert torch.allclose(plain.get_preds()[0][name], trained[name], rtol=1e-3, atol=1e-3)
        assert learn.head(name).model[1] is learn.heads[name].module
    learn.add_head("again", ClassificationHead(train_only=True), target="digit")
    learn.fit(1, 1e-3)
    learn.drop_head("again")
    learn.logger = print
    learn.export("whole.pkl")
    again = load_learner(tmp_path / "whole.pkl")
    assert again.predict(table.iloc[0])[0].names == ("digit", "ink")


def test_a_compiled_network_runs_compiled(make_learner):
    torch.compiler.reset()  # of other tests' networks, of which only so many are kept
    seen = []

    def backend(graph, _inputs):
        seen.append(graph)
        return graph.forward

    learn = make_learner("digit")
    learn.model = torch.compile(learn.model, backend=backend)
    learn.get_preds()
    assert seen and learn.model[1]["digit"] is learn.heads.digit.module
