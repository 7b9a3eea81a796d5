"""The body of a row: fastai's `TabularModel` up to its last hidden vector."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.transforms import Normalize
from fastai.losses import MSELossFlat
from fastai.tabular.core import Categorify, FillMissing
from fastai.tabular.data import TabularDataLoaders
from fastai.tabular.learner import tabular_learner
from fastai.tabular.model import TabularModel
from fastai.torch_core import set_seed
from torch import nn

from fastai_heads.archs.records import Level
from fastai_heads.bodies.table import TabularBody
from fastai_heads.data.inputs import ImageInput, RowInput, dls_inputs
from fastai_heads.data.rows import Row
from fastai_heads.data.tabular import from_tabular
from fastai_heads.errors import HeadsError

SOURCE = RowInput("row", cat_names=("kind", "site"), sizes=(4, 3), cont_names=("u", "v", "w"))
NUMBERS = RowInput("row", cont_names=("u", "v", "w"))
CODES = RowInput("row", cat_names=("kind", "site"), sizes=(4, 3))


def rows(source: RowInput = SOURCE, n: int = 8) -> Row:
    codes = [torch.randint(0, size, (n,)) for size in source.sizes]
    cats = torch.stack(codes, 1) if codes else torch.zeros(n, 0, dtype=torch.int64)
    return Row((cats, torch.randn(n, len(source.cont_names))))


def body_of(spec: TabularBody, taps=("features",), source=SOURCE):
    return spec.find(source).build(taps)


@pytest.mark.parametrize("source", [SOURCE, NUMBERS, CODES], ids=["both", "numbers", "codes"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_bn": False},
        {"bn_cont": False},
        {"lin_first": False},
        {"ps": 0.2, "embed_p": 0.1},
        {"ps": [0.1, 0.3]},
        {"act_cls": nn.SELU()},
    ],
    ids=str,
)
def test_it_starts_and_trains_as_fastais_model(source, config):
    spec = TabularBody(layers=[6, 5], **config)
    set_seed(0)
    body = body_of(spec, source=source)
    ours = nn.ModuleList([body, nn.Linear(5, 2)])
    set_seed(0)
    theirs = TabularModel(spec.sizes(source), len(source.cont_names), 2, [6, 5], **config)
    mapped = {k.replace("layers.2.0", "1"): v for k, v in theirs.state_dict().items()}
    mapped = {k if k.startswith("1.") else f"0.{k}": v for k, v in mapped.items()}
    if not source.cont_names:  # fastai makes a batch norm of no columns
        mapped = {k: v for k, v in mapped.items() if "bn_cont" not in k}
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in mapped.items()}
    for key, value in ours[0].state_dict().items():
        assert torch.equal(value, mapped[f"0.{key}"]), "drawn in the same order"
    ours.load_state_dict(mapped)
    batches = [(rows(source), torch.randn(8, 2)) for _ in range(20)]
    losses = []
    for step in (lambda row: ours[1](ours[0](row)["features"]), lambda row: theirs(*row)):
        net = ours if not losses else theirs
        opt = torch.optim.Adam(net.train().parameters(), 0.01)
        set_seed(1)
        found = []
        for row, y in batches:
            loss = (step(row) - y).square().mean()
            loss.backward()
            opt.step()
            opt.zero_grad()
            found.append(loss.item())
        losses.append(found)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_it_starts_as_the_model_of_tabular_learner():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.choice(list("xyz"), 60), "u": rng.normal(size=60), "y": rng.normal(size=60)})
    dls = TabularDataLoaders.from_df(
        frame, procs=[Categorify, FillMissing, Normalize], cat_names=["a"], cont_names=["u"], y_names="y",
        valid_idx=list(range(20)), bs=16, num_workers=0,
    )  # fmt: skip
    set_seed(0)
    theirs = tabular_learner(dls, layers=[6, 5], loss_func=MSELossFlat()).model.eval()
    set_seed(0)
    (source,) = dls_inputs(from_tabular(dls))
    body, last = body_of(TabularBody(layers=[6, 5]), source=source).eval(), nn.Linear(5, 1)
    last.load_state_dict(theirs.layers[2][0].state_dict())
    cats, conts, _ = dls.one_batch()
    assert torch.equal(last(body(cats, conts)["features"]), theirs(cats, conts))
    assert torch.equal(body(Row((cats, conts)))["features"], body(cats, conts)["features"])


def test_taps_are_every_layer_and_what_none_needs_is_not_kept():
    spec = TabularBody(layers=[6, 5, 4], emb_szs={"kind": 7})
    names = [p.name for p in spec.find(SOURCE).points]
    assert names == ["embeddings", "layer1", "layer2", "layer3", "features"]
    body = body_of(spec, names)
    out = body(rows())
    assert list(out) == names
    assert {k: v.shape[1] for k, v in out.items()} == body.channels
    assert body.channels["embeddings"] == 7 + spec.sizes(SOURCE)[1][1] + 3
    assert torch.equal(out["layer3"], out["features"]) and set(body.strides.values()) == {None}
    for depth, name in enumerate(names[:4]):
        part = body_of(spec, [name])
        assert len(part.layers) == depth
        assert [r.name for r in part.removed] == [f"layers.{i}" for i in range(depth, 3)]
        assert sum(p.numel() for p in part.parameters()) == part.point(name).params
        part(rows())[name].sum().backward()
        assert not [k for k, p in part.named_parameters() if p.grad is None]
    assert body_of(TabularBody(layers=[])).channels == {"features": body_of(spec, [names[0]]).channels[names[0]] - 4}


@pytest.mark.parametrize("source", [SOURCE, NUMBERS, CODES], ids=["both", "numbers", "codes"])
def test_groups_hold_every_parameter_once(source):
    body = body_of(TabularBody(layers=[6, 5]), source=source)
    early, late = body.groups()
    assert late and sorted(map(id, (*early, *late))) == sorted(map(id, body.parameters()))
    assert body.held() == [] and body.transforms() == [] and body.weights == ""


def test_it_pickles_and_is_a_vector_body():
    body = body_of(TabularBody(layers=[6, 5])).eval()
    row = rows()
    again = pickle.loads(pickle.dumps(body))
    assert torch.equal(again(row)["features"], body(row)["features"])
    assert body.level_source(Level(8, optional=True)) is None
    with pytest.raises(HeadsError, match="has no map"):
        body.level_source(Level(8))
    assert body.tap_also("features") == "features"
    with pytest.raises(HeadsError, match="was made for features"):
        body.tap_also("layer1")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TabularBody(layers=[0]), "`layers` of TabularBody is a list of widths"),
        (lambda: TabularBody(layers=[6], ps=[0.1, 0.2]), "for each of the 1 layers, found"),
        (lambda: body_of(TabularBody(emb_szs={"knd": 3})), "Did you mean 'kind'"),
        (lambda: TabularBody().find(ImageInput("photo")), "input 'photo' is an image"),
        (lambda: body_of(TabularBody(), ["layer7"]), "TabularBody does not have"),
        (lambda: body_of(TabularBody(), [4]), "TabularBody does not have"),
    ],
)
def test_what_cannot_be_built_is_refused(make, match):
    with pytest.raises(HeadsError, match=match):
        make()


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        (lambda r: (torch.randn(2, 3, 8, 8),), r"takes a row of a table .*\(2, 3, 8, 8\)"),
        (lambda r: (r[0],), "takes a row of a table"),
        (lambda r: (r[1], r[0]), "codes are integers"),
        (lambda r: (r[0][:, :1], r[1]), r"2 columns of categories \(kind, site\), found 1"),
        (lambda r: (r[0], r[1][:, :1]), r"3 columns of numbers \(u, v, w\), found 1"),
        (lambda r: (r[0] + 3, r[1]), "column 'kind' has codes below 4"),
    ],
)
def test_inputs_that_are_no_rows_are_refused(inputs, match):
    body, row = body_of(TabularBody(layers=[6])), rows()
    body.check_inputs((row,))
    body.check_inputs(tuple(row))
    with pytest.raises(HeadsError, match=match):
        body.check_inputs(inputs(row))


def test_a_missing_row_is_told():
    cats, conts = rows(n=3)
    cats[1], conts[1] = -1, torch.nan
    body = body_of(TabularBody(layers=[6])).eval()
    assert body.absent(Row((cats, conts))).tolist() == [False, True, False]
    assert body(*body.blank(cats, conts))["features"].isfinite().all()
