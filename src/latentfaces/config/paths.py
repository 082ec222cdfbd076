"""The YAML files of the configs, and their groups."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parents[1] / "conf") if folder.is_dir())
"""The folder `conf`: shipped in the wheel, or of the checkout."""
GROUPS = sorted(path.relative_to(CONF).as_posix() for path in CONF.rglob("*") if path.is_dir())
