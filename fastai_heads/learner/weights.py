"""Files of weights: those of a fastai `vision_learner` into a body and one head, and whether a file fits a model."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import HIGHEST_PROTOCOL, UnpicklingError
from typing import Any
from zipfile import ZipFile, is_zipfile

from fastai.learner import Learner, load_model, save_model
from torch import Tensor, nn

from fastai_heads.disk import whole_file
from fastai_heads.errors import HeadsError, did_you_mean
from fastai_heads.model import TRAINING
from fastai_heads.trunks import PREFIX
from fastai_heads.values import check_value, is_whole

__all__ = [
    "check_file_name",
    "check_load_arguments",
    "check_optimizer_state",
    "check_state_fits",
    "load_vision_weights",
    "load_what_fits",
    "save_whole",
]

_UNREADABLE = (UnpicklingError, RuntimeError, EOFError, OSError, LookupError, TypeError, ValueError, AttributeError)
"What `torch.load` raises for files that hold something else."


def save_whole(
    learn: Learner,
    file: Path,  # where to
    **kwargs,  # fastai's `save_model`'s
) -> Path:  # `file`
    "Write beside the file and rename, so that a process that is killed, or a full disk, leaves the old file as it was."
    if not file.parent.is_dir():
        raise HeadsError(f"`file`: there is no folder {file.parent}.", parameter="file")
    _check_keywords("save", kwargs, ["with_opt", "pickle_protocol"])
    with whole_file(file) as part:  # the first rank alone writes
        save_model(part, learn.model, learn.opt, **kwargs)
    return file


def load_vision_weights(
    model: nn.Sequential,  # (body, heads)
    file: Path,  # what `vision_learner(...).save` wrote
    head: str | None = None,  # the head that takes the head's weights; None: the only one
) -> None:
    """Copies by position: both networks hold the arch's layers in the arch's order, under other names. Nothing is
    copied unless every shape fits; raises `HeadsError` naming the first that does not."""
    state = _read_state(file)
    if any(key.startswith(_OURS) for key in state):
        raise HeadsError(
            f"`file`: {file.name} is not what a `vision_learner` saves, but a learner with several heads: "
            f"`learn.load({str(file)!r})` loads it."
        )
    if not all(key.startswith(("0.", "1.")) for key in state):
        raise HeadsError(f"`file`: {file.name} is not what a `vision_learner` saves: its keys are {list(state)[:3]}…")
    heads = model[1]
    if head is None and len(heads) != 1:
        raise HeadsError(f"`head` says which head takes the head's weights: one of {', '.join(heads.names)}.")
    parts = {"0.": model[0], "1.": heads[heads.names[0] if head is None else head]}
    copies = [pair for prefix, module in parts.items() for pair in _pairs(module, state, prefix)]
    for ours, theirs in copies:
        ours.copy_(theirs)


def check_state_fits(
    model: nn.Module,  # a learner's
    file: Path,  # what `learn.save` wrote
) -> None:
    """Raises `HeadsError` naming the part that does not fit, before anything is copied. torch copies first and
    raises then, which leaves a network that is neither the old nor the new one."""
    theirs = _read_state(file)
    _check_ours(theirs, file, model[1].names)
    faults = _faults(model.state_dict(), theirs)
    if faults:
        part, why = next(iter(faults.items()))
        others = f" {', '.join(list(faults)[1:])} neither." if len(faults) > 1 else ""
        raise HeadsError(
            f"`file`: {file.name} does not fit {part}: {why}.{others} It is of another arch or other heads; "
            "`strict=False` loads what fits."
        )


def _check_ours(state: Mapping[str, Any], file: Path, heads: Sequence[str]) -> None:
    "Refuse weights that no learner with several heads saved: what they are, and what loads them."
    keys = list(state)
    some = f"{', '.join(keys[:3])}{', …' if len(keys) > 3 else ''}"
    parts = [key for key, value in state.items() if isinstance(value, Mapping)]
    if any(key.startswith(_OURS) for key in keys):
        return
    if parts:
        raise HeadsError(
            f"`file`: {file.name} is a dict of {some}, and weights that `learn.save` wrote are tensors by name. Keep "
            f"its part alone: `torch.save(torch.load(file)[{parts[0]!r}], other)`."
        )
    if all(key.startswith(("0.body.", "0.trunks.", "1.")) for key in keys):
        raise HeadsError(
            f"`file`: {file.name} is what a view of one head saves: `learn.head({heads[0]!r}).load(file)` loads it, "
            "where it is that head."
        )
    if all(key.startswith(("0.", "1.")) for key in keys):
        raise HeadsError(
            f"`file`: {file.name} is what a `vision_learner` saves ({some}): "
            f"`learn.load_vision_weights({str(file)!r}, head={heads[0]!r})` loads it into the body and one head."
        )
    raise HeadsError(
        f"`file`: {file.name} is of another network ({some}). Load it before the network is cut: "
        "`net.load_state_dict(torch.load(file)); multihead_learner(dls, net)`."
    )


_OURS = ("0.net.", "1.heads.", "1.trunks.")
"How the tensors of a learner with several heads are called."


def load_what_fits(
    model: nn.Module,  # a learner's
    file: Path,  # what `learn.save` wrote, perhaps with more or fewer heads
) -> dict[str, str]:  # part that was left as it is, or in the file → why
    "Loads the body, trunks and heads that fit whole, by name, and leaves the others. `HeadsError` if nothing fits."
    ours, theirs = model.state_dict(), _read_state(file)
    _check_ours(theirs, file, model[1].names)
    faults = _faults(ours, theirs)
    fitting = {key: tensor for key, tensor in theirs.items() if _part(key) not in faults}
    if not fitting:
        raise HeadsError(f"`file`: nothing in {file.name} fits: {'; '.join(f'{p}: {w}' for p, w in faults.items())}.")
    model.load_state_dict(ours | fitting)
    return faults


def _part(key: str) -> str:
    "Say which part of a network a tensor belongs to, for people: 'the body', 'trunk neck', 'head digit'."
    place, _, rest = key.partition(".")
    if place == "0":
        return "the body"
    kind, _, rest = rest.partition(".")
    return f"{kind.removesuffix('s')} {rest.partition('.')[0].removeprefix(PREFIX)}"


def _faults(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, str]:
    "Part → why the file does not fit it. What training alone needs is no part: no prediction needs it."
    faults: dict[str, str] = {}
    ours, theirs = ({k: v for k, v in state.items() if not _of_training(k)} for state in (ours, theirs))
    for key in [*ours, *theirs]:
        part = _part(key)
        if part in faults:
            continue
        if not any(_part(k) == part for k in theirs):
            faults[part] = "it is not in the file"
        elif not any(_part(k) == part for k in ours):
            faults[part] = "it is in the file only"
        elif key not in theirs:
            faults[part] = f"the file lacks {key}"
        elif key not in ours:
            faults[part] = f"the file has also {key}"
        elif ours[key].shape != theirs[key].shape:
            faults[part] = f"{key} has shape {tuple(ours[key].shape)}, in the file {tuple(theirs[key].shape)}"
    return faults


def _of_training(key: str) -> bool:
    return key.startswith(tuple(f"1.{part}." for part in TRAINING))


class _Reader:
    "Stands in for a model or an optimizer where fastai loads one, and keeps the state."

    state: dict[str, Any]

    def load_state_dict(self, state: dict[str, Any], strict: bool = True) -> None:
        self.state = state


def _read_state(file: Path) -> dict[str, Tensor]:
    "Read the model's state from a file as fastai does: weights only, with an optimizer's state or without."
    if not file.exists():
        raise HeadsError(f"`file`: there is no {file}.{_near(file)}")
    reader = _Reader()
    try:
        load_model(file, reader, None, with_opt=False)
    except _UNREADABLE as error:
        raise HeadsError(f"`file`: {_why_unreadable(file, error)}") from error
    state = reader.state
    if not isinstance(state, dict) or not state or not all(isinstance(key, str) for key in state):
        raise HeadsError(f"`file`: {file.name} holds no weights that `learn.save` wrote: {type(state).__name__}.")
    return state


def _near(file: Path) -> str:
    "Guess what was meant by a file that is not there: the same name as it is, or one like it beside it."
    plain = file.with_suffix("")
    if plain.is_file():
        return f" `load` adds '.pth' to a name.{_exported(plain) or f' {plain} is there: rename it.'}"
    return did_you_mean(file.stem, [found.stem for found in sorted(file.parent.glob("*.pth"))])


def _why_unreadable(file: Path, error: Exception) -> str:
    "Say what a file is that holds no weights."
    said = f"{file.name} holds no weights that `learn.save` wrote: {type(error).__name__}."
    if _exported(file):
        return f"{said}{_exported(file)}"
    if is_zipfile(file):
        return f"{said} It is a whole object: save its weights, `torch.save(net.state_dict(), file)`."
    return f"{said} It is no file that torch wrote."


def _exported(file: Path) -> str:
    "Name what loads a learner that `learn.export` wrote; '' for any other file. Nothing of the file is run."
    if not is_zipfile(file):
        return ""
    with ZipFile(file) as parts:
        whole = [parts.read(name) for name in parts.namelist() if name.endswith("data.pkl")]
    learner = any(b"Learner" in data and b"Loaders" in data for data in whole)
    return f" It is a learner that `learn.export` wrote: `load_learner({str(file)!r})` loads it." if learner else ""


def check_load_arguments(
    file: Any,  # what stands for a file's name
    strict: Any,
    kwargs: Mapping[str, Any],  # for fastai's `load`
) -> None:
    "Refuse what names no file, and keywords that neither fastai nor torch knows."
    check_file_name(file)
    if not isinstance(strict, bool):
        raise HeadsError(f"`strict` is True or False, found {strict!r}.")
    _check_keywords("load", kwargs, ["with_opt", "weights_only", "mmap"])


def check_file_name(
    file: Any,  # what stands for a file's name
) -> None:
    "Refuse what names no file."
    if not isinstance(file, str | Path) or not Path(file).name:
        raise HeadsError(f"`file` is a name in `learn.path/learn.model_dir`, or a path, found {file!r}.")


def _check_keywords(method: str, kwargs: Mapping[str, Any], options: list[str]) -> None:
    "Refuse keywords that neither fastai nor torch knows, and switches that are neither on nor off."
    for name, value in kwargs.items():
        if name not in options:
            near = did_you_mean(name, ["file", "device", "strict", *options])
            raise HeadsError(f"`{name}` is not a parameter of `{method}`.{near}")
        if name == "pickle_protocol":
            fits = is_whole(value, least=2) and value <= HIGHEST_PROTOCOL
            check_value(name, f"`{method}`", value, fits, f"a whole number from 2 to {HIGHEST_PROTOCOL}")
        else:
            check_value(name, f"`{method}`", value, value is None or isinstance(value, bool), "True or False")


def check_optimizer_state(
    file: Path,  # what `learn.save` wrote
) -> None:
    "Refuse a file without an optimizer's state where `with_opt=True` asks for it."
    opt = _Reader()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fastai's, that there is none
        load_model(file, _Reader(), opt)
    if not hasattr(opt, "state"):
        raise HeadsError(
            f"`with_opt=True`: {file.name} holds no state of an optimizer: `learn.save(file)` writes it, "
            "`learn.save(file, with_opt=False)` does not. Leave `with_opt` out, or pass `with_opt=False`."
        )


def _pairs(module: nn.Module, state: dict[str, Tensor], prefix: str) -> list[tuple[Tensor, Tensor]]:
    ours = module.state_dict()
    theirs = {key: value for key, value in state.items() if key.startswith(prefix)}
    if len(ours) != len(theirs):
        raise HeadsError(
            f"`file`: the {'body' if prefix == '0.' else 'head'} has {len(ours)} tensors and the file {len(theirs)}: "
            "another arch, or another head."
        )
    for (name, a), (key, b) in zip(ours.items(), theirs.items()):
        _check_shape(name, a, key, b)
    return list(zip(ours.values(), theirs.values()))


def _check_shape(name: str, ours: Tensor, key: str, theirs: Tensor) -> None:
    if ours.shape != theirs.shape:
        raise HeadsError(f"`file`: {name} has shape {tuple(ours.shape)}, and {key} of the file {tuple(theirs.shape)}.")
