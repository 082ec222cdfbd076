"""Pages that need nothing but themselves: their pictures are inside."""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure

from latentfaces.files import atomic_write

REPORT = "report.html"
DPI = 140
"""Of figures: sharp on a telephone, whose pixels are small."""


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Write the page of a template of this folder; whatever the values hold, none becomes markup.

    Args:
        path: where to; the page appears whole.
        template: file name.
        values: what it shows.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    with atomic_write(path) as file:
        file.write(environment.get_template(template).render(**values).encode())
    return path


def embedded(figure: Figure) -> str:
    """A figure as an address that holds it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return as_data(buffer.getvalue())


def as_data(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
