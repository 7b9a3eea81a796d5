"""Where a network is cut: the registry of archs, its rows, and what they say about an arch."""

from fastai_heads.archs.family import Family
from fastai_heads.archs.points import CutPoints, arch_points
from fastai_heads.archs.records import Removed, TapPoint
from fastai_heads.archs.registry import list_archs, register_arch
from fastai_heads.archs.steps import Step, step

__all__ = ["CutPoints", "Family", "Removed", "Step", "TapPoint", "arch_points", "list_archs", "register_arch", "step"]
