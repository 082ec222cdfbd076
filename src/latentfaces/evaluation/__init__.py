"""Is it good?"""

from latentfaces.evaluation.grids import save_grid, save_png
from latentfaces.evaluation.metrics import calculate_metrics, reconstruction_metrics
from latentfaces.evaluation.plots import plot_losses, visualize_random_input_output

__all__ = [
    "calculate_metrics",
    "plot_losses",
    "reconstruction_metrics",
    "save_grid",
    "save_png",
    "visualize_random_input_output",
]
