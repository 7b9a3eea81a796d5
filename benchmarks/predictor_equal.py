"""Whether a predictor says what `learn.predict` says, item by item: every kind of head, and of input.

    python -m benchmarks.predictor_equal

Prints, of 100 items each, how many answers are the same, and the largest difference of a number. Untrained networks,
whose answers differ from item to item as those of trained ones do. Goal: all the same."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import fastai.vision.all  # noqa: F401
import numpy as np
import pandas as pd
import torch
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
from fastai.data.transforms import ColReader, IndexSplitter
from fastai.vision.augment import Resize
from fastai.vision.data import ImageBlock
from torch import nn

from fastai_heads import (
    DetectionHead,
    PartialBlock,
    TabularBlock,
    TabularBody,
    TextBody,
    TokenizerBlock,
    digits_dls,
    load_bundle,
    multihead_learner,
)
from fastai_heads.data.captions import captioned_scenes

N = 100
TARGETS = ("digit", "tags", "ink", "centre", "box", "mask", "boxes")


def stirred(learn: Any) -> Any:
    "Let batch norm tell items apart, which an untrained one hardly does."
    torch.manual_seed(0)
    with torch.no_grad():
        for module in learn.model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return learn


def off(answer: Any, decoded: Any, activated: Any) -> float:
    "Tell how far an answer is from the learner's; infinity where a label differs."
    kind = type(answer).__name__
    if kind == "Label":
        same, pair = str(answer.label) == str(decoded), (answer.probability, float(activated.max()))
    elif kind == "Tags":
        same, pair = list(answer.labels) == list(decoded), (list(answer.probabilities.values()), activated.tolist())
    elif kind == "Mask":
        same, pair = np.array_equal(answer.codes, np.asarray(decoded)), (0, 0)
    elif kind == "Detections":
        same, pair = answer.labels == decoded.labels, (answer.scores, decoded.scores)
    else:
        same, pair = True, (answer, np.asarray(decoded).reshape(np.shape(answer)))
    return float(np.max(np.abs(np.subtract(*pair)), initial=0)) if same else float("inf")


def compare(what: str, learn: Any, items: list[Any], rows: list[Any]) -> None:
    "Print a row for each head."
    with tempfile.TemporaryDirectory() as folder:
        predictor = load_bundle(learn.save_bundle(Path(folder) / "b"))
    found: dict[str, list[float]] = {head: [] for head in predictor.heads}
    with learn.no_bar(), learn.no_logging():
        for item, row in zip(items, rows):
            decoded, _, activated = learn.predict(row)
            for head, answer in predictor(item).pairs():
                found[head].append(off(answer, decoded[head], activated[head]))
    for head, differences in found.items():
        same = sum(d == 0 for d in differences)
        print(f"{what:28} {head:8} {same} of {len(differences)} the same, largest difference {max(differences):.2g}")


def make_gaps(folder: Path) -> tuple[Any, pd.DataFrame]:
    "Make a learner over an image, a row and a text, of which each may be missing."
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel

    frame = captioned_scenes(folder, n=N, size=48)
    words = {w: i for i, w in enumerate(["[UNK]", "[PAD]", *sorted(set(" ".join(frame.caption).split()))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **sizes))
    gaps = np.random.default_rng(0).random((N, 3)) < 0.25
    frame["photo"] = [None if gap else folder / image for gap, image in zip(gaps[:, 0], frame.image)]
    frame["note"] = frame.caption.where(~gaps[:, 1], None)
    frame["shade"] = pd.Series(["dark" if "even" in tags else "pale" for tags in frame.tags]).where(~gaps[:, 2], None)
    frame["width"] = pd.Series(np.arange(N, dtype=float)).where(~gaps[:, 2])
    inputs = (ImageBlock, TabularBlock(["shade"], ["width"]), TokenizerBlock(tokenizer))
    dls = DataBlock(
        blocks=(*map(PartialBlock, inputs), CategoryBlock, CategoryBlock(vocab=list("0123456789")), RegressionBlock),
        getters=[ColReader("photo"), lambda row: row, *map(ColReader, ("note", "holds", "digit", "ink"))],
        n_inp=3,
        splitter=IndexSplitter(range(20)),
        item_tfms=Resize(40),
    ).dataloaders(frame, bs=16, num_workers=0)
    arch = {"photo": "resnet10t", "row": TabularBody(layers=[20, 10]), "note": TextBody(encoder)}
    return stirred(multihead_learner(dls, arch, pretrained=False)), frame


def main() -> None:
    "Print the table."
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    dls = digits_dls(TARGETS, bs=16, path=folder / "a", n=N, size=64)
    boxes = DetectionHead(channels=64, score_thresh=0.0, decode_score=0.01)
    learn = stirred(multihead_learner(dls, "resnet10t", {"boxes": boxes}, pretrained=False))
    frame = pd.read_csv(folder / "a" / "labels.csv", dtype={"digit": str})
    compare("images", learn, [folder / "a" / image for image in frame.image], [row for _, row in frame.iterrows()])
    learn, frame = make_gaps(folder / "b")
    rows = [row for _, row in frame.iterrows()]
    compare("image, row, text, with gaps", learn, frame.to_dict("records"), rows)


if __name__ == "__main__":
    main()
