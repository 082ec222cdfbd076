"""Bounds of arguments: a value out of range is rejected with its key before anything is built."""

import pytest

from latentfaces.config.type_checks import check_types
from latentfaces.errors import UserError

OUT_OF_RANGE = [
    ("annealing.Constant", "num_steps", 0),
    ("annealing.Linear", "num_steps", 0),
    ("annealing.Cosine", "num_steps", 0),
    ("annealing.Sigmoid", "num_steps", 0),
    ("annealing.Sigmoid", "steepness", 0.0),
    ("annealing.Cyclical", "num_steps", 0),
    ("annealing.Cyclical", "num_cycles", 0),
    ("annealing.Cyclical", "ramp", 0.0),
    ("annealing.Cyclical", "ramp", 1.5),
    ("annealing.WarmupDecay", "warmup_steps", -1),
    ("annealing.WarmupDecay", "decay_share", -0.1),
    ("annealing.WarmupDecay", "decay_share", 1.1),
    ("annealing.WarmupDecay", "final", -0.1),
    ("annealing.WarmupDecay", "shape", "sine"),
    ("autoencoder.VAE", "num_blocks", [1, 0]),
    ("autoencoder.VAE", "downsample", "max"),
    ("autoencoder.VAE", "upsample", "cubic"),
    ("autoencoder.VAE", "output", "relu"),
    ("autoencoder.VAELoss", "reconstruction", "l3"),
    ("autoencoder.VAELoss", "kl_reduction", "mean"),
    ("autoencoder.VAELoss", "kl_target", -0.5),
    ("autoencoder.VAELoss", "equivariance_weight", -0.5),
    ("autoencoder.VAELoss", "perceptual_weight", -0.5),
    ("diffusion.EDM", "sigma_max", 1.0),
    ("diffusion.LogitNormalTime", "std", 0.0),
    ("diffusion.LogNormalNoise", "std", 0.0),
    ("diffusion.MinSNRWeighting", "gamma", 0.0),
    ("diffusion.VWeighting", "max_x0_weight", 0.0),
    ("diffusion.DenoisingLoss", "auxiliary_weight", -0.1),
    ("diffusion.Augmentation", "probability", 0.0),
    ("diffusion.Augmentation", "probability", 1.1),
    ("diffusion.FlowMapLoss", "num_steps", 0),
    ("diffusion.FlowMapLoss", "num_steps", 6),
    ("diffusion.FlowMapSampler", "num_steps", 3),
    ("diffusion.EulerSampler", "num_steps", 0),
    ("diffusion.HeunSampler", "num_steps", -2),
    ("diffusion.DDPMSampler", "shift", 0.0),
    ("diffusion.DDIMSampler", "eta", 1.1),
    ("diffusion.DPMpp2MSampler", "eta", -0.1),
    ("diffusion.AutoGuidance", "weight", 0.9),
    ("diffusion.InternalGuidance", "weight", 0.9),
    ("diffusion.LabelGuidance", "weight", 0.9),
    ("diffusion.LabelGuidance", "auto_weight", 0.5),
    ("training.callbacks.FaceMetrics", "batch_size", 0),
    ("training.callbacks.FaceMetrics", "max_memorized", 1.1),
    ("training.callbacks.EMA", "sigma_rel", 0.28),
    ("training.callbacks.EMA", "snapshots", -1),
    ("training.callbacks.GuideWeights", "share", 1.0),
    ("training.callbacks.LastCheckpoint", "every_n_minutes", 0),
    ("training.callbacks.MedianStop", "min_jobs", 0),
]


@pytest.mark.parametrize(("target", "argument", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_rejected_with_its_key(target: str, argument: str, value: object) -> None:
    with pytest.raises(UserError) as error:
        check_types({"_target_": f"latentfaces.{target}", argument: value}, "part")
    assert str(error.value).startswith(f"part.{argument}={value} is invalid: ")
