"""Which of a step's predictions is the prompt's, from what the scheduler receives: guidance read backwards.

With guidance a pipeline hands g = u + s (c - u) to its scheduler. So g is a combination of predictions whose
coefficients s and 1 - s tell the roles: for s > 1 that of the prompt is the larger one. This needs neither the texts
nor the names of a model's arguments. It holds for one call with both prompts, for two calls, where the prediction is
negated, where it is turned into the denoised sample first (a share of the sample is in g, too), where only some
channels are guided, and with a perturbed third prediction (Ahn et al., ECCV 2024). A rescaled g (Lin et al., WACV
2024; renormalised tokens) keeps the direction of the combination at the pipeline's own scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations

import torch
from torch import Tensor

CLOSE = 2e-3  # relative residual that rounding explains
NEEDED = 0.25  # of the residual without one of two predictions, that with both may have at most
EQUAL = 0.01  # relative difference of a coefficient from what the scale says
LEAST = 0.02  # of the larger coefficient, that the smaller one must have to tell from none
ROUNDING = 2e-6  # relative difference of two predictions of the same prompt in float32, in rows of one batch
CLEAR = 10.0  # another reading must fit this many times worse
SHARES = 4  # calls hold at most so many prompts


@dataclass(frozen=True)
class Combination:
    """The roles of a step's predictions.

    Attributes:
        cond: prediction with the prompt, of the shape of what the scheduler receives.
        uncond: without it.
        scale: s of the guidance equation.
        unit: what a difference of the two is multiplied by in what the scheduler receives: 1, -1 where the pipeline
            negates, another number where it has turned predictions into something else.

    """

    cond: Tensor
    uncond: Tensor
    scale: float
    unit: float = 1.0

    def put(self, received: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
        """Return what the scheduler would receive had the model predicted otherwise; float32, of the same shape.

        Where g is the combination times a number of each image or token that keeps the norm of the prompt's own
        prediction, so it is for the others; and where it is rescaled by a share of that (Lin et al., WACV 2024),
        by the same share.

        Args:
            received: what it receives.
            cond: prediction with the prompt, in the place of ``cond``.
            uncond: without it.

        """
        made = self._put(received, cond, uncond)
        for channel in range(received.shape[1]) if received.ndim > 2 else ():  # that are not guided: one prediction's
            if any(
                torch.equal(self.unit * each[:, channel], received[:, channel]) for each in (self.cond, self.uncond)
            ):
                made[:, channel] = received[:, channel]
        return made

    def _put(self, received: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
        own, other = self._joined(self.cond, self.uncond), self._joined(cond, uncond)
        goal = received.float()
        if _near(self.unit * own, goal) or not _near_direction(own, goal):
            return goal + self.unit * (other - own)
        for start in (received.ndim - 1, 1):  # of each token, of each image
            if _near(self.unit * own * _norms(self.cond, start) / _norms(own, start), goal):
                return self.unit * other * _norms(cond, start) / _norms(other, start)
        factor, full, new = _norms(goal, 1) / _norms(own, 1), _spread(self.cond, own), _spread(cond, other)
        share = (factor - 1) / torch.where((full - 1).abs() < EQUAL, torch.ones_like(full), full - 1)
        return other * (1 + share * (new - 1)) * self.unit

    def _joined(self, cond: Tensor, uncond: Tensor) -> Tensor:
        return uncond.float() + self.scale * (cond.float() - uncond.float())


class Alike(Exception):
    """The model predicts the same for every prompt of the step."""


def parts(outputs: Sequence[Tensor], received: Tensor) -> list[Tensor]:
    """Return what predictions may be: outputs and their shares of rows, in order, of the shape of what is received.

    Args:
        outputs: of the model since the last step.
        received: by the scheduler's step, [B, ...].

    """
    found: list[Tensor] = []
    for output in outputs:
        for share in range(1, SHARES + 1):
            if output.ndim and len(output) % share == 0:
                found += [part for each in output.chunk(share) if (part := shaped(each, received)) is not None]
    return found


def find(
    candidates: Sequence[Tensor], received: Tensor, sample: Tensor | None, scale: float | None
) -> Combination | None:
    """Return the roles of a step's predictions; None where the guidance equation does not tell them.

    Args:
        candidates: from ``parts``.
        received: what the scheduler's step receives, [B, ...].
        sample: what it receives beside that, of the same shape; None where it has another one.
        scale: the pipeline's guidance scale, where it is known.

    Raises:
        Alike: if there are several predictions, and no two differ.

    """
    pairs = [pair for pair in combinations(candidates, 2) if _differ(*pair)]
    if len(candidates) > 1 and not pairs:
        raise Alike
    ways = (
        lambda: _best(_fitted(*pair, received) for pair in pairs),
        lambda: _perturbed(candidates, received, scale),
        lambda: _best(_partly(pairs, received)),
        lambda: None if sample is None else _best(_fitted(*pair, received, sample) for pair in pairs),
        lambda: None if scale is None else _directed(pairs, received, scale),
    )
    made = next((made for way in ways if (made := way()) is not None), None)
    if made is None or scale is None or scale > 1 or abs(made.scale - scale - 1) < EQUAL * made.scale:
        return made
    return None  # guidance by the prompt is off, so this is another one, such as perturbed attention's alone


def _near(made: Tensor, goal: Tensor) -> bool:
    return float((made - goal).norm()) <= CLOSE * float(goal.norm())


def _near_direction(made: Tensor, goal: Tensor) -> bool:
    """Whether one is a multiple of the other, token by token or image by image."""
    return _off(made, goal)[0] <= CLOSE


def _norms(tensor: Tensor, start: int) -> Tensor:
    """Return the norm over all axes from one on, to be broadcast."""
    axes = tuple(range(start, tensor.ndim))
    return torch.linalg.vector_norm(tensor.float(), dim=axes, keepdim=True).clamp_min(1e-12)


def _spread(cond: Tensor, joined: Tensor) -> Tensor:
    """Return the ratio of two standard deviations of each image, to be broadcast."""
    axes = tuple(range(1, cond.ndim))
    return cond.float().std(axes, keepdim=True) / joined.std(axes, keepdim=True).clamp_min(1e-12)


def _differ(a: Tensor, b: Tensor) -> bool:
    least = max(ROUNDING, 0.5 * torch.finfo(a.dtype).eps)
    return float((_exact(a) - _exact(b)).norm()) > least * float(_exact(a).norm())


def where(output: Tensor, part: Tensor, received: Tensor) -> slice | None:
    """Return the rows of an output that are one of its ``parts``; None where it is none of them."""
    for share in range(1, SHARES + 1):
        size, rest = divmod(len(output), share)
        for start in range(0, 0 if rest else len(output), max(size, 1)):
            one = shaped(output[start : start + size], received)
            if one is not None and torch.equal(one, part.to(one)):
                return slice(start, start + size)
    return None


def shaped(part: Tensor, received: Tensor) -> Tensor | None:
    """Return a prediction in the shape of what is received, without what a model predicts beside that.

    What goes on to the scheduler comes first: before a learned variance in other channels, before a second picture.
    """
    if part.ndim == received.ndim and all(one >= two for one, two in zip(part.shape, received.shape, strict=True)):
        part = part[tuple(slice(size) for size in received.shape)] if len(part) == len(received) else part
    alike = [size for size in part.shape if size > 1] == [size for size in received.shape if size > 1]
    return part.reshape(received.shape) if alike else None


def _exact(tensor: Tensor) -> Tensor:
    """Return a tensor in the highest precision that its device has."""
    return tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def _solve(basis: Sequence[Tensor], target: Tensor) -> tuple[list[float], float]:
    """Return coefficients of the least squares, and the residual relative to the target."""
    columns = torch.stack([_exact(each).flatten() for each in basis], 1)
    goal = _exact(target).flatten()
    gram, right = columns.T @ columns, columns.T @ goal
    try:
        found = torch.linalg.solve(gram, right)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return [], float("inf")
    return found.tolist(), float((columns @ found - goal).norm() / goal.norm())


def _roles(a: Tensor, b: Tensor, coefficients: Sequence[float], unit: float | None = None) -> Combination | None:
    """Return who is who of two predictions; None for s <= 1, which does not tell."""
    if len(coefficients) < 2 or coefficients[0] * coefficients[1] >= 0:
        return None
    one, other = coefficients[:2]
    if min(abs(one), abs(other)) < LEAST * max(abs(one), abs(other)):
        return None
    cond, uncond = (a, b) if abs(one) > abs(other) else (b, a)
    total = one + other
    scale = (one if cond is a else other) / total
    return Combination(cond, uncond, scale, math.copysign(1.0, total) if unit is None else unit)


Fit = tuple[float, Combination]


def _fitted(a: Tensor, b: Tensor, received: Tensor, *more: Tensor) -> Fit | None:
    """Fit two predictions, and more where they were turned into something else.

    Predictions that are nearly alike fit anything that is near to them, so that both must be needed.
    """
    coefficients, residual = _solve((a, b, *more), received)
    made = _roles(a, b, coefficients, sum(coefficients[:2]) if more else None)
    if made is None or residual > CLOSE:
        return None
    alone = min(_solve((each, *more), received)[1] for each in (a, b))
    return (residual, made) if residual <= NEEDED * alone else None


def _best(fits: Iterator[Fit | None]) -> Combination | None:
    return min((fit for fit in fits if fit is not None), key=lambda fit: fit[0], default=(0.0, None))[1]


def _perturbed(candidates: Sequence[Tensor], received: Tensor, scale: float | None) -> Combination | None:
    """Read g = u + s (c - u) + p (c - c'), whose coefficients are 1 - s, s + p and -p: only s tells u from c'."""
    for three in combinations(candidates, 3):
        coefficients, residual = _solve(three, received)
        if residual > CLOSE or scale is None:
            continue
        sign = math.copysign(1.0, sum(coefficients))
        shares = [sign * each for each in coefficients]
        largest = max(range(3), key=shares.__getitem__)
        others = [each for each in range(3) if each != largest]
        near = [abs(shares[each] - (1 - scale)) < EQUAL * scale for each in others]
        if sum(near) == 1:
            return Combination(three[largest], three[others[near.index(True)]], scale, sign)
    return None


def _partly(pairs: Sequence[tuple[Tensor, Tensor]], received: Tensor) -> Iterator[Fit | None]:
    """Fit the channels that are guided, where the others are one of the predictions as it is."""
    for a, b in pairs if received.ndim > 2 else ():
        same = [
            any(torch.equal(sign * each[:, channel], received[:, channel]) for each in (a, b) for sign in (1, -1))
            for channel in range(received.shape[1])
        ]
        guided = [channel for channel, alike in enumerate(same) if not alike]
        fit = _fitted(a[:, guided], b[:, guided], received[:, guided]) if guided else None
        if fit is not None:
            cond, uncond = (a, b) if torch.equal(fit[1].cond, a[:, guided]) else (b, a)
            yield fit[0], replace(fit[1], cond=cond, uncond=uncond)


def _directed(pairs: Sequence[tuple[Tensor, Tensor]], received: Tensor, scale: float) -> Combination | None:
    """Compare directions: g is the combination at the pipeline's scale, times a number of each image or each token."""
    fits: list[tuple[float, Combination]] = []
    for pair in pairs:
        for cond, uncond in permutations(pair):
            for factor in (scale, scale + 1):  # some count the scale from 0
                if factor <= 1 + LEAST:
                    continue
                guided = uncond + factor * (cond - uncond)
                residual, sign = _off(guided, received)
                fits.append((residual, Combination(cond, uncond, factor, sign)))
    fits.sort(key=lambda fit: fit[0])
    if not fits or fits[0][0] > CLOSE:
        return None
    best = fits[0][1]
    other = next((residual for residual, each in fits if each.cond is not best.cond), float("inf"))
    return best if other > CLEAR * fits[0][0] else None


def _off(guided: Tensor, received: Tensor) -> tuple[float, float]:
    """Return how far one is from multiples of the other, by images or by vectors, and the sign of these."""
    best = float("inf"), 1.0
    for start in {1, received.ndim - 1}:
        if received[0].numel() // max(1, received.shape[1:start].numel()) < 3:
            continue  # any two numbers have the direction of two others, nearly
        one, goal = (_exact(each).flatten(start) for each in (guided, received))
        ratio = (one * goal).sum(-1, keepdim=True) / (one * one).sum(-1, keepdim=True).clamp_min(1e-30)
        residual = float((ratio * one - goal).norm() / goal.norm())
        if bool((ratio > 0).all()) or bool((ratio < 0).all()):
            best = min(best, (residual, math.copysign(1.0, float(ratio.sum()))))
    return best
