"""The body of a text that is an encoder of transformers."""

import warnings

import pytest
import torch
from torch import Tensor

from fastai_heads.bodies.text import TextBody
from fastai_heads.data.inputs import TextInput
from fastai_heads.errors import HeadsError, HeadsWarning

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 60,
    "max_position_embeddings": 40, "pad_token_id": 1,
}  # fmt: skip
SPECIAL = {"cls_token_id": 0, "sep_token_id": 2, "bos_token_id": 0, "eos_token_id": 2}
CONFIGS = {
    "Bert": SMALL,
    "Roberta": SMALL,
    "DistilBert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24, "vocab_size": 60, "pad_token_id": 1},
    "DebertaV2": SMALL,
    "Albert": {**SMALL, "embedding_size": 16},
    "ModernBert": {**SMALL, **SPECIAL},
    "T5": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2, "vocab_size": 60, "pad_token_id": 1},
    "GPT2": {
        "n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 60, "pad_token_id": 1, "bos_token_id": 0,
        "eos_token_id": 2,
    },
}  # fmt: skip
NOTE = TextInput("note", n_tokens=60, pad_idx=1)


def network(name: str) -> torch.nn.Module:
    config = getattr(transformers, f"{name}Config")(**CONFIGS[name])
    made = transformers.T5EncoderModel(config) if name == "T5" else transformers.AutoModel.from_config(config)
    return made.eval()


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return network(request.param)


@pytest.fixture(scope="module")
def bert():
    return network("Bert")


def body_of(model, taps=("features", "tokens"), source=NOTE, **kwargs):
    return TextBody(model, **kwargs).find(source).build(taps).eval()


def text(n: int) -> Tensor:
    return torch.randint(5, 60, (1, n))


@torch.no_grad()
@pytest.mark.parametrize("pool", ["mean", "first"])
def test_taps_are_the_networks_hidden_states(model, pool):
    names = [p.name for p in TextBody(model).find(NOTE).points]
    assert names == ["layer0", "layer1", "layer2", "layer3", "tokens", "features"]
    ids, body = text(9), body_of(model, names, pool=pool)
    whole = model(input_ids=ids, output_hidden_states=True)
    out = body(ids)
    assert torch.allclose(out["tokens"], whole.last_hidden_state, atol=1e-6)
    for i, states in enumerate([*whole.hidden_states, whole.last_hidden_state]):
        want = states.mean(1) if pool == "mean" else states[:, 0]
        assert torch.allclose(out[f"layer{i}" if i < 4 else "features"], want, atol=1e-6)
    assert {k: v.shape[-1] for k, v in out.items()} == body.channels


@torch.no_grad()
@pytest.mark.parametrize("left", [0, 8])
@pytest.mark.parametrize("right", [0, 5, 12])
def test_a_text_does_not_depend_on_padding_or_on_the_texts_beside_it(model, left, right):
    body, ids = body_of(model, ("features", "tokens", "layer1")), text(9)
    alone = body(ids)
    padded = torch.cat([ids.new_ones(1, left), ids, ids.new_ones(1, right)], 1)
    out = body(torch.cat([text(padded.shape[1]), padded]))
    for tap, tensor in out.items():
        assert torch.allclose(tensor[1][: 9 if tap == "tokens" else None], alone[tap][0], atol=1e-5)
    assert (out["tokens"][1, 9:] == 0).all()


@pytest.mark.parametrize("tap", ["layer0", "layer1", "layer3", "features"])
def test_what_no_tap_needs_is_not_kept(model, tap):
    body = body_of(model, [tap])
    body.train()(text(9))[tap].sum().backward()
    spare = [k for k, p in body.named_parameters() if p.grad is None]
    assert len(spare) < 3 or tap in ("layer0", "layer3"), "the norm after the last layer at most"
    early, late = body.groups()
    assert sorted(map(id, (*early, *late))) == sorted(map(id, body.parameters()))
    if tap == "layer1" and "Albert" not in body.arch:  # whose layers are one
        assert len([r for r in body.removed if r.name.rpartition(".")[2] in ("1", "2")]) == 2


def test_the_users_network_is_not_touched(bert):
    body = body_of(bert, ["layer1"])
    assert bert.pooler is not None and len(bert.encoder.layer) == 3
    assert not set(map(id, bert.parameters())) & set(map(id, body.parameters()))
    assert [r.name for r in body.removed] == ["pooler", "encoder.layer.1", "encoder.layer.2"]


def test_a_network_with_a_head_gives_its_encoder(bert):
    whole = transformers.BertForSequenceClassification(bert.config).eval()
    body, ids = body_of(whole), text(7)
    with torch.no_grad():
        assert torch.allclose(body(ids)["tokens"], whole.bert(input_ids=ids).last_hidden_state, atol=1e-6)
    assert "classifier" in [r.name for r in body.removed]


def test_an_encoder_with_a_decoder_gives_its_encoder():
    config = transformers.BartConfig(
        d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=60, max_position_embeddings=40, pad_token_id=1,
        bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
    )  # fmt: skip
    whole, ids = transformers.BartModel(config).eval(), text(7)
    with torch.no_grad():
        want = whole.get_encoder()(input_ids=ids).last_hidden_state
        assert torch.allclose(body_of(whole)(ids)["tokens"], want, atol=1e-6)


@pytest.mark.parametrize(("name", "limit"), [("Bert", 40), ("Roberta", 38), ("T5", None), ("GPT2", 1024)])
def test_longer_texts_are_cut_and_it_is_said_once(name, limit):
    body = body_of(network(name))
    assert body.limit == limit
    if limit is None or limit > 100:
        return
    ids = text(limit + 5)
    with pytest.warns(HeadsWarning, match=f"input 'note'.*reads {limit} tokens at most, and a text has {limit + 5}"):
        out = body(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = body(ids)
    assert torch.equal(out["features"], again["features"])
    assert torch.allclose(out["features"], body(ids[:, :limit])["features"], atol=1e-6)


def test_what_was_loaded_is_held(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    loaded = transformers.AutoModel.from_pretrained(tmp_path)
    for body in (body_of(loaded), body_of(bert, pretrained=True)):
        assert body.weights and len(body.held()) == len(list(body.parameters()))
    for body in (body_of(bert), body_of(loaded, pretrained=False)):
        assert body.weights == "" and body.held() == []


def test_another_networks_tokenizer_is_refused(bert):
    with pytest.raises(HeadsError, match="input 'note' has 61 tokens, and BertModel knows 60"):
        body_of(bert, source=TextInput("note", n_tokens=61, pad_idx=1))


def test_inputs_that_are_no_texts_are_refused(bert):
    body = body_of(bert)
    body.check_inputs((text(4),))
    with pytest.raises(HeadsError, match="BertModel knows 60 tokens, found the id 60"):
        body.check_inputs((text(4) * 0 + 60,))
    with pytest.raises(HeadsError, match="takes a text as ids"):
        body.check_inputs((torch.randn(2, 3, 8, 8),))
