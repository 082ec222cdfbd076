"""Where the YAML files of the configs are."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parents[1] / "conf") if folder.is_dir())
"""The folder `conf`: shipped in the wheel, or of the checkout."""
