"""One look at the data before a learner is made: what it holds, and whatever in it would not train."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.transforms import Normalize
from fastai.torch_core import no_random
from fasttransform import Transform
from torch import Tensor

from fastai_heads.data.bbox_blocks import HALF_PAIRS, join_boxes
from fastai_heads.data.box_items import row_name
from fastai_heads.data.faults import check_labels
from fastai_heads.data.files import Headers, first_missing, spread
from fastai_heads.data.in_image import PLACES, check_places
from fastai_heads.data.inputs import Input, dls_inputs
from fastai_heads.data.labels import Labels, opens_image, read_labels, source_of, split_name
from fastai_heads.data.loader import with_inputs
from fastai_heads.data.mask_faults import Masks, check_masks
from fastai_heads.data.missing import IGNORE_PIXEL
from fastai_heads.data.partial import check_complete
from fastai_heads.data.plain import PlainDatasets, Stated, from_plain
from fastai_heads.data.present import check_present
from fastai_heads.data.sample import Sample, draw_sample
from fastai_heads.data.tabular import from_tabular
from fastai_heads.data.targets import Target, dls_targets
from fastai_heads.data.watched import scaler_of, watch
from fastai_heads.errors import HeadsError, HeadsWarning

__all__ = ["Inspected", "inspect_data"]

_SAMPLE = 64  # images whose sizes are compared


@dataclass(frozen=True)
class Inspected:
    "What was found in data that passed."

    dls: DataLoaders  # one target for each head: boxes joined to their labels, a plain `Dataset` with targets
    inputs: tuple[Input, ...]  # in order
    targets: tuple[Target, ...]  # in order
    sample: Sample | None  # a few training items; None where there is none

    def add_transforms(
        self,
        transforms: Sequence[Transform],  # for batches
    ) -> None:
        """Treat batches as those were that the weights in use saw, save where the data does so already. Images of a
        plain `Dataset` are taken as they are, as its own transforms made them."""
        if isinstance(self.dls.train_ds, PlainDatasets):
            _check_normalized(self, transforms)
            return
        known = self.dls.after_batch.fs
        self.dls.add_tfms([t for t in transforms if not any(isinstance(f, type(t)) for f in known)], "after_batch")


def _check_normalized(data: Inspected, transforms: Sequence[Transform]) -> None:
    "Say what is missing where images of a plain `Dataset` lie between 0 and 1, and the weights saw normalised ones."
    wanted = next((f for f in transforms if isinstance(f, Normalize)), None)
    images = data.sample.inputs(None)[0]
    if wanted is None or not isinstance(images, Tensor) or images.min() < 0 or images.max() > 1:
        return
    mean, std = ([round(float(v), 3) for v in part.flatten()] for part in (wanted.mean, wanted.std))
    warnings.warn(
        "images of a plain Dataset are taken as they are: those of `dls` lie between 0 and 1, and the weights in use "
        f"saw normalised ones. End the Dataset's transforms with `torchvision.transforms.Normalize({mean}, {std})`, "
        "or pass `normalize=False`.",
        HeadsWarning,
        stacklevel=4,
    )


def inspect_data(
    dls: DataLoaders,  # fastai's, over `Datasets`, a table or a plain PyTorch `Dataset`
    stated: Mapping[str, Stated] | None = None,  # name → what the user says of a target that data may not tell
) -> Inspected:
    """Look at all labels and at a few images, once, and refuse what would not train: `HeadsError` naming target, row,
    file and what to do.

    Labels of every split are read, images are not: their files have to be there, and of those that masks and places
    are measured by, the headers are read, 20,000 files at most. Pixels are read of a few dozen masks. What is left is
    raised when it is reached, by row and file. The random state stays as it was."""
    stated = dict(stated or {})
    dls = with_inputs(join_boxes(from_plain(from_tabular(dls), stated)))
    targets = dls_targets(dls)
    check_items(dls)
    inputs = dls_inputs(dls)
    names = tuple(source.name for source in inputs)
    check_complete(dls)
    void = {IGNORE_PIXEL, *(s.void for s in stated.values() if s.void is not None)}
    for n, dl in enumerate(dls.loaders):
        plain = isinstance(dl.dataset, PlainDatasets)  # reading its labels opens its images: checked as they are read
        if not plain:
            check_present(dl.dataset, f"{split_name(n)} set")
            _check_split(dl, split_name(n), names, targets, void)
        watch(dl, split_name(n), (*names, *(t.name for t in targets)))
        if not plain:
            _check_image_sizes(dl)
    return Inspected(dls, inputs, targets, _draw(dls, targets))


def _draw(dls: DataLoaders, targets: tuple[Target, ...]) -> Sample:
    "Draw the sample. Where it makes no batch, say what is missing of a block that stands without its other half."
    try:
        return draw_sample(dls, targets)
    except HeadsError as error:
        hint = next((HALF_PAIRS[t.kind] for t in targets if t.kind in HALF_PAIRS), "")
        raise HeadsError(f"{error}{hint}", parameter="dls") from error


def check_items(
    dls: DataLoaders,  # over fastai `Datasets`
) -> None:
    "Refuse an empty training set, such as `export` leaves, of which nothing can be told."
    if not len(dls.train_ds):
        raise HeadsError(
            "`dls.train` holds no item: heads are made for the targets of a training set of one item at least. "
            "Pass the data itself, not what `new_empty` or an exported learner keeps of it."
        )


def _check_split(
    dl: TfmdDL, split: str, inputs: tuple[str, ...], targets: tuple[Target, ...], void: Collection[int]
) -> None:
    "Refuse what is wrong in the labels and files of one loader."
    ds, headers = dl.dataset, Headers()
    files = [_files(dl, place, name, split) for place, name in enumerate(inputs)]
    images = next((f.values for f in files if f is not None), ())
    for target in targets:
        labels = read_labels(ds, ds.n_inp + target.index, target.name, split)
        numbers = check_labels(labels, target)
        if target.kind in PLACES and len(images) == len(labels.values):
            check_places(labels, target, numbers, headers.sizes(images), scaler_of(dl))
        if target.kind == "mask":
            _check_files(labels, "mask")
            check_masks(Masks(labels, target, ds.n_inp + target.index, dl, images, void), headers)


def _files(dl: TfmdDL, place: int, name: str, split: str) -> Labels | None:
    "Read what an input's getter gives, all its files there; None where its block opens no image."
    if not opens_image(dl.dataset.tls[place]):
        return None
    files = read_labels(dl.dataset, place, name, split)
    _check_files(files, "image")
    return files


def _check_files(labels: Labels, what: str) -> None:
    i = first_missing(labels.values)
    if i is not None:
        where = f"{row_name(labels.tl, i)} of the {labels.split} set"
        raise HeadsError(
            f"{what} {labels.target!r}, {where}: there is no file {labels.values[i]}. Correct the path, or drop "
            "the row."
        )


def _check_image_sizes(dl: TfmdDL) -> None:
    "Refuse images that do not make one batch, told from the sizes of a few."
    ds = dl.dataset
    if not len(ds) or not opens_image(ds.tls[0]):
        return
    headers, seen = Headers(), {}
    for i in spread(range(len(ds)), _SAMPLE):
        header = headers.of(source_of(ds.tls[0], i))
        if header is not None:
            seen.setdefault(header.size, i)
    if len(seen) > 1:
        with no_random():
            dl.before_batch([dl.do_item(i) for i in [*seen.values()][:2]])
