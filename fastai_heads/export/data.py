"""What a learner's data does to an input, said as data. Refuses by name a transform that is not in the list."""

from collections.abc import Callable, Iterator
from typing import Any

from fastai.data.core import DataLoaders, Datasets
from fastai.data.transforms import IntToFloatTensor, Normalize, ToTensor
from fastai.tabular.core import Categorify, FillMissing
from fastai.vision.augment import CropPad, RandomCrop, RandomResizedCrop, Resize
from fastai.vision.core import AddMaskCodes, PILImage, PILImageBW, PointScaler
from fasttransform import Transform

from fastai_heads.data.inputs import Input, columns_of, dls_inputs
from fastai_heads.data.partial import Partial
from fastai_heads.data.plain import PlainDatasets
from fastai_heads.data.rows import ReadRow
from fastai_heads.data.text_part import text_class
from fastai_heads.data.texts import ReadTokens
from fastai_heads.errors import HeadsError
from fastai_heads.heads.said import say

__all__ = ["say_inputs"]


def say_inputs(
    dls: DataLoaders,  # of a learner
) -> list[dict[str, Any]]:  # one for each input, in order
    "Say what becomes of each input of an item of the validation set."
    if isinstance(dls.train_ds, PlainDatasets):
        raise HeadsError(
            "`dls` is of a plain Dataset, whose own code makes the inputs, and that cannot be said as data: make the "
            "DataLoaders by a DataBlock."
        )
    if not len(dls.train_ds):
        raise HeadsError("`dls` holds no item; a bundle is saved of a learner that has its data.")
    steps, after = _item_steps(dls), _batch_steps(dls)
    ds = dls.train_ds
    return [_say_input(source, ds, i, steps, after) for i, source in enumerate(dls_inputs(dls))]


def _say_input(source: Input, ds: Datasets, place: int, steps: list[dict], after: dict[str, Any]) -> dict[str, Any]:
    tl = ds.tls[place]
    columns = [str(c) for c in columns_of(tl)]
    said = {"kind": source.kind, "name": source.name, "partial": source.partial, "columns": columns}
    tfms = [g for f in tl.tfms.fs for g in (f.tfms.fs if isinstance(f, Partial) else [f])]
    if source.kind == "row":
        return said | _say_rows(next(f for f in tfms if isinstance(f, ReadRow)), source.name)
    if source.kind == "text":
        return said | _say_text(tfms, source)
    example = next(o for o in (tl[i] for i in range(len(tl))) if not type(o).__name__.startswith("Missing"))
    if type(example) not in (PILImage, PILImageBW):
        raise HeadsError(
            f"input {source.name!r} is made by {tfms[-1].name}, which gives {type(example).__name__}: a bundle says "
            "images of `ImageBlock`, rows of `TabularBlock` and texts."
        )
    mode = example._open_args["mode"]
    width, height = steps[-1]["size"] if steps else example.size
    shape = [height, width, 3 if mode == "RGB" else 1]
    resized = bool(steps)
    return said | {"mode": mode, "steps": steps, "resized": resized, "shape": shape, **after}


# transforms of items and of batches


def _item_steps(dls: DataLoaders) -> list[dict[str, Any]]:
    "Say what the item transforms do to an image of the validation set."
    found = []
    for f in _acting(dls.valid.after_item.fs, "item_tfms"):
        if type(f) not in _STEPS:
            raise HeadsError(_unknown(f, "item_tfms"))
        found.append(_STEPS[type(f)](f))
    for f in dls.valid.before_batch.fs:
        if not _changes_no_image(f) and getattr(f, "name", "").split(" ")[0] not in _PADDING:
            raise HeadsError(_unknown(f, "before_batch"))
    return found


_PADDING = (
    "pad_detections",
    "pad_boxes",
    "pad_input",
    "Pad_Input",
    "Pad_Chunk",
    "pad_input_chunk",
    "pad_chunk",
    "bb_pad",
    "noop",
)


def _batch_steps(dls: DataLoaders) -> dict[str, Any]:
    "Say what the batch transforms do to images of the validation set: a division, and a normalisation."
    found: dict[str, Any] = {"div": None, "mean": None, "std": None}
    for f in _acting(dls.valid.after_batch.fs, "batch_tfms"):
        if isinstance(f, IntToFloatTensor):
            found["div"] = float(f.div) if f.div else None
        elif isinstance(f, Normalize):
            found["mean"], found["std"] = (say(v.flatten().tolist(), "`Normalize`") for v in (f.mean, f.std))
        else:
            raise HeadsError(_unknown(f, "batch_tfms"))
    return found


def _acting(tfms: list[Transform], _where: str) -> Iterator[Transform]:
    "Walk the transforms that may change an image of the validation set."
    for f in tfms:
        if getattr(f, "split_idx", None) != 0 and not _changes_no_image(f):
            yield f


def _changes_no_image(f: Any) -> bool:
    "Tell whether a transform is one of those that prepare targets, texts and what is missing."
    ours = type(f).__module__.startswith("fastai_heads.") or getattr(f, "__module__", "").startswith("fastai_heads.")
    return ours or isinstance(f, ToTensor | PointScaler | AddMaskCodes) or getattr(f, "name", "") == "noop"


