"""Policy ``mitigate`` in a pipeline: the first call is scored as it is, and made again under what the loop decides."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...aside import aside
from ...guard import Run
from ...loop import mitigate, undone
from ...mitigations.base import Start, Treatment
from ...passes import left_alone, takes_over
from ...records import Attempt, StepEvidence
from ...troubles import Told
from .blind import Blind, Guided
from .calls import Call
from .halves import EARLY, STEPLESS
from .hooks import Trouble, eagerly, set_eager
from .levels import level
from .putting import suitable
from .reader import Reader
from .rows import ALIKE, OWN, Unscored
from .steering import Steering

UNREAD_ROWS = "rows of the model's calls do not tell their prompt"


class Mitigating:
    """The hooks of one run under policy "mitigate": an ordinary run goes on untouched.

    Args:
        run: of the guard.
        reader: scores the first call.
        stack: of the run; what a treatment needs stays on it until the run is over.
        trouble: of the run.
        cfg: guidance scale that the pipeline was called with.

    """

    def __init__(
        self, run: Run, reader: Reader, module: nn.Module, stack: ExitStack, trouble: Trouble, cfg: float | None
    ) -> None:
        self.run, self.reader, self.stack, self.module = run, reader, stack, module
        self.steering = Steering(reader.pipe, module, reader.prompts, run, trouble, cfg, reader)
        self.blind: Guided | None = None  # of a run that the scheduler's step has scored
        self._over = False  # whether the run was given its one chance, at its first step

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the arguments of a model call under the treatment, if there is one."""
        return self.steering.before(module, args, kwargs)

    def plainly(self) -> bool:
        """Whether a compiled model is to run as it is written: its graph would not follow the edits."""
        return bool(self.steering.treatment.edits)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Score and mitigate the first call, guide the others; the signature is that of a forward hook."""
        self.reader(module, args, kwargs, output)
        if OWN.get():
            return None
        if self._over or self.reader.why or not self.run.to_mitigate:
            return self.steering.after(module, args, kwargs, output)
        self._over = True
        with aside(module):  # gradients compute blocks again, outside of any evaluation
            return self._first(self.reader.call(module, args, kwargs, output), output)

    def put(self, received: Tensor, timestep: Any, sample: Any) -> Tensor | None:
        """Return what the scheduler is to receive of a step; None leaves it."""
        reader = self.reader
        if reader.received is not None:
            reader.take(received, timestep, sample)
        if not reader.scheduled or reader.received is None:
            return self.steering.put(received, timestep, sample) if self.steering.halves.own else None
        if self.run.to_mitigate and not self._over:
            self._over = True
            self.blind = self._blindly(level(reader.pipe.scheduler, torch.as_tensor(timestep)).sigma)
        if self.blind is None or not self.blind.treatment.guidance:
            return None
        try:
            joined = reader.received.joined(reader.received.last, received, timestep, sample)
        except Unscored as reason:
            if str(reason) != ALIKE:
                raise
            self.blind.steps += 1  # without a gap there is nothing to guide by
            return None
        return self.blind.put(joined, received)

    def _blindly(self, sigma: float) -> Guided:
        """Return the guidance of a run whose rows do not tell their prompt, as the loop decides."""

        def redo(treatment: Treatment) -> StepEvidence:
            raise Unscored(why)

        why = self.reader.why or UNREAD_ROWS
        found, start = Guided(self.reader.pipe, why), Blind(why, self.run, sigma)
        if takes_over(self.run):  # what the first pass went on with acts on rows, which are not told apart here
            left_alone(self.run, why)
            return found
        try:
            treatment = mitigate(self.run, cast(Start, start), redo)
        except Told as reason:  # of several prompts some are memorized, and rows are not told apart
            self.run.learn(attempts=(Attempt("none", changes=(str(reason),)),))
            return found
        if treatment.changes:
            found.treatment, found.effect = treatment, self.run.carry(treatment)
            assert self.reader.received is not None
            self.reader.received.follows = True
        return found

    def undo(self) -> None:
        """Leave the run alone after trouble; the report says what of the treatment is left."""
        if self.blind is not None:
            steps, self.blind = self.blind.steps, None
            undone(self.run, steps, self.steering.trouble.error)
            return
        if not self.steering.treatment.changes and not self.run.report.attempts:
            return
        undone(self.run, 0 if self.steering.undo() else self.steering.treated, self.steering.trouble.error)

    def _first(self, call: Call, output: Any) -> Any:
        steering, prompts, two = self.steering, self.reader.prompts, self.reader.pair
        try:
            asked = [(each, {role: slice(0, len(each.text))}) for role, each in two.items()]  # the prompt's first
            asked = asked or [(call, steering.blocks(call.text))]
            if not two and prompts.uncond is not None and set(asked[0][1]) != {"prompt", "negative"}:
                raise Unscored(EARLY)
            if two and not callable(getattr(self.reader.pipe.scheduler, "step", None)):
                raise Unscored(STEPLESS)
        except Unscored as reason:
            self.run.learn(attempts=(Attempt("none", changes=(str(reason),)),))
            return None
        pair = steering.pair(asked)
        with steering.editor.installed(), eagerly(self.module):
            treatment, again = steering.sampling(pair).first(pair)
        if not treatment.changes:
            steering.calls += 1
            return None
        steering.adopt(suitable(treatment, pair.given), call.layout)
        self.stack.enter_context(steering.editor.installed())
        set_eager(self.stack, self.module)
        if two:
            steering.wait(two, again)
            return None
        given = steering.guided(pair, again, output)
        steering.calls, steering.treated = steering.calls + 1, steering.treated + 1
        return given
