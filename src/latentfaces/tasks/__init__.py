"""What sample.py can do, one file a task."""

from latentfaces.tasks.generate import Generate
from latentfaces.tasks.interpolate import Interpolate
from latentfaces.tasks.output import PictureFolder
from latentfaces.tasks.reconstruct import Reconstruct

__all__ = ["Generate", "Interpolate", "PictureFolder", "Reconstruct"]
