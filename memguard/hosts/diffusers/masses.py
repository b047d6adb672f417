"""The attention of a denoiser whose cross-attention is found by structure, averaged as soon as it is seen.

Positions of a video are many: what is kept of a layer is one number for each token, or a map where maps are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attended import Attended
from .projected import Probable, Reading
from .rows import Unscored
from .structure import Structure


@dataclass(frozen=True)
class Averaged:
    """Probabilities that were taken already, float32 [B, positions or 1, tokens]."""

    found: Tensor

    def probabilities(self) -> Tensor:
        """Return them."""
        return self.found


class Masses(Reading):
    """Reads a denoiser by structure.

    Args:
        module: the denoiser, not compiled.

    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__({})
        self.structure = Structure(module, self._see, lambda: self.reads, self.guarded)
        self.structure.began = lambda: self.begin(self.structure.text)
        self._checked: set[str] = set()

    def _rows(self, found: dict[str, Any], rows: slice, text: Tensor) -> Mapping[str, Probable]:
        if why := self.structure.why():
            raise Unscored(why)
        missing = next((name for name in self.structure.sites if name not in found), None)
        if missing is not None:
            raise Unscored(f"the attention of {missing} cannot be read: the layer was left out of the call")
        return {name: Averaged(each[rows]) for name, each in found.items()}

    def _see(self, name: str, attended: Attended) -> Tensor | None:
        """Keep what a layer attends to; return its output where it was computed for the check."""
        text, found = self.structure.text, self.calls[-1][1]
        assert text is not None
        if name in found:
            raise Unscored(f"{name} computes more than once in a call")
        made = None if name in self._checked else attended.made()  # with its graph: the layer gives it out
        with torch.no_grad():
            if made is not None:
                if not attended.explains(made.detach()):
                    raise Unscored(f"what {name} gives out is not the softmax of its queries and keys")
                refuse_rows(name, attended.key, text)
                self._checked.add(name)
            seen = attended.probabilities() if self.positions else attended.mass()[:, None]
            found[name] = seen.unflatten(0, (len(text), -1)).flatten(1, 2)
        return made


def refuse_rows(name: str, key: Tensor, text: Tensor) -> None:
    """Raise Unscored if it cannot be told which rows of a layer belong to which row of the call.

    Models of frames repeat each row of the text, frame after frame. Where rows are repeated as a whole instead, the
    keys of neighbours differ, or are alike where the texts are not.

    Args:
        name: of the layer.
        key: [B * frames, heads, tokens, d].
        text: [B, tokens, d].

    """
    if len(key) == len(text):
        return
    frames = key.detach().unflatten(0, (len(text), -1))
    first = frames[:, 0]
    alike = bool((frames == first[:, None]).all()) and _same(first) == _same(text)
    if not alike or (len(text) > 1 and all(all(row) for row in _same(text))):
        raise Unscored(f"{name} has {len(key)} rows for {len(text)} prompts, and which are whose cannot be told")


def _same(rows: Tensor) -> list[list[bool]]:
    return [[torch.equal(one, other) for other in rows] for one in rows]
