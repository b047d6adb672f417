"""One computation of attention as torch gets it, and its softmax: the model's own, with mask and scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ATTEND = functional.scaled_dot_product_attention
NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
OUT = -1e3  # a mask that is added takes part below this; models add -10000, the lowest number or minus infinity
SOME = 64  # positions that are computed a second time
CLOSE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of the largest value; half precision: 0.05
ELEMENTS = 2**24  # probabilities that are held at a time


@dataclass(frozen=True)
class Attended:
    """What scaled_dot_product_attention is called with.

    Attributes:
        query: [B, heads, positions, d].
        key: [B, heads, tokens, d]; fewer heads where several queries share one.
        value: [B, heads, tokens, e].
        mask: None, bool (True takes part), or numbers that are added to the logits; broadcasts to
            [B, heads, positions, tokens].
        scale: of the logits.
        others: further arguments.

    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    others: Mapping[str, Any]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Attended:
        """Return a call by its arguments."""
        given = dict(zip(NAMES, args, strict=False)) | dict(kwargs)
        query, key, value = (given.pop(name) for name in NAMES[:3])
        mask, scale = given.pop("attn_mask", None), given.pop("scale", None)
        return cls(query, key, value, mask, 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale), given)

    @property
    def plain(self) -> bool:
        """Whether it is softmax(q k^T) v of four axes and nothing more."""
        tensors = (self.query, self.key, self.value)
        return all(t.ndim == 4 for t in tensors) and not self.others.get("is_causal")

    def made(self) -> Tensor:
        """Return what torch gives out, [B, heads, positions, e]."""
        return ATTEND(self.query, self.key, self.value, attn_mask=self.mask, scale=self.scale, **self.others)

    def whole(self) -> Attended:
        """Return the same with as many heads of keys and values as of queries."""
        if self._shared == 1:
            return self
        key, value = (each.repeat_interleave(self._shared, 1) for each in (self.key, self.value))
        others = {name: value for name, value in self.others.items() if name != "enable_gqa"}
        return Attended(self.query, key, value, self.mask, self.scale, others)

    def masked(self, rows: Tensor | slice, columns: Tensor | slice) -> Tensor | None:
        """Return the mask of some rows and tokens."""
        if self.mask is None:
            return None
        mask = _whole(self.mask)
        mask = mask[rows] if len(mask) > 1 else mask
        return mask[..., columns] if mask.shape[-1] > 1 else mask

    def mass(self) -> Tensor:
        """Return the mean of the probabilities over heads and positions, float32 [B, tokens]."""
        rows, heads, positions, _ = self.query.shape
        total = torch.zeros((rows, self.key.shape[2]), dtype=torch.float32, device=self.query.device)
        size = max(1, ELEMENTS // (rows * self.key.shape[2]))
        for head in range(heads):
            for start in range(0, positions, size):
                total += self._softmax(head, slice(start, start + size)).sum(1)
        return total / (heads * positions)

    def probabilities(self) -> Tensor:
        """Return the mean of the probabilities over the heads, float32 [B, positions, tokens]."""
        heads = self.query.shape[1]
        total = self._softmax(0, slice(None))
        for head in range(1, heads):
            total += self._softmax(head, slice(None))
        return total / heads

    def explains(self, made: Tensor) -> bool:
        """Whether softmax(q k^T) v is what torch gave out, for some positions of the first row."""
        here, heads, shared = slice(0, SOME), self.query.shape[1], self._shared
        expected = torch.stack(
            [self._softmax(head, here, 1)[0] @ self.value[0, head // shared].float() for head in range(heads)]
        )
        expected, found = expected.nan_to_num(), made[0, :, here].float().nan_to_num()  # NaN is said of the masses
        largest = expected.abs().amax().clamp(min=1e-6)
        return bool((expected - found).abs().amax() <= CLOSE.get(made.dtype, 0.05) * largest)

    def live(self) -> Tensor | None:
        """Return which tokens take part at all, bool [B, tokens]; None where all do."""
        if self.mask is None:
            return None
        part = self.mask if self.mask.dtype == torch.bool else self.mask > OUT
        return _whole(part).amax((1, 2)).expand(len(self.query), self.key.shape[2])

    @property
    def _shared(self) -> int:
        """The number of query heads that share a head of keys and values."""
        return self.query.shape[1] // self.key.shape[1]

    def _softmax(self, head: int, positions: slice, rows: int | None = None) -> Tensor:
        """Return the probabilities of one head, float32 [B, n, tokens], of the first rows or of all."""
        query, key = self.query[:rows, head, positions].float(), self.key[:rows, head // self._shared].float()
        logits = query @ key.transpose(-1, -2) * self.scale
        if self.mask is not None:
            mask = _whole(self.mask)
            mask = mask[: rows if len(mask) > 1 else None, head if mask.shape[1] > 1 else 0]
            mask = mask[:, positions] if mask.shape[1] > 1 else mask
            logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask.float()
        return logits.softmax(-1)


def _whole(mask: Tensor) -> Tensor:
    """Return a mask of four axes."""
    return mask[(None,) * (4 - mask.ndim)]
