"""What stands before the heads: the contract that every body keeps, and the body of an image."""

from fastai_heads.bodies.contract import Body
from fastai_heads.bodies.image import ImageBody, cut_body

__all__ = ["Body", "ImageBody", "cut_body"]
