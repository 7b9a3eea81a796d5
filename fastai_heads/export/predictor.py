"""A predictor over a bundle or an ONNX file: one call answers for every head, in the user's terms.

No module that this one imports imports torch: an ONNX file is run where there is none."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastai_heads.errors import MISFITS, HeadsError, first_line, unknown
from fastai_heads.export.answers import decode
from fastai_heads.export.given import take
from fastai_heads.export.images import View
from fastai_heads.export.inputs import InputReader, make_reader
from fastai_heads.export.manifest import check_answers, check_inputs
from fastai_heads.head_tuple import HeadTuple

__all__ = ["Network", "Predictor", "ReadItem", "open_predictor"]


class Network(Protocol):
    "What computes: torch, or an ONNX session."

    def run(self, arrays: Mapping[str, np.ndarray], heads: tuple[str, ...]) -> dict[str, np.ndarray]:
        "Compute what some heads say of a batch: head → (B, …)."


class ReadItem:
    "An item that is read: what stands in a batch for each input, and where its image's pixels lie."

    __slots__ = ("parts", "view")

    def __init__(self, parts: tuple[Any, ...], view: View | None):
        self.parts, self.view = parts, view

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        "The sizes of its images. Items of one batch have the same."
        return tuple(part.shape for part in self.parts if isinstance(part, np.ndarray) and part.ndim == 3)


class Predictor:
    """Answers for items: `predictor(image)` is a `HeadTuple`, `predictor([image, image])` a list of them.

    An item is a path, the bytes of a file, a PIL image, an array (H, W, C) of uint8, a text, a row (dict or Series), or
    for several inputs a dict of them by name. Answers are `Label`, `Tags`, a number or several, places in pixels of the
    image as given, `Mask`, `Detections`. Nothing is kept between calls, and threads may share it."""

    def __init__(
        self,
        manifest: Mapping[str, Any],  # of a bundle
        network: Network,  # what computes
    ):
        check_inputs(take(manifest, "inputs", list))
        check_answers(take(manifest, "answers", dict))
        self.manifest, self.network = manifest, network
        self.readers: dict[str, InputReader] = {said["name"]: make_reader(said) for said in manifest["inputs"]}
        self._heads: dict[str, Mapping[str, Any]] = dict(manifest["answers"])

    @property
    def heads(self) -> tuple[str, ...]:
        "The heads, in order."
        return tuple(self._heads)

    @property
    def inputs(self) -> tuple[str, ...]:
        "The inputs, in order."
        return tuple(self.readers)

    def __call__(
        self,
        items: Any,  # one item, or a list, an array (B, H, W, C) or a DataFrame of them
        heads: str | Sequence[str] | None = None,  # those that answer; None: all. Only what they need is computed
        bs: int = 32,  # items that are computed at once
    ) -> HeadTuple | list[HeadTuple]:
        "Say what the heads say of one item, or of each of several."
        chosen = self.choose(heads)
        if not isinstance(bs, int) or isinstance(bs, bool) or bs < 1:
            raise HeadsError(f"`bs` is how many items are computed at once, at least 1, found {bs!r}.")
        many = _as_many(items)
        if many is None:
            return self.answer([self.read(items)], chosen)[0]
        found: list[HeadTuple] = []
        for start in range(0, len(many), bs):
            found += self.answer([self.read(item) for item in many[start : start + bs]], chosen)
        return found

    def choose(
        self,
        heads: str | Iterable[str] | None = None,  # names; None: all
    ) -> tuple[str, ...]:  # in the order of the heads
        "Check names of heads."
        if heads is None:
            return self.heads
        if not isinstance(heads, str | Iterable):
            raise HeadsError(f"`heads` are names of heads, found {heads!r}. There is {', '.join(self.heads)}.")
        wanted = [heads] if isinstance(heads, str) else list(heads)
        for name in wanted:
            if name not in self._heads:
                raise unknown("head", name, self.heads)
        if not wanted:
            raise HeadsError(f"`heads` is empty. There is {', '.join(self.heads)}.")
        return tuple(name for name in self._heads if name in wanted)

    def read(
        self,
        item: Any,  # one item
    ) -> ReadItem:
        "Read one item. Refuses what cannot be read, by the input's name."
        row = hasattr(item, "keys") and hasattr(item, "__getitem__")
        if len(self.readers) > 1 and not row:
            raise HeadsError(
                f"an item has {len(self.readers)} inputs: a dict {{{', '.join(f'{n!r}: …' for n in self.inputs)}}}, "
                f"found {type(item).__name__}."
            )
        parts, view = [], None
        for reader in self.readers.values():
            part, seen = reader.read(reader.take(item) if row else item)
            parts.append(part)
            view = view or seen
        return ReadItem(tuple(parts), view)

    def answer(
        self,
        items: Sequence[ReadItem],  # of one size, where nothing resizes them
        heads: tuple[str, ...],  # from `choose`
    ) -> list[HeadTuple]:  # one for each item
        "Compute a batch, and say what the heads say of each item."
        return [self.say(found, item) for found, item in zip(self.compute(items, heads), items)]

    def compute(
        self,
        items: Sequence[ReadItem],  # of one size, where nothing resizes them
        heads: tuple[str, ...],  # from `choose`
    ) -> list[dict[str, np.ndarray]]:  # for each item: head → what the network says, (…)
        "Compute a batch: probabilities, numbers, places from −1 to 1, codes, detections."
        arrays: dict[str, np.ndarray] = {}
        for place, reader in enumerate(self.readers.values()):
            arrays |= reader.join([item.parts[place] for item in items])
        found = self.network.run(arrays, heads)
        return [{head: found[head][i] for head in heads} for i in range(len(items))]

    def say(
        self,
        found: Mapping[str, np.ndarray],  # of one item, from `compute`
        item: ReadItem,  # the same
    ) -> HeadTuple:
        "Say in the user's terms what the network says of an item."
        return HeadTuple((self._decode(h, value, item) for h, value in found.items()), found)

    def _decode(self, head: str, value: np.ndarray, item: ReadItem) -> Any:
        "Say what a head says of an item. Refuses an output that is not what the manifest calls it."
        try:
            return decode(self._heads[head], value, item.view)
        except MISFITS as error:
            answer = self._heads[head]["answer"]
            raise HeadsError(
                f"manifest: the answer of {head!r} is {answer!r}, and the output {value.shape} cannot be read so: "
                f"{first_line(error)}."
            ) from error

    @classmethod
    def from_onnx(
        cls,
        file: str | Path,  # what `export_onnx` wrote
        providers: Sequence[str] | None = None,  # onnxruntime's; None: the CPU
        threads: int | None = None,  # that one call uses; None: onnxruntime's choice
    ) -> "Predictor":
        "Make a predictor that runs an ONNX file by onnxruntime, without torch."
        from fastai_heads.export.onnx_session import open_onnx  # here, as onnxruntime is an extra

        return cls(*open_onnx(file, providers, threads))

    def __repr__(self) -> str:
        return f"Predictor({', '.join(self.inputs)} → {', '.join(self.heads)})"


def _as_many(items: Any) -> Sequence[Any] | None:
    "Give a sequence of items; None where it is one item."
    if hasattr(items, "iterrows"):  # a DataFrame
        return [row for _, row in items.iterrows()]
    if isinstance(items, list) or type(items).__name__ == "L":
        return list(items)
    return list(items) if isinstance(items, np.ndarray) and items.ndim == 4 else None


def open_predictor(
    source: str | Path,  # what `save_bundle` or `export_onnx` wrote
    device: str = "cpu",  # where a bundle's network computes
    threads: int | None = None,  # that one call uses; None: all cores
) -> Predictor:
    "Open a bundle by torch, or an ONNX file without it."
    if Path(source).suffix == ".onnx":
        if device != "cpu":
            raise HeadsError(f"`device` is for a bundle; an ONNX file runs on the CPU, found {device!r}.")
        return Predictor.from_onnx(source, threads=threads)
    import torch  # here, as an ONNX file runs where there is none

    from fastai_heads.export.bundle import load_bundle

    try:
        torch.device(device)
    except RuntimeError as error:
        raise HeadsError(f"`device` is one of torch's, such as 'cpu' or 'cuda', found {device!r}.") from error
    if threads is not None:
        torch.set_num_threads(threads)
    return load_bundle(source, device=device)
