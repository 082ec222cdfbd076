"""Photos generated again with other labels."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from latentfaces.data.images import to_float
from latentfaces.data.pack import Pack
from latentfaces.diffusion import NoGuidance, Sampler
from latentfaces.evaluation.features import EncoderFeatures
from latentfaces.pipeline import FacePipeline

NUM_HELD_OUT = 64
"""Held-out images whose distances are the reference for those of edits."""


def relabeled(
    pipeline: FacePipeline, photos: Tensor, photo_labels: Mapping[str, object], sampler: Sampler, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Invert photos with their labels, and generate them again: with these labels, and with the requested ones.

    The noise keeps what the labels do not say (DDIM inversion: Song et al. 2021, section 5.4). Inversion and unchanged
    photos are without guidance, under which the noise is wider than N(0, 1).

    Args:
        pipeline: pipeline with requested labels.
        photos: (n, 3, R, R) uint8.
        photo_labels: labels of the photos; those that are not given are unknown.
        sampler: sampler without added noise.
        batch_size: photos at once.

    Returns:
        The unchanged and the changed photos, each (n, 3, R, R) uint8.
    """
    assert pipeline.conditioning is not None
    labels = pipeline.conditioning.parse(photo_labels)
    new_labels = torch.where(pipeline.asked.isnan(), labels, pipeline.asked)
    before, after = (pipeline.condition(values[None]) for values in (labels, new_labels))
    unchanged, changed, guidance = [], [], pipeline.guidance
    for batch in photos.split(batch_size):
        pipeline.guidance = NoGuidance()
        noise = pipeline.invert(to_float(batch), sampler, before)
        unchanged.append(pipeline.images(noise, sampler, condition=before))
        pipeline.guidance = guidance
        changed.append(pipeline.images(noise, sampler, condition=after))
    return torch.cat(unchanged), torch.cat(changed)


def print_moved(pipeline: FacePipeline, unchanged: Tensor, changed: Tensor, pack: Pack | None) -> None:
    """Print the distance of changed from unchanged photos, in features of the VAE's encoder.

    With a pack, the distance is relative to the mean distance between two of its held-out images.
    """
    features = EncoderFeatures(pipeline.vae)
    usual = usual_distance(features, pack) if pack is not None else 1.0
    moved = (features(changed) - features(unchanged)).norm(dim=1) / usual
    print(f"moved {moved.mean():.4g}" + (" (1: two held-out images)" if pack is not None else ""))


def usual_distance(features: EncoderFeatures, pack: Pack) -> float:
    """Return the mean distance between two held-out images of a pack."""
    count = max(2, min(NUM_HELD_OUT, len(pack.val_indices)))  # of up to ten images only one is held out
    images = pack.images[np.concatenate([pack.val_indices, pack.train_indices])[:count]]
    return float(torch.pdist(features(torch.from_numpy(images))).mean())  # all pairs: neighbors may be one person
