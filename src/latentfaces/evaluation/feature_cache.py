"""Features of all images of a pack, cached in its folder."""

import torch
from rich.progress import track
from torch import Tensor

from latentfaces.data.arrays import ResumableArray
from latentfaces.data.pack import Pack
from latentfaces.errors import UserError
from latentfaces.evaluation.features import Features
from latentfaces.files import require_space
from latentfaces.ranks import Ranks


def image_features(extract: Features, pack: Pack, batch_size: int, ranks: Ranks, mirrored: bool = False) -> Tensor:
    """Return features (N, d) of all images of a pack, mapped from its cache; empty above rank 0. Ranks share the work.

    Raises:
        UserError: the cache cannot be written.
    """
    count = pack.manifest["num_images"]
    view = "-mirrored" if mirrored else ""
    path = pack.folder / f"features-{extract.key}{view}-{pack.sha256[:8]}.npy"
    rows = ResumableArray(path, count)
    done = ranks.agree(rows.resume() if ranks.rank == 0 else 0)
    parts = ranks.rounds(range(done, count), batch_size)
    try:
        for part in track(parts, f"Features of {pack.folder.name}{view}", disable=ranks.rank > 0 or not parts):
            images = torch.from_numpy(pack.images[part.start : part.stop].copy())
            images = images.flip(-1) if mirrored else images
            features = ranks.join(extract(images) if len(images) else torch.empty(0))
            if ranks.rank == 0:
                if part.start == 0:
                    require_space(path, 4.0 * count * features.shape[1], f"the file of {count:,} features")
                rows.write(part.start, features.numpy())
        if ranks.rank == 0:
            rows.finish()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}). Make {pack.folder} writable.") from error
    return torch.from_numpy(rows.read()) if ranks.rank == 0 else torch.empty(0)
