"""Bodies over several inputs: their taps, what is computed and what is shared, what stands for a missing input."""

from collections import OrderedDict
from functools import partial

import pytest
import torch
from fastai.data.transforms import Normalize
from fastai.text.models.awdlstm import AWD_LSTM
from torch import nn

from fastai_heads.archs.records import Level
from fastai_heads.bodies.image import cut_body, find_image
from fastai_heads.bodies.several import Bodies
from fastai_heads.bodies.table import TabularBody
from fastai_heads.bodies.text import TextBody
from fastai_heads.bodies.together import On, find_bodies
from fastai_heads.data.inputs import ImageInput, RowInput, TextInput
from fastai_heads.data.rows import Row
from fastai_heads.errors import HeadsError
from fastai_heads.trunks import Trunk

IMAGE = partial(find_image, pretrained=False)
PHOTO = ImageInput("photo")
ROW = RowInput("row", cat_names=("kind",), sizes=(4,), cont_names=("u", "v"))
NOTE = TextInput("note", n_tokens=30)
TEXT = TextBody(AWD_LSTM, config={"emb_sz": 4, "n_hid": 6, "n_layers": 2}, seq_len=5)
THREE = {"photo": "resnet10t", "row": TabularBody(layers=[6, 5]), "note": TEXT}
ALL = ("photo.layer3", "row.features", "note.features")


def net() -> nn.Module:
    "A network of three layers, for images of 8 pixels."
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 4, 3, 2, 1), bn=nn.BatchNorm2d(4), act=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(), fc=nn.Linear(4, 2),
        )
    )  # fmt: skip


def partly(source):
    return type(source)(**{**source.__dict__, "partial": True})


def batch(n: int = 4) -> tuple:
    row = Row((torch.randint(0, 4, (n, 1)), torch.randn(n, 2)))
    return torch.randn(n, 3, 32, 32), row, torch.randint(2, 30, (n, 7))


def three(taps=ALL, sources=(PHOTO, ROW, NOTE)) -> Bodies:
    return find_bodies(THREE, sources, IMAGE).build(taps)


@pytest.fixture(scope="module")
def bodies() -> Bodies:
    return three(("features", *ALL, "tokens"))


def test_every_tap_is_what_the_body_gives_alone(bodies):
    bodies.eval()
    x = batch()
    out = bodies(*x)
    assert tuple(out) == bodies.taps
    assert bodies.taps == ("photo.features", "row.features", "note.features", "photo.layer3", "note.tokens")
    for name, part in zip(("photo", "row", "note"), x):
        for tap, tensor in bodies[name](part).items():
            assert torch.equal(out[f"{name}.{tap}"], tensor)
    for tap, tensor in out.items():
        assert tensor.shape[2 if tap == "note.tokens" else 1] == bodies.channels[tap]


def test_every_parameter_gets_a_gradient_and_is_in_one_group(bodies):
    bodies.train()
    sum(t.square().sum() for t in bodies(*batch()).values()).backward()
    assert not [k for k, p in bodies.named_parameters() if p.grad is None]
    groups = bodies.groups()
    assert sorted(id(p) for g in groups for p in g) == sorted(map(id, bodies.parameters()))
    for i in (0, 1):
        own = {id(p) for name in bodies.names for p in bodies[name].groups()[i]}
        assert {id(p) for p in groups[i]} == own


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("photo.layer2", "photo.layer2"),
        ("layer4", "photo.layer4"),
        ("embeddings", "row.embeddings"),
        ("photo.16", "photo.layer3"),
        (16, "photo.layer3"),
        ("tokens", "note.tokens"),
    ],
)
def test_a_short_name_is_that_of_the_one_body_that_has_it(said, meant):
    assert three((*ALL, said)).taps == tuple(dict.fromkeys((*ALL, meant)))


def test_a_level_is_made_in_the_one_body_that_has_maps(bodies):
    assert bodies.level_source(Level(32)) == "photo.layer4"
    assert bodies.level_source(Level(2, optional=True)) == "photo.act1"
    assert not bodies.one_stride


@pytest.mark.parametrize(
    ("tap", "match"),
    [
        ("layer1", r"several bodies have it. Say 'photo.layer1' or 'row.layer1'"),
        ("layer9", r"which no body has.*photo.layer1"),
        ("row.layer9", r"TabularBody does not have"),
        ("photo.999", r"no tap at that stride"),
    ],
)
def test_a_wrong_tap_is_refused(tap, match):
    with pytest.raises(HeadsError, match=match):
        three((*ALL, tap))


