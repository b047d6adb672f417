"""Policy ``mitigate`` in a pipeline: the first call is scored as it is, and made again under what the loop decides.

Room: memguard.hosts, diffusers. May import: memguard.guard, memguard.loop, memguard.mitigations, torch.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import nn

from ...aside import aside
from ...detectors.text_noise_norm import NAME as NORM
from ...guard import Run
from ...loop import mitigate, undone
from ...mitigations.base import Treatment
from ...mitigations.effect import Effect
from ...records import Attempt, StepEvidence
from .calls import Call
from .halves import EARLY, STEPLESS
from .hooks import Trouble, eagerly, set_eager
from .reader import Reader
from .rows import OWN, Unscored
from .starting import start
from .steering import Again, Steering, suitable

EDITED = "an edit of the attention itself is not scored by attention"


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
        self.steering = Steering(reader.pipe, module, reader.prompts, self._count, trouble, cfg, run.carry)
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
        if self._over or not self.run.to_mitigate:
            return self.steering.after(module, args, kwargs, output)
        self._over = True
        if self.reader.why:  # the score came from the scheduler, which does not tell how to make the call again
            self.run.learn(attempts=(Attempt("none", changes=(self.reader.why,)),))
            return None
        with aside(module):  # gradients compute blocks again, outside of any evaluation
            return self._first(self.reader.call(module, args, kwargs, output), output)

    def undo(self) -> None:
        """Leave the run alone after trouble; the report says what of the treatment is left."""
        if not self.steering.treatment.changes and not self.run.report.attempts:
            return
        undone(self.run, 0 if self.steering.undo() else self.steering.treated, self.steering.trouble.error)

    def _first(self, call: Call, output: Any) -> Any:
        steering, prompts, pair = self.steering, self.reader.prompts, self.reader.pair
        made: list[tuple[Again, ...]] = []
        try:
            asked = [(each, {role: slice(0, len(each.text))}) for role, each in pair.items()]  # the prompt's first
            asked = asked or [(call, steering.blocks(call.text))]
            if not pair and prompts.uncond is not None and set(asked[0][1]) != {"cond", "uncond"}:
                raise Unscored(EARLY)
            if pair and not callable(getattr(self.reader.pipe.scheduler, "step", None)):
                raise Unscored(STEPLESS)
        except Unscored as reason:
            self.run.learn(attempts=(Attempt("none", changes=(str(reason),)),))
            return None
        call, blocks = asked[0]
        scored = next((f for f in self.run.report.findings if f.detector == NORM), None)
        began = start(
            self.reader.pipe,
            call,
            blocks,
            prompts,
            steering.editor,
            scored,
            self._count,
            steering.latents.scale(call),
            self.run.report.model,
        )

        def redo(treatment: Treatment) -> StepEvidence:
            with self.reader.reading_again():
                again = steering.again(*asked[0], treatment)
            rest = [steering.again(*each, treatment) for each in asked[1:]]
            made.append((again, *rest))
            cond = blocks["cond"]
            if rest and not self.reader.wish_differs():
                reference = rest[0].call.prediction
            else:
                reference = self.reader.compared(again.call, cond, blocks.get("uncond"))
            evidence = replace(self.reader.evidence(again.call, cond, reference), step=0)
            if treatment.edits and evidence.attention is not None:  # what was read are the projections before the edit
                evidence = replace(evidence, attention=None, summary=None, unread=EDITED)
            return evidence

        if self.reader.wish_differs() and prompts.wished is not None:
            began = replace(began, reference=prompts.wished.head(len(began.prompt.text)))
        with steering.editor.installed(), eagerly(self.module):
            treatment = mitigate(self.run, began, redo)
        if not treatment.changes:
            steering.calls += 1
            return None
        steering.adopt(suitable(treatment, blocks, given=prompts.uncond is not None), call.layout)
        self.stack.enter_context(steering.editor.installed())
        set_eager(self.stack, self.module)
        kept = next((each for each in reversed(made) if each[0].treatment.predicts_as(treatment)), ())
        if pair:
            steering.wait(pair, kept)
            return None
        first = kept[0] if kept else Again(Treatment(), call, output, Effect(Treatment()))
        given = steering.guided(first)
        steering.calls, steering.treated = steering.calls + 1, steering.treated + 1
        return given

    def _count(self, rows: int) -> None:
        self.run.extra_rows += rows
