"""FFHQ from Kaggle, once, through Kaggle's own client."""

import contextlib
import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

from latentfaces.errors import UserError
from latentfaces.files import file_lock, require_space

DATASET = "arnaud58/flickrfaceshq-dataset-ffhq"
PAGE = f"https://www.kaggle.com/datasets/{DATASET}"
LICENCE = "CC BY-NC-SA 4.0"
SIZE_GB = 25.0  # room to ask for: the .zip is said to take 13 GB, and 52,000 pictures packed at 256 pixels take 10

NEW_TOKEN = "put an API token from kaggle.com/settings into KAGGLE_API_TOKEN or ~/.kaggle/access_token"
BY_HAND = f"download it by hand from {PAGE} and type data.root=THE.zip"


def download_ffhq(target: Path) -> Path:
    """The .zip of FFHQ at 512 pixels (52,001 of its 70,000 pictures), fetched to `target` unless it is there.

    A download that was cut goes on where it stopped; only a whole one gets the name `target`.

    Raises:
        UserError: no client, no credentials, no network, no room, or a damaged file; each with the remedy.
    """
    if target.exists():
        return target
    require_space(target, SIZE_GB * 1e9, "FFHQ")
    api = client()
    with file_lock(target):
        if not target.exists():  # not by another process meanwhile
            fetch(api, target)
    return target


def fetch(api: Any, target: Path) -> None:
    """Download into a folder beside `target`, and give the whole file its name."""
    folder = target.with_name(target.name + ".partial")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"Fetching {DATASET} from Kaggle ({LICENCE}); a cut download goes on when you type the command again")
    try:
        api.dataset_download_files(DATASET, path=str(folder), quiet=False)
    except Exception as error:  # requests', urllib3's and Kaggle's own
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise UserError(
                f"Kaggle refuses the credentials here (HTTP {status}): {NEW_TOKEN}, or {BY_HAND}"
            ) from error
        raise UserError(f"Kaggle does not send {DATASET} ({type(error).__name__}): try again, or {BY_HAND}") from error
    fetched = next(folder.glob("*.zip"), None)
    if fetched is None or not zipfile.is_zipfile(fetched):
        raise UserError(f"{folder} holds no whole .zip: delete it and try again, or {BY_HAND}")
    fetched.replace(target)
    shutil.rmtree(folder)


def client() -> Any:
    """Kaggle's client, with whichever credentials the person has."""
    said = io.StringIO()  # without credentials the client prints a page of advice
    try:
        with contextlib.redirect_stdout(said):
            from kaggle.api.kaggle_api_extended import KaggleApi

            api = KaggleApi()
            api.authenticate()
    except ImportError as error:
        raise UserError(
            f"Kaggle's client is not installed ({error}): pip install -e '.[data]', or {BY_HAND}"
        ) from error
    except SystemExit:
        raise UserError(f"Kaggle finds no credentials here that it accepts: {NEW_TOKEN}, or {BY_HAND}") from None
    except Exception as error:  # some credentials are looked up online
        raise UserError(f"Kaggle cannot be asked ({type(error).__name__}): try again, or {BY_HAND}") from error
    return api
