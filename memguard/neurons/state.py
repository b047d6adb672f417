"""What a search has evaluated so far, in memory and in a file, so that a cancelled one goes on where it was.

A search is deterministic: started again with the same request it asks for the same evaluations, and those that are
known cost nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..troubles import Refused
from . import tensors
from .probe import Neuron, Rows

KIND = "memguard-neuron-search"
SCHEMA = 1
PAUSE = 5.0  # seconds between two writes of the file


class State:
    """Results of evaluations.

    Args:
        path: the file; None keeps them in memory only.
        request: what was asked for; a file of another request is refused.

    Attributes:
        unblocked: the noise differences without blocking, [n, C, h, w].

    """

    def __init__(self, path: Path | str | None = None, request: Mapping[str, Any] | None = None) -> None:
        self.path, self.request = None if path is None else Path(path), dict(request or {})
        self.unblocked: Tensor | None = None
        self._rankings: dict[str, dict[str, Tensor]] = {}
        self._scores: dict[str, list[float]] = {}
        self._before = Rows()
        self._saved = 0.0
        if self.path is not None and self.path.exists():
            self._load(self.path)

    def get(self, blocked: frozenset[Neuron], images: Sequence[int]) -> list[float] | None:
        """Return the scores of a set on some seeds, or None; that of no neurons is known without asking."""
        return [1.0] * len(images) if not blocked else self._scores.get(_key(blocked, images))

    def put(self, blocked: frozenset[Neuron], images: Sequence[int], scores: list[float]) -> None:
        """Keep the scores of a set on some seeds."""
        self._scores[_key(blocked, images)] = scores

    def ranking(self, blocked: frozenset[Neuron], image: int) -> dict[str, Tensor] | None:
        """Return the attribution around a set on one seed, layer -> [width], or None."""
        return self._rankings.get(_key(blocked, [image]))

    def rank(self, blocked: frozenset[Neuron], image: int, values: dict[str, Tensor]) -> None:
        """Keep the attribution around a set on one seed."""
        self._rankings[_key(blocked, [image])] = values

    def spent(self, rows: Rows) -> Rows:
        """Return the rows of this run and of those that it continues."""
        return Rows(self._before.forward + rows.forward, self._before.backward + rows.backward)

    def save(self, rows: Rows, now: bool = False) -> None:
        """Write the file if there is one, and if the last time is some seconds ago or ``now``."""
        if self.path is None or not (now or time.monotonic() - self._saved >= PAUSE):
            return
        spent = self.spent(rows)
        values = {} if self.unblocked is None else {"unblocked": self.unblocked}
        facts = {"request": self.request, "scores": self._scores, "rows": [spent.forward, spent.backward]}
        for key, found in self._rankings.items():
            values |= {f"ranking|{key}|{name}": tensor for name, tensor in found.items()}
        tensors.write(self.path, KIND, SCHEMA, values, facts)
        self._saved = time.monotonic()

    def _load(self, path: Path) -> None:
        values, facts = tensors.read(path, KIND, SCHEMA)
        try:
            asked, scores, rows = dict(facts["request"]), dict(facts["scores"]), Rows(*map(int, facts["rows"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise Refused(f"{path}: the file is damaged; remove it, and the search begins anew") from None
        other = [k for k in sorted(self.request.keys() | asked.keys()) if self.request.get(k) != asked.get(k)]
        if other:
            name = other[0]
            raise Refused(
                f"{path}: belongs to another search ({name} was {_short(asked.get(name))} and is"
                f" {_short(self.request.get(name))}); give the same settings or another file"
            )
        self.unblocked = values.get("unblocked")
        for name, tensor in values.items():
            kind, _, rest = name.partition("|")
            if kind == "ranking":
                key, _, layer = rest.partition("|")
                self._rankings.setdefault(key, {})[layer] = tensor
        self._scores, self._before = scores, rows


def _key(blocked: frozenset[Neuron], images: Sequence[int]) -> str:
    text = ";".join(f"{layer}:{index}" for layer, index in sorted(blocked))
    return f"{hashlib.sha256(text.encode()).hexdigest()[:24]}/{','.join(map(str, images))}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
