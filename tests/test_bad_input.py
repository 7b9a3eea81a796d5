"""What careless and hostile users write, entry point by entry point: a row of `bad_input.tsv` is a call, and the words
that its refusal must hold. Nothing has changed afterwards: no learner, no file, no random state."""

import json
import random
import re
import shutil
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import fastai.vision.all
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import ColReader, IndexSplitter
from fastai.learner import Learner
from fastai.vision.data import ImageBlock
from PIL import Image
from torch import nn
from torchjd.aggregation import UPGrad
from torchjd.scalarization import UW

import fastai_heads
from fastai_heads import HeadsError, TabularBlock, TabularBody, TextBody, TokenizerBlock, digits_dls, multihead_learner
from fastai_heads.__main__ import main

TABLE = Path(__file__).with_suffix(".tsv").with_name("bad_input.tsv")
LINES = TABLE.read_text(encoding="utf-8").splitlines()
ROWS = [line.split("\t") for line in LINES if line and not line.startswith("#")]
ALL = ("digit", "tags", "ink", "centre", "box", "mask", "boxes")
DIGITS = list("0123456789")


def quiet(learn: Learner) -> Learner:
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.logger = lambda row: None
    return learn


def words() -> object:
    "Make a tokenizer of a few words."
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = ["[UNK]", "[PAD]", "the", "digit", "here"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def encoder() -> nn.Module:
    "Make a small network of transformers."
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return BertModel(BertConfig(vocab_size=5, max_position_embeddings=32, **sizes))


def cli(*args: str) -> None:
    "Run the command line; what it refuses is raised, with what it prints."
    said = StringIO()
    try:
        with redirect_stderr(said):
            code = main(args)
    except SystemExit as end:
        code = end.code
    if code:
        raise HeadsError(said.getvalue().strip().splitlines()[-1])


class Images:
    "Learners and data of images, for rows."

    def __init__(self, out: Path):
        self.out, self.scenes = out, out / "scenes"
        self.three, self.seven = self.dls(), self.dls(*ALL)
        self.df = pd.read_csv(self.scenes / "labels.csv", dtype={"digit": str})
        self.image = self.scenes / self.df.image[0]
        self.learn = self.make()

    def dls(self, *targets: str) -> DataLoaders:
        found = digits_dls(targets or ("digit", "ink", "box"), bs=8, path=self.scenes, n=20, size=32)
        found.path = self.out
        return found

    def make(self, heads: Any = None, dls: DataLoaders | None = None, arch: Any = "test_resnet", **kwargs) -> Learner:
        return quiet(multihead_learner(dls or self.three, arch, heads, **{"pretrained": False, **kwargs}))

    def wide(self, heads: Any = None) -> Learner:
        return self.make(heads, self.seven)

    def one(self, block: Any, column: str | Callable = "digit", df: pd.DataFrame | None = None) -> Learner:
        "Make a learner of one block, or of the data that it stands for."
        get_y = ColReader(column) if isinstance(column, str) else column
        splitter = IndexSplitter(range(4))
        get_x = ColReader("image", pref=self.scenes)
        data = DataBlock((ImageBlock, block), get_x=get_x, get_y=get_y, splitter=splitter)
        return self.make(None, data.dataloaders(self.df if df is None else df, num_workers=0, bs=4))


class Tables:
    "Learners and data of rows, and of images, rows and texts together."

    def __init__(self, images: Images):
        rng, self.out = np.random.default_rng(0), images.out
        numbers = {"u": rng.normal(size=40), "v": rng.normal(5, 2, 40), "mass": rng.normal(4000, 300, 40)}
        self.tab = pd.DataFrame({"kind": rng.choice(list("xyz"), 40), **numbers, "sex": rng.choice(list("mf"), 40)})
        self.caps = images.df.assign(note="the digit", shade=["dark", "pale"] * 10, num=rng.normal(size=20))
        self.scenes, self.archs = images.scenes, {"image": "test_resnet", "row": TabularBody(layers=[6])}
        self.archs["note"] = TextBody(encoder())
        self.rows, self.s3 = self.mtab(), self.sdls()
        self.sev = self.msev()

    def tdls(self, frame: pd.DataFrame | None = None, block: Any = None) -> DataLoaders:
        blocks = (block or TabularBlock(["kind"], ["u", "v"]), CategoryBlock(), RegressionBlock())
        readers = [ColReader("sex"), ColReader("mass")]
        data = DataBlock(blocks, n_inp=1, get_y=readers, splitter=IndexSplitter(range(8)))
        return data.dataloaders(self.tab if frame is None else frame, bs=8, num_workers=0, path=self.out)

    def mtab(self, heads: Any = None, dls: DataLoaders | None = None, arch: Any = None, **kwargs) -> Learner:
        return quiet(multihead_learner(dls or self.tdls(), arch or TabularBody(layers=[6]), heads, **kwargs))

    def sdls(self, frame: pd.DataFrame | None = None, n_inp: int = 3) -> DataLoaders:
        row, note = TabularBlock(["shade"], ["num"]), TokenizerBlock(words())
        blocks = (ImageBlock, row, note, CategoryBlock(vocab=DIGITS), RegressionBlock)
        readers = [ColReader("image", pref=self.scenes), lambda r: r, *map(ColReader, ("note", "digit", "ink"))]
        data = DataBlock(blocks, n_inp=n_inp, getters=readers, splitter=IndexSplitter(range(4)))
        return data.dataloaders(self.caps if frame is None else frame, bs=8, num_workers=0, path=self.out)

    def msev(self, arch: Any = None, heads: Any = None, dls: DataLoaders | None = None) -> Learner:
        return quiet(multihead_learner(dls or self.s3, arch or self.archs, heads, pretrained=False))


class Files:
    "Files that are damaged, for rows."

    def __init__(self, out: Path):
        self.out = out

    def damaged(self, change: Callable[[dict], Any]) -> Path:
        "Copy a bundle, and change its manifest."
        folder = self.out / "damaged"
        shutil.copytree(self.out / "bundle", folder, dirs_exist_ok=True)
        said = json.loads((folder / "manifest.json").read_text())
        change(said)
        (folder / "manifest.json").write_text(json.dumps(said))
        return folder

    def heads_file(self, name: str, text: str) -> Path:
        (self.out / "damaged" / name).write_text(text)
        return self.out / "damaged" / name


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, Any]:
    "Give all the names that a row may use."
    out = tmp_path_factory.mktemp("world")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = Images(out)
        tables, files = Tables(images), Files(out)
    learn, rows, sev = images.learn, tables.rows, tables.sev
    (out / "damaged").mkdir()
    names = {name: getattr(fastai.vision.all, name) for name in dir(fastai.vision.all)} | {
        name: getattr(fastai_heads, name) for name in fastai_heads.__all__
    }
    for one in (images, tables, files):
        names |= {n: getattr(one, n) for n in (*vars(one), *vars(type(one))) if not n.startswith("_")}
    predictors = {}
    for name, learner in (("P", learn), ("PR", rows), ("PS", sev)):
        folder = out / ("bundle" if name == "P" else f"bundle_{name}")
        learner.save_bundle(folder)
        predictors[name] = fastai_heads.load_bundle(folder)
    learn.save(out / "ours")
    return (
        names
        | predictors
        | {
            "SA": tables.archs,
            "out": out,
            "cli": cli,
            "words": words,
            "encoder": encoder,
            "UPGrad": UPGrad,
            "UW": UW,
            "np": np,
            "pd": pd,
            "torch": torch,
            "nn": nn,
            "Image": Image,
        }
    )


