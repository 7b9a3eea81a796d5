"""What the inputs of a batch are: a body is built for a described input."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastai.data.core import DataLoaders, Datasets, TfmdLists
from fastai.data.transforms import ColReader
from fastcore.foundation import L
from fasttransform import Transform

from fastai_heads.data.partial import Partial
from fastai_heads.data.rows import ReadRow
from fastai_heads.data.text_part import text_class
from fastai_heads.data.texts import ReadTokens
from fastai_heads.errors import HeadsError
from fastai_heads.names import usable_name

__all__ = ["ImageInput", "Input", "RowInput", "TellsInput", "TextInput", "columns_of", "dls_inputs"]


@dataclass(frozen=True)
class Input:
    "One input of a batch. The kinds of input that a body is built for are subclasses."

    name: str  # an identifier, from the getter's column or the kind
    partial: bool = False  # some items have none
    kind = "input"  # its name where no column gives one
    a = "an input"  # what it is, in messages
    arch = "a `BodySpec` that reads it"  # what a user writes for its body


@dataclass(frozen=True)
class ImageInput(Input):
    "An image, or another tensor that an arch of an image takes."

    kind = "image"
    a = "an image"
    arch = "'resnet18'"


@dataclass(frozen=True)
class RowInput(Input):
    "A row of a table: (B, n_cat) codes and (B, n_cont) numbers."

    cat_names: tuple[str, ...] = ()  # the columns of categories, those of gaps that were filled among them
    sizes: tuple[int, ...] = ()  # how many codes each has, `#na#` among them
    cont_names: tuple[str, ...] = ()  # the columns of numbers
    kind = "row"
    a = "a row of a table"
    arch = "TabularBody(layers=[200, 100])"


@dataclass(frozen=True)
class TextInput(Input):
    "A text as (B, L) ids of tokens."

    vocab: tuple[str, ...] = ()  # the tokens, in the order of their ids; () where only their number is known
    n_tokens: int = 0  # how many ids there are
    pad_idx: int = 1  # the id that fills a batch up
    kind = "text"
    a = "a text"
    arch = "TextBody(AWD_LSTM)"


class TellsInput:
    "A transform that makes an input and knows its kind. The block of an input of one's own has one."

    def tell_input(self) -> tuple[type[Input], dict[str, Any]]:
        "Tell the kind of the input, and its fields besides `name` and `partial`."
        raise NotImplementedError


def dls_inputs(
    dls: DataLoaders,  # over `Datasets`, as from a `DataBlock`
) -> tuple[Input, ...]:  # in the order of the blocks
    "Describe the inputs of `dls`: what kind each is, and what a body has to know of it."
    ds = getattr(dls, "train_ds", None)
    if not isinstance(ds, Datasets):
        raise HeadsError(
            "`dls` holds fastai `Datasets`, whose inputs can be told; "
            f"found a training set of type {type(ds).__name__}."
        )
    found: list[Input] = []
    for tl in ds.tls[: ds.n_inp]:
        found.append(_describe(tl, [i.name for i in found], _pad_idx(dls)))
    return tuple(found)


def _describe(tl: TfmdLists, taken: list[str], pad_idx: int) -> Input:
    "Describe one input by its transforms."
    tfms = list(_flat(tl))
    kind, more = ImageInput, {}
    for f in tfms:
        if isinstance(f, ReadRow):
            kind, more = RowInput, {"cat_names": f.cat_names, "sizes": f.sizes, "cont_names": f.cont_names}
        elif isinstance(f, text_class("Numericalize")):
            kind, more = TextInput, {"vocab": tuple(f.vocab), "n_tokens": len(f.vocab), "pad_idx": pad_idx}
        elif isinstance(f, ReadTokens):
            kind, more = TextInput, {"n_tokens": f.n_tokens, "pad_idx": f.pad_idx}
        elif isinstance(f, TellsInput):
            kind, more = f.tell_input()
    columns = [] if kind is RowInput else columns_of(tl)
    raw = columns[0] if len(columns) == 1 and isinstance(columns[0], str) else kind.kind
    partial = any(isinstance(f, Partial) or getattr(f, "partial", False) for f in tl.tfms.fs)
    return kind(usable_name(raw, taken), partial, **more)


def columns_of(
    tl: TfmdLists,  # an input or a target
) -> list[str | int]:
    "List the columns of a frame that are read; none where its getter reads none by name."
    tfms = list(_flat(tl))
    rows = next((f.columns for f in tfms if isinstance(f, ReadRow)), ((), ()))
    # fastai's tokenizer moves the texts of a column into one that it calls 'text'
    texts = [c for f in tfms if isinstance(f, text_class("Tokenizer")) for c in L(f.text_cols)]
    return [c for part in rows for c in part] or texts or [c for f in tfms if isinstance(f, ColReader) for c in f.cols]


def _flat(tl: TfmdLists) -> Iterator[Transform]:
    "Walk the transforms of an input, with those inside a `Partial` in its place."
    for f in tl.tfms.fs:
        yield from f.tfms.fs if isinstance(f, Partial) else [f]


def _pad_idx(dls: DataLoaders) -> int:
    "Find the id that fastai's padding writes; 1 where a loader pads in another way."
    found: list[Any] = [getattr(f, "pad_idx", None) for f in dls.train.before_batch.fs]
    return next((p for p in found if isinstance(p, int)), 1)
