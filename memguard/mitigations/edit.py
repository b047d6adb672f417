"""The one cross-attention edit that serves every mitigation in every host.

An edit is a function of projected queries, keys and values: multiplying a logit by c is multiplying its key by c, and
silencing a value neuron is a zero in v. Two things cannot be said that way, and an edit may say them apart: ``keep``
names the keys that take part at all (the others are left out of the computation, so a masked prompt is cheaper), and
``bias`` is added to the logits. A host puts them together with ``Plan.attend`` and gives its own attention function, so
no backend is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# said of models whose prompt and picture share their attention, and of those whose layers have other names
NOWHERE = "MemGuard knows no cross-attention layers of this model"
CHUNK = 77  # columns of a CLIP prompt; longer prompts are chunks of it, each with its own BOS, EOS and padding
OTHER, BOS, WORD, EOS, PADDING = range(5)  # what stands in a token column; OTHER: not text (pictures as prompts)
CODES = {"bos": BOS, "word": WORD, "eos": EOS, "padding": PADDING}

Part = Tensor | slice  # some rows or columns; a slice where they lie together, so that nothing is copied
# q, k, v as [R, positions or tokens, heads * d], a bias that broadcasts to [R, heads, positions, tokens], and which
# rows and columns of the call these are (None: all) -> output [R, positions, ...]
Backend = Callable[[Tensor, Tensor, Tensor, "Tensor | None", "Part | None", "Part | None"], Tensor]


@dataclass(frozen=True)
class AttentionSite:
    """Where an edit acts: one cross-attention layer within one model call.

    Attributes:
        layer: its diffusers name, "down_blocks.0.attentions.0.transformer_blocks.0.attn2".
        heads: number of heads.
        scale: of the logits, usually 1 / sqrt(d).
        conditional: which rows carry the prompt, bool [B].
        groups: what stands in each token column, int8 [B, tokens] of OTHER, BOS, WORD, EOS and PADDING; None where the
            prompt's tokens are not known.
        step: index of the model call.
        sigma: noise level of the call, as in StepEvidence.

    """

    layer: str
    heads: int
    scale: float
    conditional: Tensor
    groups: Tensor | None = None
    step: int = 0
    sigma: float = 0.0


class Edit:
    """An edit that changes nothing; a mitigation overrides what it needs."""

    def acts(self, layer: str) -> bool:
        """Whether the edit acts on a layer."""
        return True

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [B, positions, heads * d], keys and values [B, tokens, heads * d] to use instead."""
        return q, k, v

    def keep(self, conditional: Tensor, groups: Tensor | None) -> Tensor | None:
        """Return which keys take part, bool [B, tokens]; None for all. The same in every layer."""
        return None

    def bias(self, q: Tensor, k: Tensor, site: AttentionSite) -> Tensor | None:
        """Return what is added to the scaled logits, [B, heads, positions, tokens]; None for nothing."""
        return None


class Told(Protocol):
    """Who is told which edits act: ``memguard.mitigations.effect.Effect``."""

    def lacks(self, number: int) -> bool:
        """Whether an edit has changed nothing so far."""

    def edited(self, numbers: Sequence[int]) -> None:
        """Take the numbers of edits that have changed what a layer computes."""


