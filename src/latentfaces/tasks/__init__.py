"""Tasks of sample.py, one file each."""

from latentfaces.tasks.anonymize import Anonymize
from latentfaces.tasks.compare import Compare
from latentfaces.tasks.dataset import Dataset
from latentfaces.tasks.directions import Directions
from latentfaces.tasks.edit import Edit
from latentfaces.tasks.evaluate import Evaluate
from latentfaces.tasks.generate import Generate
from latentfaces.tasks.inpaint import Inpaint
from latentfaces.tasks.interpolate import Interpolate
from latentfaces.tasks.invert import Invert
from latentfaces.tasks.neighbours import Neighbours
from latentfaces.tasks.output import PictureFolder
from latentfaces.tasks.reconstruct import Reconstruct
from latentfaces.tasks.slide import Slide
from latentfaces.tasks.tune import Tune
from latentfaces.tasks.variations import Variations

__all__ = [
    "Anonymize",
    "Compare",
    "Dataset",
    "Directions",
    "Edit",
    "Evaluate",
    "Generate",
    "Inpaint",
    "Interpolate",
    "Invert",
    "Neighbours",
    "PictureFolder",
    "Reconstruct",
    "Slide",
    "Tune",
    "Variations",
]
