"""fastai's part for texts, which is not imported unless the user did: importing it changes fastai's defaults."""

import sys

__all__ = ["text_class"]


class _Never:
    "Has no instance."


def text_class(
    name: str,  # of a class in `fastai.text.data`
) -> type:
    "Find a class of fastai's part for texts; where nobody imported that, one without instances."
    return getattr(sys.modules.get("fastai.text.data"), name, _Never)
