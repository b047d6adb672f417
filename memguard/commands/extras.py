"""Packages that only some commands need, and how to install them.

The index has a package of the same name that is somebody else's, so what is advised is never ``pip install memguard``:
the folder that memguard came from is named.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

# package -> the extra that brings it
EXTRAS = {
    "diffusers": "diffusers",
    "transformers": "diffusers",
    "tqdm": "diffusers",
    "pyarrow": "parquet",
    "scipy": "tail",
    "ray": "ray",
    "peft": "audit",
    "imagehash": "audit",
    "sklearn": "bench",
    "matplotlib": "bench",
}
ROOT = Path(__file__).resolve().parents[2]


def remedy(extra: str) -> str:
    """Return the command that installs what an extra brings."""
    if (ROOT / "pyproject.toml").is_file():
        return f"pip install '{ROOT}[{extra}]'"
    return f"pip install '.[{extra}]' in the folder that memguard was installed from"


def lacking(*packages: str) -> str:
    """Return what is missing of packages of one extra and how to install it; "" where all are there."""
    missing = [name for name in packages if find_spec(name) is None]
    return f"needs {' and '.join(missing)}; {remedy(EXTRAS[missing[0]])}" if missing else ""
