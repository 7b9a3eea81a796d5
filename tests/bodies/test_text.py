"""The body of a text: fastai's encoder and pooling, and no trace of padding or of the texts beside it."""

import copy
import pickle

import pytest
import torch
from fastai.text.data import Pad_Chunk, TensorText
from fastai.text.learner import match_embeds
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_lm_config
from fastai.text.models.core import get_language_model, get_text_classifier, masked_concat_pool
from torch import Tensor, nn

from fastai_heads.bodies.text import TextBody
from fastai_heads.bodies.words import left_aligned
from fastai_heads.data.inputs import RowInput, TextInput
from fastai_heads.errors import HeadsError

CONFIG = {"emb_sz": 8, "n_hid": 12, "n_layers": 2}
VOCAB = ("xxunk", "xxpad", *(f"w{i}" for i in range(48)))
NOTE = TextInput("note", vocab=VOCAB, n_tokens=50)
PART = 10  # tokens that are read at a time
LENGTHS = (37, 25, 20, 10, 4, 1)


def body_of(taps=("features", "tokens"), source=NOTE, **kwargs):
    return TextBody(AWD_LSTM, config=CONFIG, seq_len=PART, **kwargs).find(source).build(taps).eval()


def text(n: int) -> Tensor:
    return torch.randint(2, 50, (n,))


def padded(ids: Tensor, left: int, right: int, pad: int = 1) -> Tensor:
    return torch.cat([ids.new_full((left,), pad), ids, ids.new_full((right,), pad)])


@pytest.fixture(scope="module")
def body():
    return body_of()


@pytest.fixture(scope="module")
def texts() -> list[Tensor]:
    return [text(n) for n in LENGTHS]


def fastais(body, max_len: int = 1440):
    "fastai's encoder and pooling with the body's weights."
    encoder = get_text_classifier(AWD_LSTM, 50, 3, seq_len=PART, config=CONFIG, max_len=max_len)[0].eval()
    encoder.module.load_state_dict(body.net.state_dict())
    return lambda ids: masked_concat_pool(*encoder(ids), PART)


@torch.no_grad()
def test_the_same_ids_give_fastais_numbers(body, texts):
    reference = fastais(body)
    for ids in texts:
        assert torch.allclose(body(ids[None])["features"], reference(ids[None]), atol=1e-6)


