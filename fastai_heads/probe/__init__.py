"""Which layer a head should read, by closed-form probes, and the start that a probe gives a linear head."""

from fastai_heads.probe.report import TapReport

__all__ = ["TapReport"]
