"""`learn.show_heads()`: what the network's diagram says, and that it can be read."""

import re

import numpy as np
import pytest
from torch import nn

from fastai_heads.errors import HeadsError
from fastai_heads.heads import BoxHead, ClassificationHead, RegressionHead
from fastai_heads.trunks import Trunk

FIVE = ("digit", "tags", "ink", "centre", "box")


def words(fig):
    return [t.get_text() for t in fig.axes[0].texts if t.get_text()]


def frames(fig):
    return fig.axes[0].patches


def lines_of(fig, title):
    "The texts in the box that begins with a title."
    texts = [t for t in fig.axes[0].texts if t.get_text()]
    start = next(t for t in texts if t.get_text() == title and t.get_fontweight() == "bold")
    draw = fig.canvas.get_renderer()
    frame = next(p for p in frames(fig) if p.get_window_extent(draw).contains(*start.get_window_extent(draw).p0))
    inside = [t for t in texts if frame.get_window_extent(draw).contains(*t.get_window_extent(draw).p0)]
    return [t.get_text() for t in inside], frame


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture
def twelve(make_learner):
    taps = ("layer1", "layer2", "layer3", "neck", "top", "pre_logits", "features")
    heads = {f"aux{i}": ClassificationHead(target="digit", train_only=True, tap=tap) for i, tap in enumerate(taps)}
    heads |= {"ink": RegressionHead(tap="top", loss_weight=0.25), "box": BoxHead(tap="neck")}
    trunk = {
        "neck": Trunk(lambda channels: nn.Conv2d(channels, 64, 1)),
        "top": Trunk(nn.Conv2d(64, 32, 3, padding=1), tap="neck"),
    }
    return make_learner(*FIVE, heads=heads, trunk=trunk)


def assert_readable(fig):
    "No box touches another or leaves the figure, and every text lies in a box or over all of them."
    draw = fig.canvas.get_renderer()
    found = [p.get_window_extent(draw) for p in frames(fig)]
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= fig.bbox.x1 and b.y1 <= fig.bbox.y1 for b in found)
    assert not [(a, b) for i, a in enumerate(found) for b in found[:i] if a.overlaps(b)]
    top = max(b.y1 for b in found)
    for text in (t for t in fig.axes[0].texts if t.get_text()):
        box = text.get_window_extent(draw)
        inside = [f for f in found if f.x0 <= box.x0 and box.x1 <= f.x1 and f.y0 <= box.y0 and box.y1 <= f.y1]
        assert inside or box.y0 >= top, text.get_text()


def test_one_head(make_learner):
    learn = make_learner("digit")
    fig = learn.show_heads()
    assert_readable(fig)
    assert len(frames(fig)) == 5 and "weighted sum" not in words(fig)
    assert lines_of(fig, "image")[0][1] == "3 × 48 × 48"
    assert lines_of(fig, "CrossEntropyLoss")[0] == ["CrossEntropyLoss", "weight 1"]


def test_shapes_parameters_and_weights_are_the_networks(twelve):
    fig = twelve.show_heads()
    assert_readable(fig)
    heads = twelve.model[1]
    assert len(frames(fig)) == 2 + len(twelve.model[0].taps) + 2 + 2 * 12 + 1
    channels, stride = twelve.model[0].channels["layer2"], twelve.model[0].strides["layer2"]
    side = 48 // stride
    assert lines_of(fig, "layer2")[0] == ["layer2", f"{channels} × {side} × {side}", f"stride {stride}"]
    assert lines_of(fig, "pre_logits")[0][-1] == "a vector"
    assert f"{count(heads.trunk('neck')):,} parameters" in lines_of(fig, "neck (trunk)")[0]
    said, frame = lines_of(fig, "ink")
    assert said == ["ink", "RegressionHead → 1", f"{count(heads['ink']):,} parameters, trained"]
    assert frame.get_linestyle() in ("-", "solid")
    assert words(fig).count("weight 0.25") == 1 and words(fig).count("weight 1") == 11
    said, frame = lines_of(fig, "aux3 (auxiliary)")
    assert said[2] == "target digit" and frame.get_linestyle() in ("--", "dashed")


