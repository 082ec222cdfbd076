"""What happens beside the training steps."""

from latentfaces.training.callbacks.best_weights import BestWeights
from latentfaces.training.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from latentfaces.training.callbacks.ema import EMA
from latentfaces.training.callbacks.guide import GuideWeights
from latentfaces.training.callbacks.previews import Previews
from latentfaces.training.callbacks.status import Status
from latentfaces.training.callbacks.tensor_stats import TensorStats
from latentfaces.training.callbacks.verdict import Verdict

__all__ = [
    "EMA",
    "BestCheckpoint",
    "BestWeights",
    "GuideWeights",
    "LastCheckpoint",
    "Previews",
    "Status",
    "TensorStats",
    "Verdict",
]
