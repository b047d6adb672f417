"""Where filters and the meter write what they saw: JSON lines, or a writer as TensorBoard's and its like."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from operator import methodcaller
from pathlib import Path
from typing import Any, Protocol

from ..troubles import Refused


class Log(Protocol):
    """Takes values, step by step."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write values of a step."""


class Scalars:
    """Writes to anything with ``add_scalar(name, value, step)``.

    Args:
        writer: such as ``torch.utils.tensorboard.SummaryWriter``.

    """

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write values of a step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)


class JsonLines:
    """Writes one line for each value, ``{"step": 3, "name": "...", "value": 0.1}``; null where it is not finite.

    Args:
        path: a file that is not there yet; nobody's file is written into.

    Raises:
        Refused: if it is there, or cannot be made.

    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._file = Path(path).open("x", encoding="utf-8", buffering=1)  # noqa: SIM115 open for the training
        except FileExistsError:
            raise Refused(f"{path}: is there already; give another name") from None
        except OSError as error:
            raise Refused(f"{path}: cannot be made ({error.strerror})") from None

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write values of a step."""
        for name, value in values.items():
            known = value if math.isfinite(value) else None
            # a loop's own values may be tensors or numpy's
            line = json.dumps({"step": step, "name": name, "value": known}, default=methodcaller("item"))
            self._file.write(line + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
