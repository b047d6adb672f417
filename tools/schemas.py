"""The schemas of ComfyUI's nodes, read without ComfyUI; and locales/en/nodeDefs.json, which is their words.

The nodes' files are imported below a name of their own, with ComfyUI's modules stood in for, and forgotten again. Run
by tools/parameters.py.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

ROOT = Path(__file__).resolve().parents[1]
PACK = "memguard_read"
HOST = ("comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "server", "execution", "nodes")


class Socket:
    """A type of ComfyUI; its inputs and outputs are what was said of them."""

    @classmethod
    def Input(cls, id: str, **said: Any) -> SimpleNamespace:  # noqa: N802 as ComfyUI calls it
        return SimpleNamespace(type=cls.__name__, id=id, **said)

    @classmethod
    def Output(cls, **said: Any) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(type=cls.__name__, **said)


class Io(types.ModuleType):
    """ComfyUI's module of that name."""

    ComfyNode, ComfyTypeIO, Schema, Hidden = type("ComfyNode", (), {}), Socket, SimpleNamespace, MagicMock()

    def comfytype(self, **_: Any) -> Any:
        return lambda cls: cls

    def __getattr__(self, name: str) -> Any:
        return type(name, (Socket,), {})


class Stand(MetaPathFinder, Loader):
    """Finds ComfyUI's modules, wherever they are not."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in HOST else None

    def create_module(self, spec: ModuleSpec) -> Any:
        return MagicMock(__path__=[], __spec__=spec, io=Io("io"), ComfyExtension=object)

    def exec_module(self, module: Any) -> None:
        """There is nothing to run."""


@contextmanager
def stood_in() -> Iterator[None]:
    """Stand in for ComfyUI for a while."""
    real = {name: module for name, module in sys.modules.items() if name.split(".")[0] in HOST}
    finder = Stand()
    for name in real:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    sys.modules[PACK] = types.ModuleType(PACK)
    sys.modules[PACK].__path__ = [str(ROOT)]
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] in (*HOST, PACK)]:
            del sys.modules[name]
        sys.modules.update(real)


@lru_cache(maxsize=1)
def schemas() -> dict[str, Any]:
    """Return the schemas by node id."""
    with stood_in():
        names = sorted(path.stem for path in (ROOT / "nodes").glob("*.py") if path.stem not in ("__init__", "types"))
        files = [importlib.import_module(f"{PACK}.nodes.{name}") for name in names]
        found = [node.define_schema() for file in files for node in file.NODES]
    return {schema.node_id: schema for schema in sorted(found, key=lambda each: each.node_id)}


def words() -> str:
    """Return locales/en/nodeDefs.json: ComfyUI's page takes the nodes' words from there."""
    made = {
        name: {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {each.id: {"name": each.id, "tooltip": each.tooltip} for each in schema.inputs},
            "outputs": {
                str(number): {"name": each.display_name, "tooltip": each.tooltip}
                for number, each in enumerate(schema.outputs)
            },
        }
        for name, schema in schemas().items()
    }
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"
