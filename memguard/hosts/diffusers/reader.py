"""From the denoiser calls of one pipeline run to StepEvidence, or to the reason why there is none.

A call may carry both prompts (rows told apart by ``Prompts.roles``), or the pipeline makes one call for each, or only
the prompt is there (guidance off); then a row per image is spent if that was asked for.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, equal, nn, no_grad

from ...attributions.attention import mass
from ...attributions.moment import Encoded
from ...host import ROLES, Role
from ...records import Reference, StepEvidence
from ...steps import Steps
from .calls import Call
from .levels import level, steps_of
from .listener import Listener
from .pipes import family, latent_pixels, learns_variance, model_calls, unguided
from .projected import Reading
from .received import Received, Untold
from .rows import ONCE, OWN, SAME, SAME_EMPTY, UNCALLED, Prompts, Unguided, Unscored
from .tokens import summary

UNPAIRED = "no two of the pipeline's model calls were seen to predict one step with and without the prompt"


@dataclass(frozen=True)
class Shared:
    """A reference prediction that holds for every prompt of a scan: same latents, same timestep."""

    x: Tensor
    timestep: Tensor
    prediction: Tensor

    def fits(self, call: Call, rows: int) -> bool:
        """Whether the first rows of a call start from the same latents at the same timestep."""
        return equal(self.timestep, call.timestep.flatten()[:1]) and equal(self.x, call.x[:rows])


class Reader:
    """A forward hook for the denoiser of one run, and a hook for its scheduler's steps.

    Args:
        pipe: the pipeline that runs.
        run: who gets the evidence.
        prompts: what the pipeline encodes in this run; a wish in it allows to spend rows.
        reference: what the evidence says that the prompt is compared with.
        cfg: guidance scale, for the reason where guidance is off.
        images: rows per prompt, if every prompt starts from the same latents; their first reference prediction is then
            made once and kept in ``shared``.
        shared: that prediction, of an earlier batch.
        read: the model's cross-attention, or why it cannot be read; None where nobody asks for it.
        late: whether steps are scored after others that are not.
        received: finds the roles where rows do not tell their prompt; None leaves such runs without a score.

    """

    def __init__(
        self,
        pipe: Any,
        run: Listener,
        prompts: Prompts,
        reference: Reference,
        cfg: float | None = None,
        images: int | None = None,
        shared: Shared | None = None,
        read: Reading | str | None = None,
        late: bool = False,
        received: Received | None = None,
    ) -> None:
        self.read, self.late, self.received = read, late, received
        self.pipe, self.run, self.prompts, self.reference, self.cfg = pipe, run, prompts, reference, cfg
        self.images, self.shared = images, shared
        self.step = 0
        self.calls = 0  # of the denoiser, seen so far
        self.variance = learns_variance(pipe)
        self._steps: Steps | None = None  # of a run whose late steps are scored
        self._over = False
        self.scheduled = False  # whether the score is of what the scheduler received
        self.why = ""  # why rows do not tell their prompt; the scheduler's step is waited for
        self._unguided = False  # whether that is because guidance is off
        self._batched = False  # both prompts were seen in one call
        self._half: tuple[Role, Call] | None = None  # of a pair that comes in two calls
        self.pair: dict[Role, Call] = {}  # the last one, by role
        self._full_noise: bool | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Read one denoiser call; the signature is that of a forward hook with kwargs."""
        if self._over or OWN.get():
            return
        self.calls += 1
        if self.received is not None and (self.received.follows or self.run.wants(self.step)):
            self.received.add(output)
        if self.why:
            return
        try:
            if self.late:
                self.step = self._step(self.call(module, args, kwargs, output))
            if not self.run.wants(self.step):
                return
            evidence = self._read(self.call(module, args, kwargs, output))
        except Unscored as reason:
            if self.received is not None and str(reason) != SAME:
                self.why, self._unguided = str(reason), isinstance(reason, Unguided)
            else:
                self._end(str(reason))
            return
        if evidence is not None:
            if not self.late:
                self.step += 1
            self.run.observe(evidence)

    def take(self, output: Tensor, timestep: Any, sample: Any) -> None:
        """Read a step that the scheduler is about to take, where the model's calls were not enough."""
        assert self.received is not None
        if self.calls and not self._over and self.step <= self.received.taken and self.run.wants(self.step):
            try:
                evidence = self.received.evidence(self.step, output, timestep, sample)
            except Untold as reason:
                self._end(self.why or str(reason))
                return
            except Unscored as reason:
                self._end(self.why if str(reason) == ONCE and self._unguided else str(reason))
                return
            self.step, self.scheduled = self.step + 1, True
            self.received.step()
            self.run.observe(evidence)
            return
        self.received.step()

    def _end(self, reason: str) -> None:
        """There will be no score."""
        self._over = True
        self.run.unavailable(reason)
        self.run.insist()

    def call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Call:
        """Return what a hook sees as a Call."""
        return Call.of(module, args, kwargs, output, self.variance)

    def why_not(self) -> str:
        """Return why a run that went to its end has no evidence."""
        if self.calls == 0:
            return UNCALLED
        return self.why or UNPAIRED

    def _step(self, call: Call) -> int:
        """Return the step that a call belongs to; the first call of a step stands for it."""
        if self._steps is None:
            self._steps = steps_of(self.pipe.scheduler, model_calls(self.pipe))
            self.run.count = self._steps.count
        return self._steps.of(level(self.pipe.scheduler, call.timestep).timestep)

    def _read(self, call: Call) -> StepEvidence | None:
        if self.step == 0:
            factor = latent_pixels(self.pipe)
            height, width = (factor * n for n in call.x.shape[-2:])
            self.run.learn(height=height, width=width)
        roles = self.prompts.roles(call.text)
        cond, uncond = self.prompts.cond, self.prompts.uncond
        if cond is not None and uncond is not None and cond.same(uncond) and not self.wish_differs():
            raise Unscored(SAME)
        if sorted(roles) == sorted(ROLES):
            self._batched = True
            return self._pair(call, roles)
        if roles == ["prompt"]:
            return self._alone(call)
        if roles == ["negative"]:
            return self._second("negative", call)
        if roles.count("prompt") > 1 or roles.count("negative") > 1:
            raise Unscored(
                f"one model call holds the rows {' + '.join(roles)}: the plain predictions cannot be told from those"
                " of another guidance (PAG, image guidance, ...)"
            )
        raise Unscored("rows of the model call match neither the prompt nor the negative prompt of the pipeline")

    def _pair(self, call: Call, roles: list[str]) -> StepEvidence:
        n = len(call.text) // 2
        blocks = {role: slice(i * n, (i + 1) * n) for i, role in enumerate(roles)}
        cond, uncond = blocks["prompt"], blocks["negative"]
        if not equal(call.x[cond].nan_to_num(), call.x[uncond].nan_to_num()):
            raise Unscored("the prompt and the negative prompt act on different latents")
        return self.evidence(call, cond, self.compared(call, cond, uncond))

    def compared(self, call: Call, cond: slice, uncond: slice | None) -> Tensor:
        """Return what is predicted for the prompt's rows without it: the call's own rows, or rows that are spent."""
        if uncond is None or self.wish_differs():
            return self._spend(call, cond)
        return call.prediction[uncond]

    def _alone(self, call: Call) -> StepEvidence | None:
        everything = slice(0, len(call.text))
        if self.prompts.uncond is None:
            if self.prompts.wish is None:
                raise Unguided(unguided(call.module, self.cfg))
            return self.evidence(call, everything, self._spend(call, everything))
        if self._batched:
            return None  # a further prediction of another guidance (skip-layer guidance), at a step that was read
        if self.wish_differs():
            return self.evidence(call, everything, self._spend(call, everything))
        return self._second("prompt", call)

    def _second(self, role: Role, call: Call) -> StepEvidence | None:
        """Keep the first half of a pair that comes in two calls; return the evidence when the second comes."""
        if self._half is None or self._half[0] == role:
            self._half = (role, call)
            return None
        first, self._half = self._half[1], None
        if not equal(first.timestep, call.timestep) or not equal(first.x.nan_to_num(), call.x.nan_to_num()):
            raise Unscored("the prompt and the negative prompt act on different latents")
        cond, uncond = (call, first) if role == "prompt" else (first, call)
        self.pair = {"prompt": cond, "negative": uncond}
        return self.evidence(cond, slice(0, len(cond.text)), uncond.prediction)

    def wish_differs(self) -> bool:
        """Whether the prompt is compared with another one than the run's own negative prompt."""
        wished, uncond = self.prompts.wished, self.prompts.uncond
        return wished is not None and (uncond is None or not wished.same(uncond))

    def _spend(self, call: Call, rows: slice) -> Tensor:
        """Predict rows with the wished prompt, once for all prompts that start from the same latents."""
        n = self.images
        if n is None or self.step > 0:
            return self._repeat(call, rows)
        if self.shared is None or not self.shared.fits(call, n):
            part = slice(rows.start, rows.start + n)
            self.shared = Shared(call.x[part].clone(), call.timestep.flatten()[:1].clone(), self._repeat(call, part))
        made = self.shared.prediction
        return made.repeat((rows.stop - rows.start) // n, *(1,) * (made.ndim - 1))

    def _repeat(self, call: Call, rows: slice) -> Tensor:
        wished, count = self.prompts.wished, rows.stop - rows.start
        assert wished is not None and self.prompts.cond is not None
        if wished.same(self.prompts.cond):
            raise Unscored(SAME_EMPTY)
        watching = self.reference == "empty" and self.images is None  # a scan spends rows on either reference
        call.takes_another_prompt("; use the negative prompt as reference" if watching else "")
        with no_grad():
            made = call.repeat(rows, wished.head(count))
        self.run.extra_rows += count
        return made

    def evidence(self, call: Call, rows: slice, reference: Tensor) -> StepEvidence:
        """Return the evidence of some rows of a call.

        Args:
            call: the model call.
            rows: that carry the prompt.
            reference: what is predicted without it, in the model's own units, [R, C, h, w] or [R, C, T, h, w].

        """
        here = level(self.pipe.scheduler, call.timestep)
        if self._full_noise is None:
            self._full_noise = here.full_noise
        x = call.x[rows]
        return StepEvidence(
            step=self.step,
            num_steps=model_calls(self.pipe) if self._steps is None else self._steps.count,
            sigma=here.sigma,
            sigma_max=here.sigma_max,
            timestep=here.timestep,
            noise_cond=here.convert(call.prediction[rows], x),
            noise_uncond=here.convert(reference, x),
            parameterization=here.parameterization,
            family=family(call.module),
            reference=self.reference,
            full_noise=self._full_noise,
            prompts=numbers if any(numbers := Encoded(call.text[rows]).prompts()) else (),
            **self.attention(call, rows),
        )

    def reading_again(self) -> AbstractContextManager[None]:
        """Return the block in which a call of our own is read as the pipeline's are, where attention is asked for."""
        return self.read.again() if isinstance(self.read, Reading) else nullcontext()

    def attention(self, call: Call, rows: slice) -> dict[str, Any]:
        """Return what StepEvidence holds of the attention of these rows."""
        if not isinstance(self.read, Reading):
            return {"unread": self.read or ""}
        try:
            probabilities = self._read_attention(self.read, call, rows)
        except Unscored as reason:
            return {"unread": str(reason)}
        masses = {name: mass(found) for name, found in probabilities.items()}
        last = summary(self.pipe, self.prompts, call.text.shape[1], rows.stop - rows.start)
        return {"attention": masses, "summary": None if last is None else last.to(call.text.device)}

    def _read_attention(self, read: Reading, call: Call, rows: slice) -> dict[str, Tensor]:
        """Return the attention of these rows, layer -> [B, positions, tokens]."""
        return {name: found.probabilities() for name, found in read.take(rows, call.text).items()}
