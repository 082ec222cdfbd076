"""Metrics and plots of trained runs."""

from latentfaces.evaluation.feature_distance import FeatureDistance
from latentfaces.evaluation.features import known_features
from latentfaces.evaluation.generation import kernel_distance
from latentfaces.evaluation.grids import save_grid, save_png
from latentfaces.evaluation.latent_health import HEALTHY, LatentHealth, verdict
from latentfaces.evaluation.metrics import calculate_metrics, reconstruction_metrics
from latentfaces.evaluation.plots import plot_losses, plot_neighbors, visualize_random_input_output
from latentfaces.evaluation.tensor_values import TensorValues, track_tensor_values

__all__ = [
    "HEALTHY",
    "FeatureDistance",
    "LatentHealth",
    "TensorValues",
    "calculate_metrics",
    "kernel_distance",
    "known_features",
    "plot_losses",
    "plot_neighbors",
    "reconstruction_metrics",
    "save_grid",
    "save_png",
    "track_tensor_values",
    "verdict",
    "visualize_random_input_output",
]