@pytest.mark.parametrize(
    ("archs", "sources", "match"),
    [
        ({"photo": "resnet10t"}, (PHOTO, ROW), r"input 'row' has no body \(a row of a table\)"),
        ({"foto": "resnet10t"}, (PHOTO,), r"reads input 'foto', which there is not. Did you mean 'photo'"),
        ({"photo": "resnet10t", "row": "resnet10t"}, (PHOTO, ROW), r"input 'row' is a row.*TabularBody\("),
        ({"photo": TabularBody()}, (PHOTO,), r"reads a row of a table, and input 'photo' is an image"),
        ({"photo": TEXT}, (PHOTO,), r"reads a text, and input 'photo' is an image"),
        ({"a": On("photo", "resnet10t"), "b": On("photo", same="c")}, (PHOTO,), r"bodies with an arch are a"),
        ({"photo": "resnet10t", "row": On("row", same="photo")}, (PHOTO, ROW), r"reads a row of a table, and 'photo'"),
        ({"photo x": On("photo", "resnet10t")}, (PHOTO,), r"not an identifier"),
    ],
)
def test_archs_that_fit_no_input_are_refused(archs, sources, match):
    with pytest.raises(HeadsError, match=match):
        find_bodies(archs, sources, IMAGE)


def test_on_takes_an_arch_or_a_body():
    for kwargs in ({}, {"arch": "resnet10t", "same": "left"}):
        with pytest.raises(HeadsError, match="one of the two"):
            On("right", **kwargs)


def test_a_body_that_no_head_reads_is_refused():
    with pytest.raises(HeadsError, match=r"no head reads body 'note'.*'note.features'"):
        three(("photo.layer3", "row.features"))


def test_only_the_bodies_that_the_taps_need_are_computed(bodies):
    seen = []
    handles = [bodies[n].register_forward_hook(lambda m, *_, n=n: seen.append(n)) for n in bodies.names]
    x = batch()
    full = bodies.eval()(*x)
    seen.clear()
    part = bodies.restrict(["row.features"])
    out = part(*x)
    for h in handles:
        h.remove()
    assert seen == ["row"] and list(out) == ["row.features"]
    assert torch.equal(out["row.features"], full["row.features"])
    assert {id(p) for p in part.parameters()} == {id(p) for p in bodies["row"].parameters()}
    assert bodies.taps != part.taps and len(bodies.bodies) == 3


def test_two_inputs_share_a_body_in_one_pass():
    sources = (ImageInput("left"), ImageInput("right"))
    archs = {"left": On("left", net()), "right": On("right", same="left")}
    both = find_bodies(archs, sources, find_image).build(("left.features", "right.features"))
    alone = both["left"]
    assert both["right"] is alone
    assert len(list(both.parameters())) == len(list(alone.parameters()))
    calls = []
    alone.register_forward_hook(lambda m, args, out: calls.append(len(args[0])))
    x, y = torch.randn(3, 3, 8, 8), torch.randn(3, 3, 8, 8)
    out = both.train()(x, y)
    assert calls == [6]
    joined = alone(torch.cat([x, y]))["features"]
    assert torch.equal(torch.cat([out["left.features"], out["right.features"]]), joined)
    assert both.restrict(["right.features"]).eval()(x, y)["right.features"].shape == joined[:3].shape
    with pytest.raises(HeadsError, match="one size"):
        both(x, torch.randn(3, 3, 16, 16))


def test_texts_that_share_a_body_are_filled_up():
    sources = (TextInput("question", n_tokens=30), TextInput("answer", n_tokens=30))
    both = find_bodies({"question": TEXT, "answer": On("answer", same="question")}, sources).build(["features"]).eval()
    q, a = torch.randint(2, 30, (2, 4)), torch.randint(2, 30, (2, 9))
    out = both(q, a)
    assert torch.allclose(out["question.features"], both["question"](q)["features"], atol=1e-6)
    assert torch.allclose(out["answer.features"], both["answer"](a)["features"], atol=1e-6)


