"""safetensors files of memguard: tensors, and facts as one JSON text in the metadata. Written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..troubles import Refused


def write(path: Path | str, kind: str, schema: int, values: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
    """Write a file; a file of that name is replaced.

    Raises:
        OSError: if it cannot be written.

    """
    from safetensors.torch import save

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"kind": kind, "schema": str(schema), "facts": json.dumps(facts, ensure_ascii=False)}
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        part.write_bytes(save({name: tensor.contiguous() for name, tensor in values.items()}, metadata))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def read(path: Path | str, kind: str, schema: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the facts of a file.

    Raises:
        ValueError: in one line, if there is no such file or it is of another kind.

    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != kind:
                raise Refused(f"{path}: is not a {kind} file but {metadata.get('kind') or 'some other safetensors'}")
            if metadata.get("schema") != str(schema):
                raise Refused(
                    f"{path}: has schema {metadata.get('schema')}, this memguard reads {schema}; update memguard"
                )
            facts = json.loads(metadata["facts"])
            if not isinstance(facts, dict):
                raise Refused(f"{path}: is a damaged {kind} file; make it again")
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 - no dict
    except Refused:
        raise
    except FileNotFoundError:
        raise Refused(f"{path}: no such file") from None
    # AttributeError, RuntimeError, TypeError: number formats that torch does not have
    except (OSError, SafetensorError, LookupError, ValueError, RecursionError, AttributeError, RuntimeError, TypeError):
        raise Refused(f"{path}: is not a {kind} file, or a damaged one") from None


def is_ours(path: Path) -> bool:
    """Whether a file is a safetensors file of memguard, of whatever kind and schema."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            found: bool = (file.metadata() or {}).get("kind", "").startswith("memguard-")
            return found
    except (OSError, SafetensorError, RuntimeError):
        return False
