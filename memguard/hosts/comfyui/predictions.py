"""What the model calls of a run predict, by role, and the evidence that is made of it.

Every denoised prediction D becomes (x - D) / sigma: epsilon for epsilon- and v-prediction models in ComfyUI's
coordinates, the velocity for flow models. The gap between two prompts is then (D_uncond - D_cond) / sigma for all.

Part of the ComfyUI host.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...attributions.moment import Encoded
from ...guard import Run
from ...records import Reference, StepEvidence
from . import model, roles
from .calls import TEXT, layout_of
from .coverage import both, coverage


class Predictions:
    """The predictions of one model call of a run.

    Args:
        run: of the core.
        guider: that the run belongs to.

    Attributes:
        found: role -> noise [B, C, ...] in units of epsilon, and where the role acts (None: everywhere).
        negative_is_empty: whether the negative prompt is the empty one.
        from_nothing: whether the latent was empty, so that the run starts from pure noise.

    """

    def __init__(self, run: Run, guider: Any) -> None:
        self.run, self.guider = run, guider
        self.found: dict[str, tuple[Tensor, Tensor | None]] = {}
        self.negative_is_empty = False
        self.from_nothing = False

    def take(self, predictions: list[Tensor], conds: Any, x: Tensor, sigma: Tensor) -> None:
        """Keep the first prediction of each role; later ones come from perturbed passes (PAG, SAG)."""
        for denoised, role_conds in zip(predictions, conds, strict=True):
            role = None if role_conds is None else roles.role_of(role_conds, self.guider)
            if role is None or role in self.found:
                continue
            # now, not later: functions after the guidance may write into these tensors
            noise = (x.float() - denoised.float()) / sigma.float().reshape(-1, *[1] * (x.ndim - 1))
            self.found[role] = (noise, coverage(role_conds, x, sigma))

    @property
    def reference(self) -> str | None:
        """The role that the prompt is compared with; None where nothing was predicted for any."""
        return roles.reference(self.found, self.run.guard.reference)

    def missing(self) -> str | None:
        """Return why this call cannot be scored; None where it can."""
        if roles.PROMPT not in self.found and roles.PROMPT in self.guider.conds:
            return "the sampler made a call without the positive prompt"
        if roles.PROMPT not in self.found or self.reference is None:
            return roles.why_missing(self.guider, self.run.report.cfg)
        return None

    def evidence(self, step: int, sigma: Tensor) -> StepEvidence:
        """Return what was found, as evidence."""
        reference = self.reference
        assert reference is not None
        (cond, acts), (uncond, other) = self.found[roles.PROMPT], self.found[reference]
        covered = both(acts, other)
        sampling = self.guider.inner_model.model_sampling
        return StepEvidence(
            step=step,
            num_steps=self.run.report.steps or 0,
            sigma=float(sigma[0]),
            sigma_max=float(sampling.sigma_max),
            timestep=model.timestep(sampling, sigma),
            noise_cond=cond,
            noise_uncond=uncond,
            coverage=covered,
            parameterization=model.parameterization(sampling),
            family=self.run.report.family,
            reference=self._label(reference),
            roles=(roles.PROMPT, reference),
            full_noise=True if self.from_nothing else None,
            prompts=self._several(len(cond)),
            layout=layout_of(self.guider.conds[roles.PROMPT]),
        )

    def _several(self, images: int) -> tuple[int, ...]:
        """Return the number of each image's prompt, where the prompt's conditioning has a row of its own for each."""
        parts = self.guider.conds[roles.PROMPT]
        text = parts[0]["model_conds"].get(TEXT) if len(parts) == 1 else None
        if text is None or not isinstance(text.cond, Tensor) or len(text.cond) != images:
            return ()
        numbers = Encoded(text.cond).prompts()
        return numbers if any(numbers) else ()

    def _label(self, reference: str) -> Reference:
        """Return what the prompt was compared with; asked for the empty prompt, the negative one may be just that."""
        if reference != roles.NEGATIVE:
            return "empty"
        asked = self.run.guard.reference == "empty"
        return "empty" if asked and (self.negative_is_empty or self.run.report.negative_prompt == "") else "negative"
