"""The tensors of a LoRA file, before a model is known: its two factors in every naming, both there and all numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ..troubles import Refused

# how the two factors, and what stands beside them, are called
DOWN = re.compile(
    r"(?:\.lora_down|\.lora_A(?:\.\w+)?|\.lora\.down|_lora\.down|\.lora_linear_layer\.down)(?:\.weight)?$"
)
UP = re.compile(r"(?:\.lora_up|\.lora_B(?:\.\w+)?|\.lora\.up|_lora\.up|\.lora_linear_layer\.up)(?:\.weight)?$")


def stem(key: str) -> str:
    """Return the name of the layer in a key, without what follows it."""
    for pattern in (DOWN, UP):
        key = pattern.sub("", key)
    return key


def check(state: Mapping[str, Tensor], name: str) -> None:
    """Check that every factor has its other half, of the same rank, and that all values are finite.

    Args:
        state: tensors of the file.
        name: of the file, for errors.

    Raises:
        Refused: that names the first key of which this is not so.

    """
    downs, ups = ({stem(key): key for key in state if pattern.search(key)} for pattern in (DOWN, UP))
    alone = downs.keys() ^ ups.keys()
    if alone:
        first = min((downs | ups)[each] for each in alone)
        raise Refused(
            f"{name}: is not whole: the other half of {first} is missing ({len(alone)} of {len(downs | ups)} layers);"
            " save it again"
        )
    for each, key in downs.items():
        down, up, alpha = state[key], state[ups[each]], state.get(f"{each}.alpha")
        flat = min(down.ndim, up.ndim) < 2 or not down.numel() or not up.numel()
        if flat or down.shape[0] != up.shape[1] or (alpha is not None and alpha.numel() != 1):
            shapes = f"down {list(down.shape)}, up {list(up.shape)}"
            shapes += "" if alpha is None else f", alpha {list(alpha.shape)}"
            raise Refused(f"{name}: the shapes of {key} do not fit each other ({shapes}); save it again")
    for key, value in state.items():
        # formats of eight bits know no isfinite
        if value.is_floating_point() and not value.float().isfinite().all():
            raise Refused(f"{name}: holds values that are no numbers ({key}); take a checkpoint from before that")