class Plan:
    """The edits of one model call.

    Args:
        edits: applied in this order, each on what the one before returned.
        conditional: which rows carry the prompt, bool [B].
        groups: what stands in each token column, int8 [B, tokens], or None.
        step: index of the model call.
        sigma: noise level of the call.
        effect: is told which edits have changed what a layer computes; None where the call is not the run's own.

    """

    def __init__(
        self,
        edits: Sequence[Edit],
        conditional: Tensor,
        groups: Tensor | None,
        step: int = 0,
        sigma: float = 0.0,
        effect: Told | None = None,
    ) -> None:
        self.edits, self.conditional, self.groups, self.step, self.sigma = edits, conditional, groups, step, sigma
        self.effect = effect
        self._keeps = [edit.keep(conditional, groups) for edit in edits]
        self._cutting = [n for n, keep in enumerate(self._keeps) if keep is not None and not bool(keep.all())]
        self._alike = _alike(self._keeps)
        self._spared = False  # whether the model's own mask was asked for
        self.cuts = self._alike is not None  # whether keys are left out, in every layer

    def followed_by(self, other: Plan) -> Plan:
        """Return the plan of one call under the edits of both, this one's first: two mitigations, each with a plan."""
        groups = self.groups if other.groups is None else other.groups
        both = Plan((*self.edits, *other.edits), other.conditional, groups, other.step, other.sigma)
        both.effect = _Both(self.effect, len(self.edits), other.effect)
        return both

    def fits(self, k: Tensor) -> bool:
        """Whether a layer sees the rows that the plan was made for; regional prompts change their number inside."""
        return len(k) == len(self.conditional) and (self.groups is None or self.groups.shape[-1] == k.shape[1])

    def attend(
        self,
        layer: str,
        heads: int,
        scale: float,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        backend: Backend,
        live: Callable[[], Tensor | None] = lambda: None,
    ) -> Tensor:
        """Return the output of one layer under all edits.

        Args:
            layer: its name.
            heads: number of heads.
            scale: of the logits.
            q: queries, [B, positions, heads * d].
            k: keys, [B, tokens, heads * d].
            v: values, like k.
            backend: the host's own attention.
            live: gives the keys that the model itself lets take part, bool [B, tokens], the same in every layer; None
                for all.

        """
        if self._cutting and not self._spared:
            self._spare(live())
        site = AttentionSite(layer, heads, scale, self.conditional, self.groups, self.step, self.sigma)
        bias, acted = None, list(self._cutting)
        for number, edit in enumerate(self.edits):
            if edit.acts(layer):
                before = q, k, v
                q, k, v = edit(q, k, v, site)
                more = edit.bias(q, k, site)
                if self.effect is not None and self.effect.lacks(number) and _acts(before, (q, k, v), more):
                    acted.append(number)
                if more is not None:
                    bias = more if bias is None else bias + more
        out = self._output(q, k, v, bias, backend)
        if self.effect is not None and acted:
            self.effect.edited(acted)
        return out

    def _spare(self, live: Tensor | None) -> None:
        """Leave out no key for an edit that leaves out nothing but what the model masks anyway."""
        self._spared = True
        if live is None:
            return
        keeps = [None if keep is None or not bool((~keep & live).any()) else keep for keep in self._keeps]
        self._cutting, self._alike = [n for n, keep in enumerate(keeps) if keep is not None], _alike(keeps)

    def _output(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, backend: Backend) -> Tensor:
        if self._alike is None:
            return backend(q, k, v, bias, None, None)
        found = []
        for rows, columns in self._alike:
            part = None if bias is None else bias[rows][..., columns]
            found.append(backend(q[rows], k[rows][:, columns], v[rows][:, columns], part, rows, columns))
        if all(isinstance(rows, slice) for rows, _ in self._alike):
            return torch.cat(found)
        out = found[0].new_empty((len(q), *found[0].shape[1:]))
        for (rows, _), part in zip(self._alike, found, strict=True):
            out[rows] = part
        return out


class _Both:
    """Tells two effects which of their own edits act, of a plan that has the edits of the first before the other's."""

    def __init__(self, first: Told | None, count: int, second: Told | None) -> None:
        self._parts = ((first, 0, count), (second, count, None))

    def lacks(self, number: int) -> bool:
        """Whether an edit has changed nothing so far, for the one who is to be told."""
        for told, start, end in self._parts:
            if number >= start and (end is None or number < end):
                return told is not None and told.lacks(number - start)
        return False

    def edited(self, numbers: Sequence[int]) -> None:
        """Tell each what its own edits have changed."""
        for told, start, end in self._parts:
            own = [number - start for number in numbers if number >= start and (end is None or number < end)]
            if told is not None and own:
                told.edited(own)


def _acts(before: Sequence[Tensor], after: Sequence[Tensor], bias: Tensor | None) -> bool:
    """Whether an edit changed queries, keys or values, or adds something to the logits."""
    if bias is not None and bool(bias.any()):
        return True
    return any(a is not b and not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _alike(keeps: Sequence[Tensor | None]) -> list[tuple[Part, Part]] | None:
    """Return rows that keep the same columns, as (rows, columns); None where all rows keep all columns.

    Slices come in the order of their rows.
    """
    kept = None
    for keep in keeps:
        if keep is not None:
            kept = keep if kept is None else kept & keep
    if kept is None or bool(kept.all()):
        return None
    patterns, which = kept.unique(dim=0, return_inverse=True)
    found = [(_part(which == number), _part(pattern)) for number, pattern in enumerate(patterns)]
    return sorted(found, key=lambda item: item[0].start if isinstance(item[0], slice) else -1)


def _part(chosen: Tensor) -> Part:
    indices = torch.nonzero(chosen).flatten()
    first, last = int(indices[0]), int(indices[-1])
    return slice(first, last + 1) if last + 1 - first == len(indices) else indices


def last_share(columns: Tensor, share: float) -> Tensor:
    """Return the last ``share`` of the columns of each row, bool [B, tokens], rounded up; 1 returns all of them."""
    if share >= 1:
        return columns
    from_the_end = columns.flip(-1).cumsum(-1).flip(-1)
    wanted = (columns.sum(-1, keepdim=True) * share).ceil()
    return columns & (from_the_end <= wanted)


def heads_last(values: Tensor, heads: int) -> Tensor:
    """Return [B, n, heads, d] of [B, n, heads * d]."""
    found: Tensor = values.unflatten(-1, (heads, -1))
    return found


def rows_of(table: Tensor, rows: int) -> Tensor:
    """Return a table of one or of all rows with as many rows as asked for."""
    return table.expand(rows, -1) if len(table) == 1 else table
