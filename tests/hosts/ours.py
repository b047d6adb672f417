"""The memguard beside these tests: ``memguard``, or ``memguard_pack.memguard`` where a host mounts the repository.

Helpers that serve both take everything of ours from here: a second copy of a module has other classes.
"""

from importlib import import_module
from types import ModuleType

PREFIX = __name__.removesuffix("tests.hosts.ours")
MEMGUARD = f"{PREFIX}memguard"


def ours(name: str = "") -> ModuleType:
    """Return a module of memguard by its name below the package, the package itself for none."""
    return import_module(f"{MEMGUARD}.{name}" if name else MEMGUARD)
