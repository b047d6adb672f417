"""Prompt optimisation (Wen et al., ICLR 2024, section 4.3): the encoded prompt is moved until its noise gap is small.

AdamW on the text embedding at the first step, joint over the images of a prompt and the run's own starting noise:
loss = mean over images of d_j = || eps(x_T, prompt) - eps(x_T, "") ||_2; it ends before the step at which the loss is
at most the target, or after a number of steps. BOS is frozen. The embedding is optimised in float32 and cast at its
use. What is predicted without the prompt does not change, so it is predicted once and not at every iteration.

``parity="official"``: the loss is the norm of the whole batch, sqrt(n) times as large, and BOS, whose gradient alone is
zeroed, shrinks by the weight decay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..attributions.moment import Encoded
from ..setting import setting
from ..troubles import NotFinite
from .base import Mitigation, Start, Treatment, Unsuitable, View, blend
from .edit import BOS, rows_of

ORDINARY = 0.75  # share of the median ordinary prompt's noise gap to aim at
FAILED = "the gradient holds NaN or infinity; run the model in float32"


@dataclass(frozen=True)
class PromptOptimization(Mitigation):
    """Optimise the encoded prompt. At a strength s the prompt goes the share s of the way to the optimum."""

    NAME = "prompt_optimization"
    TITLE = "Prompt optimisation"
    SOURCE = "Wen et al., ICLR 2024"

    lr: float = setting(0.05, "Learning rate of AdamW.", above=0, shown=(0.0001, 1), step=0.001, what="a learning rate")
    iterations: int = setting(10, "At most; a target ends it sooner.", least=0, shown=(0, 1000))
    target: float | None = setting(
        None,
        "Score at which to stop; three quarters of the median ordinary prompt's by the profile where none is given.",
        "L2 of the noise gap, mean over images; under parity official of the whole batch.",
        kind=float,
        above=0,
        shown=(0, 1000),
        step=0.01,
        what="a noise gap",
        unset=0,
    )
    weight_decay: float = setting(0.01, "Weight decay of AdamW.", least=0)
    pooled: bool = setting(False, "Move the pooled vector too, beside the words (SDXL, SD3, Flux).")

    def _treat(self, start: Start, before: Treatment) -> Treatment:
        if start.first is not None:
            return replace(before, prompt=_optimised(start, start.first)).note("the first pass's optimised prompt")
        prompt = before.prompt or start.prompt
        target = self.target
        if target is None and start.typical is not None:
            target = ORDINARY * start.typical * start.elements**0.5
        found, losses = optimize(self, start, before, target)
        after = replace(before, prompt=blend(prompt, found, self.strength))
        text = f"prompt optimised for {len(losses) - 1} iterations, noise gap {losses[0]:.3g} to {losses[-1]:.3g}"
        if target is not None and losses[-1] > target:
            text += f"; the target {target:.3g} was not reached, give it more iterations"
        return after.note(text)


def optimize(
    settings: PromptOptimization, start: Start, before: Treatment, target: float | None
) -> tuple[Encoded, list[float]]:
    """Return the optimised prompt, float32 of B rows, and the loss before each step and at the end.

    Raises:
        NotFinite: where the loss is NaN or infinite.

    """
    prompt = before.prompt or start.prompt
    reference = before.reference or start.needs_reference()
    official = settings.parity == "official"
    with torch.no_grad():
        uncond = start.predict(View(reference, before.noise)).float()
    numbers = prompt.prompts()
    which = torch.tensor(numbers, device=prompt.text.device)
    rows = torch.tensor([numbers.index(n) for n in range(max(numbers) + 1)], device=prompt.text.device)
    text = prompt.text[rows].detach().float().clone()
    pooled = None if prompt.pooled is None else prompt.pooled[rows].detach().float().clone()
    frozen = _frozen(start.groups, text, rows)
    kept = text.clone()
    losses: list[float] = []
    with start.gradients():
        leaves = [text.requires_grad_(True)]
        if settings.pooled and pooled is not None:
            leaves.append(pooled.requires_grad_(True))
        adamw = torch.optim.AdamW(leaves, lr=settings.lr, weight_decay=settings.weight_decay)
        while True:
            start.cancelled()
            here = Encoded(text[which], None if pooled is None else pooled[which])
            norms = (start.predict(View(here, before.noise, before.edits)).float() - uncond).flatten(1).norm(dim=1)
            loss = torch.linalg.vector_norm(norms) if official else norms.mean()
            losses.append(float(loss.detach()))
            if not torch.isfinite(loss):
                raise NotFinite(FAILED)
            if len(losses) > settings.iterations or (target is not None and losses[-1] <= target):
                break
            adamw.zero_grad()
            loss.backward()
            assert text.grad is not None
            text.grad[frozen] = 0
            adamw.step()
            if not official:
                with torch.no_grad():
                    text[frozen] = kept[frozen]
    last = None if pooled is None else pooled.detach()[which]
    return Encoded(text.detach()[which], last), losses


def _optimised(start: Start, first: Treatment) -> Encoded:
    """Return the prompt that an earlier pass optimised, one row per image of this one.

    Raises:
        Unsuitable: if it does not fit. At low noise there is no loss to optimise by.

    """
    found, rows = first.prompt, len(start.prompt.text)
    if found is not None and len(found.text) != rows and not any(found.prompts()):
        found = found.row(0).expand(rows)
    if found is None or found.text.shape != start.prompt.text.shape:
        raise Unsuitable("the prompt that the first pass optimised does not fit this pass")
    return found


def _frozen(groups: Tensor | None, text: Tensor, rows: Tensor) -> Tensor:
    """Return where BOS is, bool [prompts, tokens]; the first column where the tokens are not known."""
    if groups is None:
        first = torch.zeros(text.shape[:2], dtype=torch.bool, device=text.device)
        first[:, 0] = True
        return first
    return rows_of(groups.to(text.device), int(rows.max()) + 1)[rows] == BOS
