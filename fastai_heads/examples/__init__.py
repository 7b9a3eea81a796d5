"Real photographs and real ImageNet weights without a network, for examples and measurements: the extra `examples`."

from fastai_heads.examples.coins import cut_coins, write_coins
from fastai_heads.examples.imagenet import ARCH, lite0_file, lite0_kwargs
from fastai_heads.examples.photographs import TARGETS, open_photographs, photograph_dls, write_photographs

__all__ = [
    "ARCH",
    "TARGETS",
    "cut_coins",
    "lite0_file",
    "lite0_kwargs",
    "open_photographs",
    "photograph_dls",
    "write_coins",
    "write_photographs",
]
