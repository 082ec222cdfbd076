"""Drawn faces: a dataset that needs no download."""

from latentfaces.data.synthetic.drawing import DRAWING_VERSION, draw_face
from latentfaces.data.synthetic.known_labels import known_labels
from latentfaces.data.synthetic.traits import Face, sample_face

__all__ = ["DRAWING_VERSION", "Face", "draw_face", "known_labels", "sample_face"]
