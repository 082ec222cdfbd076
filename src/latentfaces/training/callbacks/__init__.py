"""Lightning callbacks."""

from latentfaces.training.callbacks.best_weights import BestWeights
from latentfaces.training.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from latentfaces.training.callbacks.dashboard import Dashboard, DashboardLogger
from latentfaces.training.callbacks.early_stopping import EarlyStopping
from latentfaces.training.callbacks.ema import EMA
from latentfaces.training.callbacks.exact_resume import ExactResume
from latentfaces.training.callbacks.face_metrics import FaceMetrics
from latentfaces.training.callbacks.graceful_stop import GracefulStop
from latentfaces.training.callbacks.guide import GuideWeights
from latentfaces.training.callbacks.median_stop import MedianStop
from latentfaces.training.callbacks.previews import Previews
from latentfaces.training.callbacks.report import Report
from latentfaces.training.callbacks.status import Status
from latentfaces.training.callbacks.tensor_stats import TensorStats

__all__ = [
    "EMA",
    "BestCheckpoint",
    "BestWeights",
    "Dashboard",
    "DashboardLogger",
    "EarlyStopping",
    "ExactResume",
    "FaceMetrics",
    "GracefulStop",
    "GuideWeights",
    "LastCheckpoint",
    "MedianStop",
    "Previews",
    "Report",
    "Status",
    "TensorStats",
]