def state(world: dict[str, Any]) -> tuple:
    "Take everything that a refusal must leave alone, but for the damaged files that the rows themselves write."
    learners = [world[name] for name in ("learn", "rows", "sev")]
    weights = [t.clone() for learn in learners for t in learn.model.state_dict().values()]
    out, folder = world["out"], world["out"] / "damaged"
    files = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p != folder and folder not in p.parents}
    settings = [
        (
            learn.heads.names,
            [h.loss_weight for h in learn.heads.values()],
            learn.dls,
            learn.model,
            list(learn.cbs),
            [*learn.metrics],
            learn.strategy,
            learn.lr,
            learn.opt,
            learn.opt_func,
            learn.loss_func,
        )
        for learn in learners
    ]
    return weights, files, settings


DRAWS = re.compile(
    r"nn\.[A-Z]|encoder\(|dls\(|_dl\(|one\(|"
    r"UW\(|DataBlock|DataLoaders|loader|mtab\(|make\(strategy=UPGrad\(\)|cli\("
)
"In a call: what draws numbers itself, a layer of torch or a loader of fastai, before anything of ours is called."


def random_state() -> tuple:
    return random.getstate(), tuple(np.random.get_state()[1]), tuple(torch.get_rng_state().tolist())


def same_state(one: tuple, other: tuple) -> bool:
    return one == other  # in a call, as pytest would write thousands of numbers


def refusal(call: str, world: dict[str, Any]) -> str:
    "Make a call, and give what its refusal says."
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        with pytest.raises(HeadsError) as refused:
            eval(call, dict(world))
    return str(refused.value)


@pytest.mark.parametrize("row", ROWS, ids=[f"{i}-{row[0][:60]}" for i, row in enumerate(ROWS)])
def test_bad_input_is_refused_by_name_and_nothing_has_changed(world, row):
    call, *expected = row
    before, drawn = state(world), random_state()
    said = refusal(call, world)
    after = state(world)
    assert all(word in said for word in expected) and expected, f"{expected} in: {said}"
    assert not re.search(r"object at 0x|\n.*\n", said), said
    assert all(map(torch.equal, before[0], after[0])) and before[1:] == after[1:]
    assert DRAWS.search(call) or same_state(random_state(), drawn)


def test_there_are_as_many_rows_as_were_asked_for():
    assert len(ROWS) >= 300 and len({row[0] for row in ROWS}) == len(ROWS)