def test_two_bodies_on_one_image_are_each_normalised_as_their_weights_want():
    archs = {"a": On("photo", net()), "b": On("photo", net())}
    found = find_bodies(archs, (PHOTO,), find_image)
    two = found.build(("a.features", "b.features")).eval()
    assert two.transforms() == []
    (two["a"].mean, two["a"].std), (two["b"].mean, two["b"].std) = ((0.5,) * 3, (0.5,) * 3), ((0.2,) * 3, (0.4,) * 3)
    two = Bodies({n: two[n] for n in "ab"}, two.reads, two.sources, two.taps).eval()
    x = torch.rand(2, 3, 8, 8)
    (norm,) = two.transforms()
    assert isinstance(norm, Normalize) and norm.mean.flatten().tolist() == [0.5] * 3
    out = two((x - 0.5) / 0.5)
    assert torch.allclose(out["a.features"], two["a"]((x - 0.5) / 0.5)["features"])
    assert torch.allclose(out["b.features"], two["b"]((x - 0.2) / 0.4)["features"], atol=1e-6)
    assert not [k for k in two.state_dict() if "scale" in k]


def test_freeze_holds_what_is_pretrained(bodies):
    assert bodies.held() == []
    bodies["photo"].weights = "imagenet"
    try:
        assert {id(p) for p in bodies.held()} == {id(p) for p in bodies["photo"].parameters()}
    finally:
        bodies["photo"].weights = ""


@pytest.fixture(scope="module")
def gappy() -> Bodies:
    body = three(ALL, (partly(PHOTO), partly(ROW), partly(NOTE)))
    with torch.no_grad():
        for p in body.missing.values():
            p.fill_(7.0)
    return body


def without(x: tuple, photo=(), row=(), note=()) -> tuple:
    "The batch with some of its inputs missing, as the loader gives it."
    image, (cats, conts), ids = x[0].clone(), (x[1][0].clone(), x[1][1].clone()), x[2].clone()
    image[list(photo)], cats[list(row)], conts[list(row)], ids[list(note)] = torch.nan, -1, torch.nan, 1
    return image, Row((cats, conts)), ids


def test_a_missing_input_gives_a_learned_vector(gappy):
    gappy.eval()
    x = batch()
    gappy.check_inputs(without(x, [1], [2], [0, 3]))
    full, out = gappy(*x), gappy(*without(x, [1], [2], [0, 3]))
    for tap, gone in (("photo.layer3", [1]), ("row.features", [2]), ("note.features", [0, 3])):
        there = [i for i in range(4) if i not in gone]
        assert torch.allclose(out[tap][there], full[tap][there], atol=1e-5)
        assert (out[tap][gone] == 7).all() and out[tap].shape == full[tap].shape


def test_batch_norm_does_not_see_a_missing_input(gappy):
    gappy.train()
    x = batch()
    state = {k: v.clone() for k, v in gappy.state_dict().items()}
    gappy(*without(x, [1, 2], [0], [3]))
    moved = {k: v.clone() for k, v in gappy.state_dict().items()}
    assert all(v.isfinite().all() for v in moved.values() if v.is_floating_point())
    gappy.load_state_dict(state)
    gappy["photo"](x[0][[0, 3]])
    gappy["row"](Row((x[1][0][1:], x[1][1][1:])))
    for k, v in gappy.state_dict().items():
        assert torch.allclose(moved[k].float(), v.float(), atol=1e-5), k


@pytest.mark.parametrize("gone", [range(4), range(3)], ids=["all", "all but one"])
def test_a_batch_without_an_input_reaches_every_parameter_and_moves_no_batch_norm(gappy, gone):
    gappy.train()
    gappy.zero_grad()
    before = {k: v.clone() for k, v in gappy.state_dict().items() if "running" in k}
    out = gappy(*without(batch(), gone, gone, gone))
    assert all(t.isfinite().all() and len(t) == 4 for t in out.values())
    sum(t.sum() for t in out.values()).backward()
    assert not [k for k, p in gappy.named_parameters() if p.grad is None]
    assert all(torch.equal(v, gappy.state_dict()[k]) for k, v in before.items())
    assert all(m.training for m in gappy.modules())


