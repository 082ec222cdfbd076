"""Portraits of people who do not exist, drawn from a seed: a data set that needs no download."""

from latentfaces.data.synthetic.drawing import draw_face
from latentfaces.data.synthetic.traits import Face, sample_face

__all__ = ["Face", "draw_face", "sample_face"]