def _unknown(f: Any, where: str) -> str:
    name = getattr(f, "name", None) or getattr(f, "__name__", None) or type(f).__name__
    return (
        f"`{where}` holds {str(name).strip()}, which a bundle cannot say: it says "
        f"{', '.join(t.__name__ for t in _STEPS)} for items, IntToFloatTensor and Normalize for batches, and whatever "
        "is for training alone (`split_idx=0`)."
    )


def _resize(f: Resize) -> dict[str, Any]:
    return {
        "name": "resize", "size": list(f.size), "method": f.method, "pad_mode": f.pad_mode, "resample": int(f.mode),
    }  # fmt: skip


def _resized_crop(f: RandomResizedCrop) -> dict[str, Any]:
    return {"name": "resized_crop", "size": list(f.size), "val_xtra": float(f.val_xtra), "resample": int(f.mode)}


_STEPS: dict[type, Callable[[Any], dict[str, Any]]] = {
    Resize: _resize,
    RandomResizedCrop: _resized_crop,
    CropPad: lambda f: {"name": "crop", "size": list(f.size), "pad_mode": f.pad_mode},
    RandomCrop: lambda f: {"name": "crop", "size": list(f.size)},
}


# rows


def _say_rows(read: ReadRow, name: str) -> dict[str, Any]:
    "Say the fitted procs of a table."
    unknown = [f for f in read.to.procs.fs if type(f) not in (Categorify, FillMissing, Normalize)]
    if unknown:
        raise HeadsError(
            f"`procs` of input {name!r} hold {type(unknown[0]).__name__}, which a bundle cannot say: it says "
            "Categorify, FillMissing and Normalize."
        )
    by_type = {type(f): f for f in read.to.procs.fs}
    if read.cat_names and Categorify not in by_type:
        raise HeadsError(f"`procs` of input {name!r}: columns of categories need `Categorify` in a bundle.")
    cats, conts = map(list, read.columns)
    filling = by_type.get(FillMissing)
    fill = dict(getattr(read, "medians", {})) if read.fill_new_gaps else {}
    fill |= dict(filling.na_dict) if filling else {}
    normalize = by_type.get(Normalize)
    stats = {c: [normalize.means[c], normalize.stds[c]] for c in conts} if normalize else {}
    said = {
        "cats": cats,
        "conts": list(read.cont_names),
        "codes": {c: None if c in cats else c.removesuffix("_na") for c in read.cat_names},
        "classes": {c: list(by_type[Categorify].classes[c])[1:] for c in read.cat_names},
        "kinds": dict(getattr(read, "kinds", {})),
        "fill": fill,
        "stats": stats,
    }
    return say(said, f"input {name!r}")


# texts


def _say_text(tfms: list[Transform], source: Any) -> dict[str, Any]:
    "Say a tokenizer and its vocabulary."
    read = next((f for f in tfms if isinstance(f, ReadTokens)), None)
    said = _say_fastai(tfms, source) if read is None else _say_tokenizer(read, source.name)
    return {"pad_idx": source.pad_idx, "tokenizer": said}


def _say_tokenizer(read: ReadTokens, name: str) -> dict[str, Any]:
    "Say a tokenizer of the package `tokenizers`, or one of transformers that is built on it."
    tokenizer = getattr(read.tokenizer, "backend_tokenizer", read.tokenizer)
    if not hasattr(tokenizer, "to_str"):
        raise HeadsError(
            f"input {name!r}: the tokenizer {type(read.tokenizer).__name__} is Python code, which a bundle cannot say; "
            "take its fast form, `AutoTokenizer.from_pretrained(…, use_fast=True)`."
        )
    new = type(tokenizer).from_str(tokenizer.to_str())
    new.no_padding()
    if read.max_len is not None:
        new.enable_truncation(read.max_len)
    elif new.truncation is not None and tokenizer is not read.tokenizer:
        new.no_truncation()
    return {"name": "tokenizers", "text": new.to_str()}


def _say_fastai(tfms: list[Transform], source: Any) -> dict[str, Any]:
    "Say fastai's tokenizer: how it splits, its rules, its vocabulary."
    from fastai.text import core as text_core

    tokenizer = next((f for f in tfms if isinstance(f, text_class("Tokenizer"))), None)
    name = f"input {source.name!r}"
    if tokenizer is None:
        raise HeadsError(
            f"{name} has no tokenizer that a bundle can say: it says fastai's `Tokenizer` and `TokenizerBlock`."
        )
    split = type(tokenizer.tok)
    if split not in (text_core.SpacyTokenizer, text_core.BaseTokenizer):
        raise HeadsError(f"{name}: a bundle says SpacyTokenizer and BaseTokenizer, found {split.__name__}.")
    rules = [getattr(rule, "__name__", "") for rule in tokenizer.rules]
    wrong = [r for r, n in zip(tokenizer.rules, rules) if getattr(text_core, n, None) is not r]
    if wrong:
        raise HeadsError(
            f"{name}: the rule {getattr(wrong[0], '__name__', wrong[0])!r} of its tokenizer is not fastai's."
        )
    if len(getattr(tokenizer, "text_cols", "") if isinstance(getattr(tokenizer, "text_cols", ""), list) else "") > 1:
        raise HeadsError(f"{name} joins several columns of text, which a bundle cannot say: join them in the frame.")
    lang = tokenizer.tok.pipe.__self__.lang if split is text_core.SpacyTokenizer else ""
    kind = "spacy" if split is text_core.SpacyTokenizer else "base"
    return {"name": "fastai", "split": kind, "lang": lang, "rules": rules, "vocab": list(source.vocab)}