def test_an_item_without_any_input_is_refused(gappy):
    with pytest.raises(HeadsError, match=r"items \[2\] of the batch have none"):
        gappy.check_inputs(without(batch(), [1, 2], [2], [2, 3]))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x: (x[1], x[0], x[2]), r"input 'photo'.*takes images"),
        (lambda x: (x[2], x[1], x[0]), r"input 'photo'.*takes images"),
        (lambda x: (x[0], x[2], x[1]), r"input 'row': TabularBody takes a row"),
        (lambda x: (x[0], x[1]), r"read 3 inputs \(photo, row, note\), and the batch has 2"),
        (lambda x: (x[0][:, :1], x[1], x[2]), r"input 'photo'.*images of 3 channels, found 1"),
        (lambda x: (x[0], x[1], x[2] + 40), r"input 'note': AWD_LSTM knows 30 tokens"),
        (lambda x: (x[0], x[1], x[2] * 0 + 1), r"input 'note': 4 of 4 texts in the batch have no token"),
        (lambda x: (x[0], Row((x[1][0] + 9, x[1][1])), x[2]), r"column 'kind' has codes below 4"),
        (
            lambda x: (x[0], Row((x[1][0], x[1][1].double()[:, :1])), x[2]),
            r"input 'row'.*2 columns of numbers \(u, v\)",
        ),
        (lambda x: (x[0], Row((x[1][1], x[1][0])), x[2]), r"input 'row': codes are integers"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(bodies, change, match):
    bodies.check_inputs(batch())
    with pytest.raises(HeadsError, match=match):
        bodies.check_inputs(change(batch()))


class GatedSum(nn.Module):
    "Vectors of several bodies brought to one width and added, each by its share: a fusion trunk."

    def __init__(self, channels: list[int], width: int = 8):
        super().__init__()
        self.to_width = nn.ModuleList([nn.Linear(c, width) for c in channels])
        self.gate = nn.Linear(sum(channels), len(channels))

    def forward(self, taps: dict[str, torch.Tensor]) -> torch.Tensor:
        vectors = [t.mean((2, 3)) if t.ndim == 4 else t for t in taps.values()]
        shares = self.gate(torch.cat(vectors, 1)).softmax(1)
        return sum(s[:, None] * to(v) for s, to, v in zip(shares.T, self.to_width, vectors))


class CrossAttention(nn.Module):
    "Every place of a map asks the tokens of a text: a fusion trunk. A token of zeros is none."

    def __init__(self, channels: list[int]):
        super().__init__()
        n_map, n_token = channels
        self.attention = nn.MultiheadAttention(n_map, 2, kdim=n_token, vdim=n_token, batch_first=True)

    def forward(self, taps: dict[str, torch.Tensor]) -> torch.Tensor:
        image, tokens = taps.values()
        places = image.flatten(2).transpose(1, 2)
        found, _ = self.attention(places, tokens, tokens, key_padding_mask=(tokens == 0).all(2))
        return image + found.transpose(1, 2).view_as(image)


@pytest.mark.parametrize(
    ("fusion", "taps"),
    [(GatedSum, ALL), (CrossAttention, ("photo.layer3", "note.tokens"))],
    ids=["gated sum", "cross-attention"],
)
def test_a_fusion_trunk_does_not_depend_on_padding(fusion, taps):
    bodies = three(tuple(dict.fromkeys((*ALL, *taps)))).eval()
    trunk = Trunk(fusion, tap=taps).build([bodies.channels[t] for t in taps]).eval()
    x = batch()
    padded = torch.cat([torch.ones(4, 3, dtype=torch.long), x[2], torch.ones(4, 6, dtype=torch.long)], 1)
    longer = torch.cat([padded, torch.randint(2, 30, (1, 16))])
    others = (torch.cat([x[0], x[0][:1]]), Row(torch.cat([t, t[:1]]) for t in x[1]), longer)
    with torch.no_grad():
        alone, beside = bodies(*x), bodies(*others)
        a, b = (trunk(OrderedDict((t, out[t]) for t in taps)) for out in (alone, beside))
    assert torch.allclose(a, b[:4], atol=1e-5)


def test_one_image_body_keeps_its_answers_of_the_contract():
    body = cut_body(net())
    assert body.restrict(["features"]) is body
    assert len(body.held()) == len(list(body.parameters()))
    x = torch.randn(2, 3, 8, 8)
    x[1] = torch.nan
    assert body.absent(x).tolist() == [False, True]
