"""A page as a browser without a screen shows it."""

import json
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium")
LOOK = """
<script>
addEventListener("load", () => {
  const wide = [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1
    && !e.closest(".scroll, pre"));
  document.title = "seen:" + JSON.stringify({
    width: innerWidth,
    scrolled: document.documentElement.scrollWidth,
    wide: wide.map(e => e.tagName + "." + e.className),
    images: [...document.images].map(i => i.complete ? i.naturalWidth : 0),
    fetched: performance.getEntriesByType("resource").map(r => r.name).filter(n => !n.startsWith("data:")),
  });
});
</script>
"""


def browse(page: Path, scratch: Path, width: int, *flags: str) -> str:
    """Open a page, with a profile of its own; what the browser prints.

    Headless Chromium was seen to hang at its start, so a second one is tried.
    """
    assert BROWSER is not None
    for timeout in (60, 120):
        profile = scratch / f"profile-{len(list(scratch.iterdir()))}"
        command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},2400", *flags, page.as_uri()]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True).stdout
        except subprocess.TimeoutExpired as error:
            hung = error
    raise hung


def seen(page: Path, scratch: Path, width: int) -> dict[str, Any]:
    """Return the result of a script in a copy of the page: widths in pixels, and external loads."""
    copy = scratch / f"copy-{width}.html"
    # A window cannot be as narrow as a telephone: a frame can.
    copy.write_text(page.read_text().replace("</body>", LOOK + "</body>"))
    frame = scratch / f"frame-{width}.html"
    frame.write_text(
        f'<body style="margin:0"><iframe src="{copy.name}" style="border:0;width:{width}px;height:2000px" '
        'onload="document.title = this.contentDocument.title"></iframe></body>'
    )
    dom = browse(frame, scratch, 1400, "--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom")
    title = unescape(dom.split("<title>")[1].split("</title>")[0])
    told: dict[str, Any] = json.loads(title.removeprefix("seen:"))
    return told


def screenshot(page: Path, scratch: Path, width: int, *flags: str) -> np.ndarray:
    """The page's pixels, (H, W, 3)."""
    target = scratch / f"{page.stem}-{width}.png"
    browse(page, scratch, width, f"--screenshot={target}", *flags)
    with Image.open(target) as picture:
        return np.asarray(picture.convert("RGB"))


def check_page(page: Path, scratch: Path) -> None:
    """The page shows something, all its pictures, nothing beyond its edges, and needs nothing else."""
    for width in (1280, 400):
        told = seen(page, scratch, width)
        assert told["width"] == width
        assert told["scrolled"] <= width, told["wide"]
        assert told["wide"] == []
        assert told["images"]
        assert min(told["images"]) > 0
        assert told["fetched"] == []
    pixels = screenshot(page, scratch, 1280)
    assert pixels.shape[1] == 1280
    assert pixels.std() > 10
