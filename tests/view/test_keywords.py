"""fastai's keywords of drawing: rows, columns, sizes and titles, for every view of images."""

import matplotlib.pyplot as plt
import pytest
from fastai.vision.data import get_grid

from fastai_heads.errors import HeadsError
from fastai_heads.view.interpret import HeadsInterpretation
from fastai_heads.view.keywords import GridOptions, figure_options, grid_options
from fastai_heads.view.show import show_targets

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


@pytest.fixture(params=VIEWS)
def view(request):
    return VIEWS[request.param]


@pytest.fixture
def learn(make_learner):
    return make_learner("digit", "ink", "box")


def images_of(fig):
    return [ax for ax in fig.axes if ax.images]


def grid(fig):
    "(rows, columns) in which the images stand."
    corners = [ax.get_position().corners()[0].round(3) for ax in images_of(fig)]
    return len({y for _, y in corners}), len({x for x, _ in corners})


@pytest.mark.parametrize(
    "kwargs", [{"nrows": 1}, {"nrows": 2}, {"ncols": 2}, {"nrows": 2, "ncols": 2}, {"nrows": 2, "ncols": 1}], ids=str
)
def test_rows_and_columns_are_fastais(view, learn, kwargs):
    fig = view(learn, 4, **kwargs)
    axes = get_grid(4, **kwargs)
    rows, cols = (
        {ax.get_subplotspec().rowspan.start for ax in axes},
        {ax.get_subplotspec().colspan.start for ax in axes},
    )
    assert grid(fig) == (len(rows), len(cols)) and len(images_of(fig)) == len(axes)


@pytest.mark.parametrize("figsize", [(12, 8), (6, 9), [5.0, 5.0]])
@pytest.mark.parametrize("nrows", [None, 1, 2])
def test_the_figure_has_its_size_and_everything_lies_in_it(view, learn, figsize, nrows):
    fig = view(learn, 4, figsize=figsize, nrows=nrows)
    assert tuple(fig.get_size_inches()) == tuple(figsize)
    for ax in images_of(fig):
        left, bottom, right, top = ax.get_position().extents
        assert 0 <= left < right <= 1 and 0 <= bottom < top <= 1


def test_a_larger_figure_has_larger_images(learn):
    small, large = (images_of(learn.show_results(max_n=4, figsize=size))[0] for size in ((5, 5), (10, 10)))
    assert large.get_window_extent().width > 1.5 * small.get_window_extent().width


def test_title_and_what_matplotlib_takes(view, learn):
    fig = view(learn, 2, title="four scenes", dpi=60, facecolor="beige")
    assert fig.get_suptitle() == "four scenes" and fig.dpi == 60
    bottom = fig._suptitle.get_window_extent().y0
    assert all(ax.get_window_extent().y1 <= bottom + 1 for ax in images_of(fig)), "above every image"
    assert view(learn, 2, suptitle="four scenes").get_suptitle() == "four scenes"


def test_without_keywords_a_figure_is_as_before():
    assert grid_options() == GridOptions() and grid_options(show=True) == GridOptions()
    assert figure_options(figsize=(3, 3)) == {"figsize": (3, 3)}


@pytest.mark.parametrize("name", ["ctxs", "ax", "double", "return_fig", "flatten", "cmap", "figsiz"])
def test_what_has_no_meaning_is_refused_in_every_view(view, learn, name):
    plt.close("all")
    with pytest.raises(HeadsError, match=f"`{name}` "):
        view(learn, 2, **{name: 1})
    assert not plt.get_fignums(), "nothing is drawn"


def test_a_batch_may_be_given(learn):
    batch = learn.dls.valid.one_batch()
    assert len(images_of(learn.show_batch(b=batch, max_n=20))) == 8
