"""One file = one detector. A detector module has NAME, TITLE, NEEDS and ``detect(evidence) -> Finding``."""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache
from types import ModuleType


@lru_cache(maxsize=1)
def available() -> dict[str, ModuleType]:
    """Return every detector in this folder by name."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        if hasattr(module, "detect"):
            found[module.NAME] = module
    return found


def get(name: str) -> ModuleType:
    """Return a detector by name.

    Raises:
        ValueError: if there is none of that name.

    """
    try:
        return available()[name]
    except KeyError:
        raise ValueError(f"no detector is called {name!r}; there are: {', '.join(sorted(available()))}") from None
