"""Is it good?"""

from latentfaces.evaluation.encoder_distance import EncoderDistance, kernel_distance
from latentfaces.evaluation.grids import save_grid, save_png
from latentfaces.evaluation.latent_health import HEALTHY, LatentHealth, verdict
from latentfaces.evaluation.metrics import calculate_metrics, reconstruction_metrics
from latentfaces.evaluation.plots import plot_losses, visualize_random_input_output

__all__ = [
    "HEALTHY",
    "EncoderDistance",
    "LatentHealth",
    "calculate_metrics",
    "kernel_distance",
    "plot_losses",
    "reconstruction_metrics",
    "save_grid",
    "save_png",
    "verdict",
    "visualize_random_input_output",
]
