"""`show_results` and what it draws: every head of every image, in the right place and colour."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.vision.core import PILImage, TensorBBox, TensorMask, TensorPoint
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from fastai_heads.data.detection_block import LabeledBoxes
from fastai_heads.data.missing import Missing
from fastai_heads.errors import HeadsError
from fastai_heads.head_tuple import HeadTuple
from fastai_heads.heads import ClassificationHead
from fastai_heads.view.shapes import draw_shape
from fastai_heads.view.show import PREDICTION, TARGET, show_samples

FIVE = ("digit", "tags", "ink", "centre", "box")


def texts(ax):
    "(text, colour) of the lines beside an image, broken lines as they stand."
    return [(t.get_text(), t.get_color()) for t in ax.texts]


def joined(ax):
    "The lines beside an image, those that were broken made whole."
    return " ".join(t.get_text().strip() for t in ax.texts)


def boxes(ax):
    "[(x1, y1, x2, y2), colour] of the boxes in an image."
    found = [p for p in ax.patches if isinstance(p, Rectangle)]
    return [
        ((*p.get_xy(), p.get_x() + p.get_width(), p.get_y() + p.get_height()), to_hex(p.get_edgecolor())) for p in found
    ]


def points(ax):
    "[(x, y), colour] of the points in an image."
    return [(tuple(xy), to_hex(c.get_edgecolor()[0])) for c in ax.collections for xy in c.get_offsets().tolist()]


def legend(fig):
    "What the colours are said to mean."
    return [text.get_text() for found in fig.legends for text in found.get_texts()]


def grid(fig):
    "(rows, columns) in which the images stand."
    corners = [ax.get_position().corners()[0].round(3) for ax in images_of(fig)]
    return len({y for _, y in corners}), len({x for x, _ in corners})


def images_of(fig):
    return [ax for ax in fig.axes if ax.images]


@pytest.fixture
def image():
    return PILImage.create(torch.zeros(20, 30, 3, dtype=torch.uint8).numpy())


def one(image, target, pred=None, **kwargs):
    "The axes of one image with its target and prediction, dicts by name."
    named = [HeadTuple(v.values(), v) if v is not None else None for v in (target, pred)]
    return show_samples([image], [named[0]], None if pred is None else [named[1]], **kwargs).axes[0]


# one sample


@pytest.mark.parametrize(
    ("target", "pred", "expected"),
    [
        ("7", "7", ("head: 7", "green")),
        ("7", "1", ("head: 1 (7)", "red")),
        (["even", "loop"], ["even", "loop"], ("head: even, loop", "green")),
        (["even"], ["even", "loop"], ("head: even, loop (even)", "red")),
        ((12.3456,), (12.0,), ("head: 12 (12.35)", "black")),
        ((1.0, 2.0), (1.5, 2.25), ("head: 1.5, 2.25 (1, 2)", "black")),
        (Missing(), "3", ("head: 3 (–)", "black")),
    ],
)
def test_a_text_is_green_if_right_and_red_with_the_target_if_wrong(image, target, pred, expected):
    assert texts(one(image, {"head": target}, {"head": pred})) == [expected]


@pytest.mark.parametrize(("pred", "color"), [([], "green"), (["even"], "red")])
def test_no_label_is_an_answer_too(image, pred, color):
    ((text, found),) = texts(one(image, {"head": []}, {"head": pred}))
    assert found == color and text.startswith("head: even (" if pred else "head: ") and len(text) > len("head: ")


def test_targets_alone_are_said_plainly(image):
    ax = one(image, {"digit": "7", "ink": (0.5,)})
    assert texts(ax) == [("digit: 7", "black"), ("ink: 0.5", "black")]
    assert legend(ax.figure) == [], "no legend where nothing is compared"


def test_boxes_of_target_and_prediction(image):
    target, pred = (TensorBBox(torch.tensor([b]), img_size=(30, 20)) for b in ([1.0, 2, 11, 12], [3.0, 4, 9, 10]))
    ax = one(image, {"box": target}, {"box": pred})
    assert boxes(ax) == [((1, 2, 11, 12), TARGET), ((3, 4, 9, 10), PREDICTION)]
    assert texts(ax) == []
    assert legend(ax.figure) == ["target", "prediction"]


def test_points_of_target_and_prediction(image):
    target, pred = (TensorPoint(torch.tensor(p), img_size=(30, 20)) for p in ([[5.0, 6]], [[7.0, 8]]))
    assert points(one(image, {"eye": target}, {"eye": pred})) == [((5, 6), TARGET), ((7, 8), PREDICTION)]
    assert points(one(image, {"eye": target})) == [((5, 6), TARGET)]


def test_masks_lie_over_an_image_each(image):
    mask = TensorMask(torch.arange(600).view(20, 30) % 3)
    fig = one(image, {"mask": mask}, {"mask": mask * 0}).figure
    assert [len(ax.images) for ax in fig.axes] == [2, 2], "the image, and a mask over it"
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["mask: target", "mask: prediction"]
    drawn = [torch.tensor(ax.images[1].get_array().astype("int64")) for ax in fig.axes]
    assert torch.equal(drawn[0], torch.Tensor(mask).long()) and not drawn[1].any()
    assert len({ax.images[1].get_clim() for ax in fig.axes}) == 1, "the same colour means the same code"
    hidden = ~torch.tensor(fig.axes[0].images[1].get_array().mask)
    assert torch.equal(hidden, torch.Tensor(mask) != 0), "code 0 stays clear, and no other"
    first, second, _ = fig.legends[0].get_patches()
    assert first.get_facecolor()[3] == 0 and second.get_facecolor()[3] > 0


def test_what_reaches_beyond_the_image_does_not_move_it(image):
    plain = one(image, {"digit": "1"})
    far = TensorBBox(torch.tensor([[-50.0, -50, 200, 200]]), img_size=(30, 20))
    point = TensorPoint(torch.tensor([[90.0, 90]]), img_size=(30, 20))
    ax = one(image, {"box": far, "eye": point}, {"box": far, "eye": point})
    assert (ax.get_xlim(), ax.get_ylim()) == (plain.get_xlim(), plain.get_ylim())


def test_heads_are_compared_by_the_target_they_predict(image):
    ax = one(image, {"digit": "7", "ink": (2.0,)}, {"sort": "7"}, shown={"sort": "digit"})
    assert texts(ax) == [("sort: 7", "green")]


def test_a_missing_shape_is_said_and_the_prediction_drawn(image):
    pred = TensorPoint(torch.tensor([[7.0, 8]]), img_size=(30, 20))
    ax = one(image, {"eye": Missing()}, {"eye": pred})
    assert points(ax) == [((7, 8), PREDICTION)]
    assert texts(ax) == [("eye: –", "black")]


def test_long_texts_are_broken_and_stay_whole(image):
    tags = [f"tag number {i}" for i in range(8)]
    ax = one(image, {"tags": tags}, {"tags": tags})
    assert len(ax.texts) > 2 and {color for _, color in texts(ax)} == {"green"}
    assert joined(ax) == f"tags: {', '.join(tags)}"
    heights = [t.get_window_extent().y0 for t in ax.texts]
    assert heights == sorted(heights, reverse=True) and len(set(heights)) == len(heights)
    assert heights[-1] >= 0, "within the figure"


def test_a_long_list_says_how_much_is_left_out(image):
    tags = [f"tag {i}" for i in range(50)]
    ax = one(image, {"tags": tags}, {"tags": tags})
    said, _, rest = joined(ax).partition(" … and ")
    assert said.startswith("tags: tag 0, tag 1") and rest == f"{50 - said.count(',') - 1} more"
    assert {color for _, color in texts(one(image, {"tags": tags}, {"tags": [*tags[:-1], "tag x"]}))} == {"red"}


@pytest.mark.parametrize(
    ("n", "ncols", "shape"),
    [(1, 3, (1, 1)), (2, 3, (1, 2)), (3, 3, (1, 3)), (4, 3, (2, 3)), (9, 3, (3, 3)), (4, 2, (2, 2))],
)
def test_the_grid_fits_the_number_of_images(image, n, ncols, shape):
    fig = show_samples([image] * n, [HeadTuple(["1"], ["digit"])] * n, ncols=ncols)
    assert grid(fig) == shape and len(images_of(fig)) == n
    assert all(not ax.axison for ax in fig.axes)


def test_texts_do_not_reach_into_the_next_image(image):
    targets = [HeadTuple(["a rather long answer to a simple question"], ["question"])] * 3
    fig = show_samples([image] * 3, targets, ncols=3)
    edges = [ax.get_window_extent().x0 for ax in images_of(fig)] + [fig.bbox.x1]
    for ax, following in zip(images_of(fig), edges[1:], strict=True):
        assert all(t.get_window_extent().x0 > ax.get_window_extent().x1 for t in ax.texts), "beside its own image"
        assert all(t.get_window_extent().x1 <= following + 1 for t in ax.texts)


def test_no_image_is_refused(image):
    with pytest.raises(HeadsError, match="there is no image to show"):
        show_samples([], [])


# a learner's


@pytest.mark.parametrize("targets", [("digit",), ("digit", "ink"), FIVE], ids=["1", "2", "5"])
def test_results_are_what_the_learner_predicts(make_learner, targets, tmp_path):
    learn = make_learner(*targets)
    learn.fit(1)
    learn.show_results(max_n=4, shuffle=False)
    fig = plt.gcf()
    assert len(images_of(fig)) == 4
    preds, truth, decoded = learn.get_preds(with_decoded=True)
    vocab = learn.heads.digit.vocab
    for i, ax in enumerate(images_of(fig)):
        said, right = vocab[decoded.digit[i]], vocab[truth.digit[i]]
        assert texts(ax)[0] == ((f"digit: {said}", "green") if said == right else (f"digit: {said} ({right})", "red"))
        if "ink" in targets:
            assert f"ink: {preds.ink[i].item():.4g} ({truth.ink[i].item():.4g})" in joined(ax)
        if "box" in targets:
            assert_shapes(ax, preds, truth, i)
    file = tmp_path / "results.png"
    fig.savefig(file)
    height, width, _ = plt.imread(file).shape
    assert min(height, width) > 100


def assert_shapes(ax, preds, truth, i):
    "Boxes and points are drawn in pixels of an image of 48."
    for (found, color), box, expected in zip(
        boxes(ax), (truth.box[i], preds.box[i]), (TARGET, PREDICTION), strict=True
    ):
        assert color == expected
        assert found == pytest.approx(((torch.Tensor(box).view(-1) + 1) * 24).tolist(), abs=1e-3)
    for (xy, color), point, expected in zip(
        points(ax), (truth.centre[i], preds.centre[i]), (TARGET, PREDICTION), strict=True
    ):
        assert color == expected
        assert xy == pytest.approx(((torch.Tensor(point).view(-1) + 1) * 24).tolist(), abs=1e-3)


def test_the_images_are_those_of_the_data(make_learner):
    learn = make_learner("digit", "ink")
    learn.show_results(max_n=2, shuffle=False, ncols=1, imsize=1.5)
    axes = images_of(plt.gcf())
    assert grid(plt.gcf()) == (2, 1) and axes[0].get_window_extent().width == pytest.approx(1.5 * 100, abs=2)
    batch = learn.dls.valid.one_batch()[0]
    for ax, image in zip(axes, batch, strict=False):
        shown = torch.as_tensor(ax.images[0].get_array()).float()
        torch.testing.assert_close(shown, 255 * torch.Tensor(image).permute(1, 2, 0).cpu(), rtol=0, atol=1)


def test_the_training_set_and_another_loader_can_be_shown(make_learner):
    learn = make_learner("digit", "ink")
    learn.show_results(ds_idx=0, max_n=3)
    assert len(images_of(plt.gcf())) == 3
    learn.show_results(dl=learn.dls.valid, max_n=20)
    assert len(images_of(plt.gcf())) == 8


def test_auxiliary_heads_are_not_shown(make_learner):
    learn = make_learner(
        "digit", "ink", heads={"aux": ClassificationHead(target="digit", tap="layer2", train_only=True)}
    )
    learn.show_results(max_n=1)
    assert [t.split(":")[0] for t, _ in texts(plt.gcf().axes[0])] == ["digit", "ink"]


def test_missing_labels_are_shown_as_such(make_dls, make_learner):
    learn = make_learner(dls=make_dls(*FIVE, missing=0.6))
    learn.show_results(ds_idx=0, max_n=8)
    lines = [line for ax in images_of(plt.gcf()) for line in texts(ax) if line[0].startswith("digit")]
    assert "black" in {color for _, color in lines} and len(lines) == 8
    drawn = [len(boxes(ax)) for ax in images_of(plt.gcf())]
    assert {1, 2} >= set(drawn) and 1 in drawn, "a missing box leaves the prediction alone"


def test_the_text_of_a_box_stays_in_the_image():
    "Over a target and under a prediction, so that both can be read; inside where there is no room."
    fig, ax = plt.subplots(figsize=(2, 2))
    ax.imshow(np.zeros((40, 40, 3)))
    for color, tops in ((TARGET, (0, 10)), (PREDICTION, (10, 20))):
        boxes = LabeledBoxes(torch.tensor([[5.0, top, 15.0, top + 20.0] for top in tops]))
        boxes.labels = ("a", "b")
        draw_shape(ax, boxes, color)
    frame = ax.get_window_extent()
    fig.canvas.draw()
    for text in ax.texts:
        box = text.get_window_extent()
        assert frame.y0 - 3 <= box.y0 and box.y1 <= frame.y1 + 3
    assert [t.get_verticalalignment() for t in ax.texts] == ["top", "bottom", "top", "bottom"]