def test_arrows_follow_what_each_head_reads(twelve):
    fig = twelve.show_heads()
    arrows = [t for t in fig.axes[0].texts if not t.get_text()]
    heads = twelve.model[1]
    reads = sum(map(len, heads.reads.values())) + len(heads.trunk_reads)
    assert len(arrows) == 1 + len(twelve.model[0].taps) + reads + 2 * len(heads)
    assert all(a.xy[0] > a.xyann[0] for a in arrows), "from left to right, also from trunk to trunk"


def test_no_line_runs_behind_a_box(twelve):
    ax = twelve.show_heads().axes[0]
    segments = [(t.xyann, t.xy) for t in ax.texts if not t.get_text()]
    segments += [tuple(zip(*line.get_data())) for line in ax.lines]
    boxes = [(*p.get_path().get_extents().p0, *p.get_path().get_extents().p1) for p in frames(ax.figure)]
    for start, end in segments:
        points = np.linspace(start, end, 50)[1:-1]
        for x0, y0, x1, y1 in boxes:
            inside = (points > (x0 + 0.01, y0 + 0.01)).all(1) & (points < (x1 - 0.01, y1 - 0.01)).all(1)
            assert not inside.any(), (start, end)
    assert len(ax.lines), "some heads read the body's taps past a trunk"


def test_what_is_frozen_is_said(make_learner):
    learn = make_learner(*FIVE)
    assert "trained" in lines_of(learn.show_heads(), "test_resnet")[0]
    learn.freeze()
    fig = learn.show_heads()
    said, frame = lines_of(fig, "test_resnet")
    assert said[-1] == "frozen but for its norms"
    assert frame.get_facecolor() != lines_of(fig, "digit")[1].get_facecolor()
    for p in learn.model[0].parameters():
        p.requires_grad_(False)
    assert lines_of(learn.show_heads(), "test_resnet")[0][-1] == "frozen"


def test_the_learner_is_left_as_it_was(make_learner):
    learn = make_learner("digit", "ink")
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.model.train()
    learn.show_heads()
    assert learn.model.training and all((v == before[k]).all() for k, v in learn.model.state_dict().items())


def test_mermaid_has_the_boxes_and_arrows_of_the_drawing(twelve):
    text = twelve.show_heads(format="mermaid")
    assert text.startswith("flowchart LR\n")
    boxes = dict(re.findall(r'^    (n\d+)\["(.*)"\]$', text, re.M))
    titles = {key: said.split("<br>")[0] for key, said in boxes.items()}
    assert {*titles.values()} >= {*twelve.model[0].taps, "ink", "aux0 (auxiliary)", "neck (trunk)", "top (trunk)"}
    arrows = re.findall(r"^    (n\d+) (-->|-\.->) (n\d+)$", text, re.M)
    named = {(titles[a], titles[b]): arrow for a, arrow, b in arrows}
    assert named["neck (trunk)", "top (trunk)"] == named["top (trunk)", "ink"] == "-->"
    assert named["layer1", "aux0 (auxiliary)"] == "-.->" and ("layer1", "ink") not in named
    assert len(text.splitlines()) == 1 + 2 * len(boxes) + len(arrows)


def test_mermaid_reads_no_text_as_its_marks(twelve, monkeypatch):
    monkeypatch.setattr(type(twelve.strategy), "label", 'a "step"] <b>')
    line = next(line for line in twelve.show_heads(format="mermaid").splitlines() if "a #34;step" in line)
    assert line.count('"') == 2 and line.count("]") == 1 and "<b>" not in line


def test_the_drawing_is_saved_as_svg(make_learner, tmp_path):
    make_learner("digit").show_heads().savefig(tmp_path / "heads.svg")
    assert "<svg" in (tmp_path / "heads.svg").read_text()


def test_another_format_is_refused(make_learner):
    with pytest.raises(HeadsError, match="'figure' or 'mermaid', found 'dot'"):
        make_learner("digit").show_heads(format="dot")
