"""What a treatment puts into one model call of a pipeline: other text, and the plan of its edits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...attributions.moment import Encoded
from ...host import Role
from ...mitigations.base import Treatment
from ...mitigations.edit import OTHER, Edit, Plan
from ...mitigations.effect import Effect
from ...sampling import treated
from .calls import prompt_of, with_prompt
from .levels import level
from .rows import Prompts
from .texts import groups_of

NO_GUIDANCE = "guidance is off, so there is no guidance to change"


def exchanged(
    arguments: dict[str, Any], blocks: Mapping[Role, slice], treatment: Treatment, effect: Effect
) -> dict[str, Any]:
    """Return the arguments of a call with the text of a treatment; the same object where it has none.

    Args:
        arguments: by name.
        blocks: which rows carry the prompt and which do not.
        treatment: of the call.
        effect: is told which text is another one.

    """
    whole = prompt_of(arguments)
    own = {role: whole.rows(rows) for role, rows in blocks.items()}
    given = treated(own, treatment, effect)
    if all(given[role] is own[role] for role in blocks):
        return arguments
    text = whole.text.clone()
    pooled = None if whole.pooled is None else whole.pooled.clone()
    for role, rows in blocks.items():
        text[rows], vector = given[role].text, given[role].pooled
        if pooled is not None and vector is not None:
            pooled[rows] = vector
    return with_prompt(arguments, Encoded(text, pooled))


def suitable(treatment: Treatment, given: Mapping[Role, Encoded]) -> Treatment:
    """Return a treatment without the guidance that a pipeline without a negative prompt has no place for."""
    if not treatment.guidance or "negative" in given:
        return treatment
    return replace(treatment, guidance=()).note(f"guidance was left alone: {NO_GUIDANCE}")


class Plans:
    """The plans of one run's calls.

    Args:
        pipe: the pipeline.
        prompts: what it encodes in this run.

    Attributes:
        under: the plan that another mitigation has for the call in progress; its edits act first.

    """

    def __init__(self, pipe: Any, prompts: Prompts) -> None:
        self.pipe, self.prompts = pipe, prompts
        self.under: Plan | None = None
        self._groups: Tensor | None = None
        self._plan_for: Any = None  # what the plan below was made for; it holds for all calls of a run
        self._planned: Plan | None = None

    def plan(
        self,
        arguments: dict[str, Any],
        blocks: Mapping[Role, slice],
        edits: tuple[Edit, ...],
        effect: Effect,
        index: int,
    ) -> Plan | None:
        """Return the plan of a call; None without edits.

        Args:
            arguments: of the call, by name.
            blocks: which rows carry the prompt and which do not.
            edits: of the treatment.
            effect: is told which edits act.
            index: of the call.

        """
        if not edits:
            return None
        text = arguments["encoder_hidden_states"]
        sigma = level(self.pipe.scheduler, torch.as_tensor(arguments["timestep"])).sigma
        key = (edits, tuple((role, rows.start, rows.stop) for role, rows in blocks.items()), text.shape, text.device)
        if self._plan_for != key:
            self._plan_for, self._planned = key, self._new(edits, text, blocks)
        assert self._planned is not None
        self._planned.step, self._planned.sigma, self._planned.effect = index, sigma, effect
        return self._planned if self.under is None else self.under.followed_by(self._planned)

    def table(self, text: Tensor, blocks: Mapping[Role, slice]) -> Tensor | None:
        """Return what stands in each column of the prompt's rows; None where that is not known."""
        if self._groups is None:
            rows = len(text) // len(blocks)
            table = groups_of(self.pipe, self.prompts.texts, text.shape[1], rows, self.prompts.read)
            self._groups = None if table is None else table.to(text.device)
        return self._groups

    def _new(self, edits: tuple[Edit, ...], text: Tensor, blocks: Mapping[Role, slice]) -> Plan:
        conditional = torch.zeros(len(text), dtype=torch.bool, device=text.device)
        if "prompt" in blocks:
            conditional[blocks["prompt"]] = True
        found = None
        table = self.table(text, blocks)
        if table is not None and "prompt" in blocks:
            found = torch.full(text.shape[:2], OTHER, dtype=torch.int8, device=text.device)
            found[blocks["prompt"]] = table
        return Plan(edits, conditional, found)
