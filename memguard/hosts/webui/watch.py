"""What both WebUIs' watches do with a model call: score it, explain it, mitigate and guide by memguard.sampling.

Part of the WebUI hosts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from ...attributions.moment import Encoded
from ...mitigations.edit import Edit
from ...mitigations.effect import Effect
from ...records import StepEvidence
from ...sampling import Sampling, treated, unscored
from . import model, tokens
from .sampling import Pass
from .session import Session
from .texts import Texts
from .treated import Again, Treated

AND = "the prompt is joined of several by AND, and only one prompt can be mitigated"
UNGUIDED = "cfg is 1, so there is no guidance to change, and no prediction without the prompt to guide by"


class Watch(Treated):
    """Watches the passes of one session; as memguard.host.Network it lets a pass's network follow edits.

    Args:
        session: of one press of Generate.
        words: the host's file on prompts: which texts act, how they encode, gradients.

    """

    OLD = ""  # why a sampler of this host may not start once more
    network: Callable[[Any], Any]  # from the loaded model to its denoising network

    def __init__(self, session: Session, words: Any) -> None:
        super().__init__(session)
        self.words = words
        self._sampling: Sampling | None = None
        self._p: Any = None  # of the pass

    @property
    def widths(self) -> dict[str, int]:
        """The number of value neurons of each layer of cross-attention."""
        return self.editor.widths

    def following(
        self, edits: tuple[Edit, ...], call: Any, effect: Effect | None = None
    ) -> AbstractContextManager[Any]:
        """Let cross-attention follow edits in calls of ours."""
        return self.editor.following(edits, effect) if edits else nullcontext()

    def gradients(self) -> AbstractContextManager[Any]:
        """Let autograd through the network, for the time of the block."""
        found: AbstractContextManager[Any] = self.words.gradients(self._p)
        return found

    def empty(self, p: Any) -> Encoded | None:
        """Return the empty prompt, where prompts of the pass are compared with it and not with its negative prompt."""
        found: Encoded | None = self.words.empty(p) if self.session.guard.reference == "empty" else None
        return found

    def take(self, now: Pass, call: Any) -> None:
        """Take a model call that was just made; see memguard.host.Call."""
        if now.reader is not None:
            now.reader.disarm()
        gap = call.gap()
        if gap is not None:
            now.follow(call.level.sigma, gap)
        found = now.look(lambda number: self._evidence(now, number, call))
        now.explain(found, lambda: self.words.asked(call))
        now.scored()
        self.carry(now, lambda: self._treat(now, call), call.undo)

    def _run(self, now: Pass, call: Any) -> Sampling:
        """Return the driver of the pass."""
        if self._sampling is None or self._sampling.run is not now.run:
            p = self._p = call.p
            engine, texts = self.words.text_engine(p.sd_model), self.words.first(p)
            known = Texts(engine, partial(self.words.encode, p), texts, now.run.report.family)
            read = now.reader.treated if now.reader is not None and now.run.guard.attention else None
            self._sampling = Sampling(now.run, self, known, self.empty(p), read, self.interrupt)
        return self._sampling

    def _evidence(self, now: Pass, number: int, call: Any) -> StepEvidence | str:
        """Return the evidence of a scored call, or why there is none."""
        run = self._run(now, call)
        engine, texts = self.words.text_engine(call.p.sd_model), self.words.first(call.p)
        return unscored(call, run.empty) or run.evidence(
            call,
            number,
            model.numbers(call.p.prompts),
            **now.read(lambda: tokens.endings(engine, texts, call.columns)),
        )

    def _treat(self, now: Pass, call: Any) -> None:
        """Mitigate the first call of a flagged run, and guide every call of a treated one."""
        if now.run.to_mitigate:
            self._mitigate(now, call)
        treatment = self.treatment
        if treatment is None or not treatment.guidance or "prompt" not in call.given:
            return
        if "negative" not in call.predicted:  # it was skipped
            return
        assert self.effect is not None
        changed = self._run(now, call).guided(call, now.calls - 1, self.effect)
        if changed is not None:
            call.put({"prompt": changed}, treatment.images)
            self.effect.written()

    def _mitigate(self, now: Pass, call: Any) -> None:
        if not {"prompt", "negative"} <= call.given.keys():
            self.alone(now, AND if "negative" in call.given else UNGUIDED)
            return
        if self.OLD and not self.restarts and not model.from_picture(call.p):
            now.run.learn(notes=(*now.run.report.notes, self.OLD))
        run = self._run(now, call)
        with torch.inference_mode(False), torch.no_grad():
            self.edit(self.network(call.p.sd_model))
            self.editor.table = run.texts.table(call.columns)
        treatment, made = run.first(call)
        if not treatment.changes:
            return
        restarted = treatment.noise is not None
        self.adopt(now, treatment, None if made is None or restarted else made.effect)
        if restarted:
            now.run.extra_rows += 2 * len(call.x)  # the sampler asks for the first step once more
            raise Again
        call.exchange(treated(call.given, treatment))
        if made is not None:
            call.put(made.predicted, treatment.images)
