"""fastai's keywords of drawing: rows, columns, sizes and titles, for every view of images."""

import matplotlib.pyplot as plt
import pytest
import torch
from fastai.vision.core import PILImage
from fastai.vision.data import get_grid

from fastai_heads.data.digits import digits_dls
from fastai_heads.errors import HeadsError
from fastai_heads.head_tuple import HeadTuple
from fastai_heads.learner import multihead_learner
from fastai_heads.view.interpret import HeadsInterpretation
from fastai_heads.view.keywords import GridOptions, figure_options, grid_options
from fastai_heads.view.show import show_samples, show_targets

VIEWS = {
    "show_results": lambda learn, n, **kwargs: learn.show_results(max_n=n, **kwargs),
    "show_batch": lambda learn, n, **kwargs: learn.show_batch(max_n=n, **kwargs),
    "show_targets": lambda learn, n, **kwargs: show_targets(learn.dls, n, **kwargs),
    "plot_top_losses": lambda learn, n, **kwargs: HeadsInterpretation.from_learner(learn).plot_top_losses(n, **kwargs),
    "interpretation": lambda learn, n, **kwargs: HeadsInterpretation.from_learner(learn).show_results(
        range(n), **kwargs
    ),
    "view of a head": lambda learn, n, **kwargs: learn.head("ink").show_results(max_n=n, **kwargs),
}


@pytest.fixture(scope="module")
def learn(scenes, quiet):
    dls = digits_dls(("digit", "ink", "box"), bs=8, path=scenes, n=40, size=48)
    return quiet(multihead_learner(dls, "test_resnet", pretrained=False))


def drawn(n, **kwargs):
    "Small images with a text beside each."
    image = PILImage.create(torch.zeros(20, 30, 3, dtype=torch.uint8).numpy())
    return show_samples([image] * n, [HeadTuple(["a class"], ["digit"])] * n, **kwargs)


def images_of(fig):
    return [ax for ax in fig.axes if ax.images]


def grid(fig):
    "(rows, columns) in which the images stand."
    corners = [ax.get_position().corners()[0].round(3) for ax in images_of(fig)]
    return len({y for _, y in corners}), len({x for x, _ in corners})


@pytest.mark.parametrize(
    "kwargs", [{"nrows": 1}, {"nrows": 2}, {"ncols": 2}, {"nrows": 2, "ncols": 2}, {"nrows": 2, "ncols": 1}], ids=str
)
def test_rows_and_columns_are_fastais(kwargs):
    fig, axes = drawn(5, **kwargs), get_grid(5, **kwargs)
    places = [ax.get_subplotspec() for ax in axes]
    rows, cols = {p.rowspan.start for p in places}, {p.colspan.start for p in places}
    assert grid(fig) == (len(rows), len(cols)) and len(images_of(fig)) == len(axes)


@pytest.mark.parametrize("figsize", [(12, 8), (6, 9), [5.0, 5.0]])
@pytest.mark.parametrize("nrows", [None, 1, 2])
def test_the_figure_has_its_size_and_everything_lies_in_it(figsize, nrows):
    fig = drawn(4, figsize=figsize, nrows=nrows, title="a title")
    assert tuple(fig.get_size_inches()) == tuple(figsize)
    for ax in images_of(fig):
        left, bottom, right, top = ax.get_position().extents
        assert 0 <= left < right <= 1 and 0 <= bottom < top <= 1
        assert all(text.get_window_extent().x1 <= fig.bbox.x1 for text in ax.texts)


def test_a_larger_figure_has_larger_images():
    small, large = (images_of(drawn(4, figsize=size))[0].get_window_extent() for size in ((5, 5), (10, 10)))
    assert large.width > 1.5 * small.width


def test_title_stands_above_every_image():
    fig = drawn(4, title="four scenes")
    bottom = fig._suptitle.get_window_extent().y0
    assert fig.get_suptitle() == drawn(1, suptitle="four scenes").get_suptitle() == "four scenes"
    assert all(ax.get_window_extent().y1 <= bottom + 1 for ax in images_of(fig))


def test_without_keywords_a_figure_is_as_before():
    assert grid_options() == grid_options(show=True) == GridOptions()
    assert figure_options(figsize=(3, 3)) == {"figsize": (3, 3)}


@pytest.mark.parametrize("name", ["ctxs", "ax", "double", "return_fig", "flatten", "show", "cmap", "figsiz"])
def test_what_has_no_meaning_is_refused(name):
    with pytest.raises(HeadsError, match=f"`{name}` (has no meaning|is not a keyword)"):
        drawn(2, **{name: 0})
    assert not plt.get_fignums(), "nothing is drawn"


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_every_view_takes_them(view, learn):
    fig = view(learn, 4, nrows=2, figsize=(8, 6), title="four scenes", dpi=60, facecolor="beige")
    assert grid(fig) == (2, 2) and tuple(fig.get_size_inches()) == (8, 6)
    assert fig.get_suptitle() == "four scenes" and fig.dpi == 60
    with pytest.raises(HeadsError, match=r"`figsiz` .* Did you mean 'figsize'"):
        view(learn, 2, figsiz=(8, 6))


def test_a_batch_may_be_given(learn):
    batch = learn.dls.valid.one_batch()
    assert len(images_of(learn.show_batch(b=batch, max_n=20))) == 8
