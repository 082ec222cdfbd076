"""Pack images without training, for machines that have no network, or align the faces in photos."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from latentfaces.cli.errors import one_line_errors
from latentfaces.errors import UserError, escape_stdout
from latentfaces.signals import Stopped, handle_signals, stop

if TYPE_CHECKING:
    from latentfaces.data import Photos


def source_of(arguments: argparse.Namespace) -> "Photos":
    """Open the images, which are downloaded if they are FFHQ."""
    from latentfaces.data import Photos  # imports torch: only once the arguments are valid
    from latentfaces.data.kaggle import LICENCE, download_ffhq

    if arguments.source == "ffhq":
        if arguments.licence is not None:
            raise UserError(f"--licence={arguments.licence} has no effect: FFHQ is under {LICENCE}. Omit it.")
        return Photos(download_ffhq(arguments.folder / "ffhq.zip"), LICENCE)
    if arguments.source and Path(arguments.source).expanduser().exists():
        return Photos(arguments.source, arguments.licence)
    raise UserError(f"{arguments.source} does not exist. Use a folder or .zip of images, or ffhq.")


def prepare(arguments: argparse.Namespace) -> None:
    """Find or write the pack, and verify it with `--verify`.

    Raises:
        UserError: the images cannot be packed, or checksums are wrong.
    """
    from latentfaces.data import open_pack
    from latentfaces.data.packing import find_or_write_pack
    from latentfaces.data.verify import damaged_files

    source = source_of(arguments)
    folder = arguments.folder / f"{source.name}-{arguments.resolution}"
    if arguments.verify and folder.exists():
        pack = open_pack(folder)
    else:
        options = arguments.on_bad_image, arguments.val_every, arguments.filter
        pack = find_or_write_pack(source, folder, arguments.resolution, *options)
    if arguments.verify:
        if damaged := list(damaged_files(pack, source)):
            remedy = f"{len(damaged)} damaged. Fetch them again, delete {pack.folder} and run again."
            raise UserError("\n".join([*damaged, remedy]))
        print(f"The pack and its {pack.manifest['num_images']} images are unchanged")
    split = pack.manifest["split"]
    print(f"{folder}: {pack.manifest['num_images']} images, {len(split['val'])} held out ({split['rule']})")


def align(arguments: argparse.Namespace) -> None:
    """Write the aligned faces."""
    from latentfaces.data.aligning import align_photos

    align_photos(source_of(arguments), arguments.align, arguments.resolution)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="latentfaces-prepare", description=__doc__)
    parser.add_argument("source", metavar="SOURCE", help="folder or .zip of images, or ffhq")
    parser.add_argument("--resolution", type=int, default=256, help="height and width in pixels (256)")
    parser.add_argument("--align", type=Path, metavar="OUT", help="only write the aligned faces, to the folder OUT")
    parser.add_argument("--folder", type=Path, default=Path("data"), help="folder of the packs (data)")
    parser.add_argument("--licence", help="terms of the images, for the manifest")
    parser.add_argument("--on-bad-image", choices=["fail", "skip"], default="fail")
    parser.add_argument("--val-every", type=int, default=10, help="hold out one image, or identity, in N (10)")
    parser.add_argument("--filter", choices=["auto", "box", "bilinear", "bicubic", "lanczos"], default="auto")
    parser.add_argument("--verify", action="store_true", help="compare images and pack with their checksums")
    arguments = parser.parse_args()
    if arguments.align is not None:
        for name, value in vars(arguments).items():
            if name not in ("source", "align", "resolution") and value != parser.get_default(name):
                parser.error(f"--{name.replace('_', '-')} has no effect with --align. Leave it out.")
    if arguments.resolution < 1 or arguments.val_every < 2:
        parser.error("--resolution must be at least 1, and --val-every at least 2")
    escape_stdout()
    with one_line_errors("train", []):
        try:
            with handle_signals(stop):
                if arguments.align is None:
                    prepare(arguments)
                else:
                    align(arguments)
        except Stopped as stopped:
            print(f"Stopped by {stopped.signal.name}. Run the same command to resume.", file=sys.stderr)
            raise
        except OSError as error:
            error.filename = error.filename or arguments.align or arguments.folder  # none: it was open already
            raise
