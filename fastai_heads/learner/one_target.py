"""What of fastai is for a learner with one target, and is refused for several."""

from types import FrameType

from fastai.interpret import Interpretation

from fastai_heads.errors import HeadsError
from fastai_heads.training.bound import BoundHeads

__all__ = ["refuse_stock_interpretation"]


def refuse_stock_interpretation(
    caller: FrameType | None,  # of the method that is asked for predictions
    heads: BoundHeads,  # of the learner
) -> None:
    """Refuse `Interpretation.from_learner` and that of its subclasses, which know one target.

    Predictions are the first that fastai asks a learner for there, with flags that a user may pass as well: the caller
    itself has to be looked at."""
    stock = Interpretation.from_learner.__func__.__code__
    if caller is None or caller.f_code is not stock:
        return
    name, cls = heads.names[0], caller.f_locals["cls"].__name__
    raise HeadsError(
        f"`learn` of {cls}.from_learner is a learner of one target, found one of several heads "
        f"({', '.join(heads.names)}): pass one head of it, `{cls}.from_learner(learn.head({name!r}))`, or use "
        "`HeadsInterpretation.from_learner(learn)`, which knows all of them."
    )
