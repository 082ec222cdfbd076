"""HTML pages that contain their images."""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure

from latentfaces.files import atomic_write

REPORT = "report.html"
DPI = 140
"""Resolution of figures."""


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Render a template of this folder to a file, atomically. Values are escaped."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    with atomic_write(path) as file:
        file.write(environment.get_template(template).render(**values).encode())
    return path


def format_number(value: float, digits: int = 4) -> str:
    """Return a count in full, and any other number with some significant digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def embedded(figure: Figure) -> str:
    """Return a data URL of a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return as_data(buffer.getvalue())


def as_data(png: bytes) -> str:
    """Return a data URL of a PNG."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
