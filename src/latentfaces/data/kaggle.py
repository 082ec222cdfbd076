"""Download of FFHQ from Kaggle with Kaggle's own client."""

import contextlib
import io
import shutil
import zipfile
from pathlib import Path

from latentfaces.errors import UserError, missing_extra
from latentfaces.files import file_lock, require_space
from latentfaces.signals import Stopped

DATASET = "arnaud58/flickrfaceshq-dataset-ffhq"
LICENCE = "CC BY-NC-SA 4.0"
SIZE_GB = 25.0  # 13 of the .zip, reportedly, and 10 of a pack of 52,000 images at 256 pixels
NEW_TOKEN = "Put an API token from kaggle.com/settings into KAGGLE_API_TOKEN or ~/.kaggle/access_token"
BY_HAND = f"or download https://www.kaggle.com/datasets/{DATASET} by hand and use data.root=THE.zip."


def download_ffhq(target: Path) -> Path:
    """Download the .zip of FFHQ at 512 pixels (52,001 of its 70,000 images) to `target`, unless it exists.

    An interrupted download resumes. Only a complete one gets the name `target`.

    Raises:
        UserError: the client, the credentials, the network or disk space is missing, or the file is damaged.
    """
    if target.exists():
        return target
    done = sum(file.stat().st_size for file in partial_folder(target).glob("*"))
    require_space(target, SIZE_GB * 1e9 - done, "FFHQ")
    with file_lock(target):
        if not target.exists():  # another process may have downloaded it
            download(target)
    return target


def partial_folder(target: Path) -> Path:
    """Return the folder of an incomplete download."""
    return target.with_name(target.name + ".partial")


def download(target: Path) -> None:
    """Download into a folder next to `target`, then rename the complete file."""
    folder = partial_folder(target)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # without credentials the client prints a page of advice
            from kaggle.api.kaggle_api_extended import KaggleApi

            api = KaggleApi()
            api.authenticate()
        folder.mkdir(exist_ok=True)
        print(f"Downloading {DATASET} from Kaggle ({LICENCE}). If it stops, run the same command to resume.")
        api.dataset_download_files(DATASET, path=str(folder), quiet=False)
    except Stopped:  # by a signal, which is a SystemExit too
        raise
    except ImportError as error:
        raise missing_extra(f"Kaggle's client ({error})", "data", f", {BY_HAND.removesuffix('.')}") from error
    except (Exception, SystemExit) as error:  # of requests, urllib3 and the client, which exits without credentials
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, SystemExit) or status in (401, 403):
            raise UserError(f"Kaggle accepts no credentials of this machine. {NEW_TOKEN}, {BY_HAND}") from error
        raise UserError(f"Kaggle does not send {DATASET} ({type(error).__name__}). Try again, {BY_HAND}") from error
    fetched = next(folder.glob("*.zip"), None)
    if fetched is None or not zipfile.is_zipfile(fetched):
        raise UserError(f"{folder} contains no complete .zip. Delete it and try again, {BY_HAND}")
    fetched.replace(target)
    shutil.rmtree(folder)
