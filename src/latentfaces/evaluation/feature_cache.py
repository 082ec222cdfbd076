"""Features that are computed batch by batch, and those of all images of a pack, cached in its folder."""

from collections.abc import Callable

import torch
from rich.progress import track
from torch import Tensor

from latentfaces.data.arrays import ResumableArray
from latentfaces.data.pack import Pack
from latentfaces.errors import UserError
from latentfaces.evaluation.features import Features
from latentfaces.ranks import Ranks


def image_features(extract: Features, pack: Pack, batch_size: int, ranks: Ranks, mirrored: bool = False) -> Tensor:
    """Return features (N, d) of all images of a pack, mapped from its cache; empty above rank 0. Ranks share the work.

    Raises:
        UserError: the cache cannot be written.
    """
    view = "-mirrored" if mirrored else ""
    path = pack.folder / f"features-{extract.key}{view}-{pack.sha256[:8]}.npy"
    rows = ResumableArray(path, pack.manifest["num_images"])

    def compute(numbers: range) -> Tensor:
        images = torch.from_numpy(pack.images[numbers.start : numbers.stop].copy())
        return extract(images.flip(-1) if mirrored else images)

    try:
        features = resumed(rows, compute, batch_size, ranks, f"Features of {pack.folder.name}{view}")
        if ranks.rank == 0:
            rows.finish()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}). Make {pack.folder} writable.") from error
    return features


def resumed(
    rows: ResumableArray, compute: Callable[[range], Tensor], batch_size: int, ranks: Ranks, title: str
) -> Tensor:
    """Compute the missing rows of an array, and return all of them, mapped from the file; empty above rank 0.

    Args:
        rows: the array.
        compute: returns the rows (n, d) of these numbers.
        batch_size: rows at once.
        ranks: ranks that share the work.
        title: title of the progress bar.
    """
    done = ranks.agree(rows.resume() if ranks.rank == 0 else 0)
    parts = ranks.rounds(range(done, rows.num_rows), batch_size)
    for part in track(parts, title, disable=ranks.rank > 0 or not parts):
        computed = ranks.join(compute(part) if part else torch.empty(0))
        if ranks.rank == 0:
            rows.write(part.start, computed.numpy())
    return torch.from_numpy(rows.read()[: rows.num_rows]) if ranks.rank == 0 else torch.empty(0)
