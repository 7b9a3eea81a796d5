"""What stands before the heads: the contract that every body keeps, and the bodies of images, rows and texts."""

from fastai_heads.bodies.contract import Body, BodySpec
from fastai_heads.bodies.image import ImageBody, cut_body
from fastai_heads.bodies.points import cut_points
from fastai_heads.bodies.several import Bodies
from fastai_heads.bodies.table import RowBody, TabularBody
from fastai_heads.bodies.text import TextBody
from fastai_heads.bodies.together import On, find_bodies, find_body

__all__ = [
    "Bodies",
    "Body",
    "BodySpec",
    "ImageBody",
    "On",
    "RowBody",
    "TabularBody",
    "TextBody",
    "cut_body",
    "cut_points",
    "find_bodies",
    "find_body",
]
