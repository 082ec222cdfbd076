"""Drawn faces: a dataset that needs no download."""

from latentfaces.data.synthetic.drawing import draw_face
from latentfaces.data.synthetic.traits import Face, sample_face

__all__ = ["Face", "draw_face", "sample_face"]