@torch.no_grad()
def test_a_text_longer_than_max_len_is_pooled_at_its_end_as_fastais(texts):
    short = body_of(max_len=20)
    reference = fastais(short, max_len=20)
    alone = [short(ids[None])["features"] for ids in texts]
    for ids, vector in zip(texts, alone):
        assert torch.allclose(vector, reference(ids[None]), atol=1e-6)
    beside = short(torch.stack([padded(ids, 0, 37 - len(ids)) for ids in texts]))["features"]
    assert torch.allclose(beside, torch.cat(alone), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("left", [0, 3, 8, 10, 30])
@pytest.mark.parametrize("right", [0, 2, 10, 17])
def test_a_text_does_not_depend_on_padding_or_on_the_texts_beside_it(body, texts, left, right):
    long = max(LENGTHS)
    for shift in (0, 1):  # short texts padded at their ends, or in front
        batch = [padded(t, shift * (long - len(t)), (1 - shift) * (long - len(t))) for t in texts]
        batch = torch.stack([padded(t, left, right) for t in batch])[torch.randperm(len(texts))]
        out = body(batch)
        for ids, vector, tokens in zip(batch, out["features"], out["tokens"]):
            own = ids[ids != 1]
            alone = body(own[None])
            assert torch.allclose(vector, alone["features"][0], atol=1e-6)
            assert torch.allclose(tokens[: len(own)], alone["tokens"][0], atol=1e-6)
            assert (tokens[len(own) :] == 0).all()


@torch.no_grad()
def test_fastais_own_batches_give_what_each_text_gives(body, texts):
    "Where fastai's own pooling takes its last state from the padding before a text."
    batch = torch.stack([s[0] for s in Pad_Chunk(seq_len=PART)([(TensorText(t),) for t in texts])]).as_subclass(Tensor)
    alone = torch.cat([body(t[None])["features"] for t in texts])
    assert torch.allclose(body(batch)["features"], alone, atol=1e-6)
    assert (fastais(body)(batch) - alone).abs().max() > 0.01


def test_left_aligned_keeps_the_order_of_the_tokens():
    ids = torch.tensor([[1, 1, 5, 6, 1], [7, 8, 9, 1, 1], [1, 1, 1, 1, 1]])
    moved, lengths = left_aligned(ids, 1)
    assert moved.tolist() == [[5, 6, 1], [7, 8, 9], [1, 1, 1]] and lengths.tolist() == [2, 3, 0]


def test_every_parameter_gets_a_gradient_and_is_in_one_group(texts):
    body = body_of().train()
    out = body(torch.stack([padded(t, 0, 37 - len(t)) for t in texts]))
    assert {k: v.shape[-1] for k, v in out.items()} == body.channels == {"features": 24, "tokens": 8}
    sum(t.sum() for t in out.values()).backward()
    assert not [k for k, p in body.named_parameters() if p.grad is None]
    early, late = body.groups()
    assert early and late and sorted(map(id, (*early, *late))) == sorted(map(id, body.parameters()))
    assert torch.equal(copy.deepcopy(body).net.encoder.weight, body.net.encoder.weight), "after a step too"
    assert pickle.loads(pickle.dumps(body)).taps == body.taps


def test_a_text_without_a_token_is_finite_and_told(body):
    ids = torch.stack([padded(text(3), 0, 2), torch.ones(5, dtype=torch.long)])
    assert body.absent(ids).tolist() == [False, True]
    assert (body(ids)["features"][1] == 0).all()
    assert body(*body.blank(ids))["features"].isfinite().all()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "What `save_encoder` writes of a language model, and the model."
    lm = get_language_model(AWD_LSTM, 50, {**awd_lstm_lm_config, **CONFIG})
    path = tmp_path_factory.mktemp("lm") / "encoder.pth"
    torch.save(lm[0].state_dict(), path)
    return path, lm


def test_weights_come_from_save_encoder(saved):
    path, lm = saved
    for name in (path, path.with_suffix("")):
        body = body_of(weights=name)
        assert all(torch.equal(v, lm[0].state_dict()[k]) for k, v in body.net.state_dict().items())
    assert body.weights == "encoder" and len(body.held()) == len(list(body.parameters()))
    assert body_of().held() == []


def test_weights_of_another_vocabulary_are_taken_by_token(saved):
    path, lm = saved
    new = ("xxunk", "xxpad", "w7", "never seen", "w3")
    body = body_of(weights=path, vocab=VOCAB, source=TextInput("note", vocab=new, n_tokens=5))
    old = lm[0].encoder.weight
    want = match_embeds({"0.encoder.weight": old.data.clone()}, list(VOCAB), list(new))["0.encoder.weight"]
    assert torch.equal(body.net.encoder.weight, want)
    assert torch.equal(want[2], old[9]) and torch.allclose(want[3], old.mean(0))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda path: body_of(weights="nowhere"), "there is no file nowhere.pth"),
        (lambda path: body_of(weights=path, source=TextInput("note", n_tokens=9)), "50 tokens, and the data has 9"),
        (lambda path: TextBody(AWD_LSTM, weights=path).find(NOTE).build(["features"]), "model's `config="),
        (lambda path: body_of(vocab=VOCAB), "`vocab` of TextBody is that of its `weights`"),
        (lambda path: TextBody(AWD_LSTM, config={"bidir": True}), "leave `bidir` out"),
        (lambda path: TextBody(nn.LSTM), r"`pip install fastai_heads\[text\]`"),
        (lambda path: TextBody(AWD_LSTM, pool="last"), "`pool` of TextBody is 'mean' or 'first', found 'last'"),
        (lambda path: TextBody(AWD_LSTM).find(RowInput("row")), "input 'row' is a row of a table"),
        (lambda path: body_of(["layer1"]), "AWD_LSTM does not have"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused(saved, make, match):
    with pytest.raises(HeadsError, match=match):
        make(saved[0])


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ((torch.randn(2, 3, 8, 8),), "takes a text as ids"),
        ((torch.randn(2, 3),), "takes a text as ids"),
        ((torch.full((2, 3), 50),), "AWD_LSTM knows 50 tokens, found the id 50"),
        ((torch.ones(2, 3, dtype=torch.long),), "2 of 2 texts in the batch have no token"),
        ((), "takes a text as ids"),
    ],
)
def test_inputs_that_are_no_texts_are_refused(body, inputs, match):
    body.check_inputs((text(4)[None],))
    with pytest.raises(HeadsError, match=match):
        body.check_inputs(inputs)


def test_without_dropout_it_trains_and_keeps_its_names(texts):
    body = TextBody(AWD_LSTM, config=CONFIG, drop_mult=0.0).find(NOTE).build(["features"]).train()
    names = list(body.state_dict())
    for _ in range(2):
        body(texts[0][None])["features"].sum().backward()
    assert list(body.state_dict()) == names
    assert all(p.grad is not None for p in body.parameters())
