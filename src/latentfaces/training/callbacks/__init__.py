"""What happens beside the training steps."""

from latentfaces.training.callbacks.best_weights import BestWeights
from latentfaces.training.callbacks.ema import EMA
from latentfaces.training.callbacks.face_metrics import FaceMetrics
from latentfaces.training.callbacks.guide import GuideWeights
from latentfaces.training.callbacks.previews import Previews
from latentfaces.training.callbacks.report import Report
from latentfaces.training.callbacks.status import Status
from latentfaces.training.callbacks.tensor_stats import TensorStats
from latentfaces.training.callbacks.verdict import Verdict

__all__ = [
    "EMA",
    "BestWeights",
    "FaceMetrics",
    "GuideWeights",
    "Previews",
    "Report",
    "Status",
    "TensorStats",
    "Verdict",
]
