"""Scores where rows of a model call do not tell their prompt: by what the pipeline hands to its scheduler.

What the denoiser gave since the last step is kept until the scheduler's ``step`` is called; ``combination`` then tells
the roles. The scheduler's step gets its arguments as they came.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor

from ...attributions.attention import mass
from ...records import StepEvidence
from .combination import Alike, Combination, find, parts, where
from .hooks import Trouble
from .layouts import Layout
from .levels import Level, gain, level
from .pipes import family, model_calls
from .projected import Reading
from .rows import ALIKE, ONCE, Unscored

UNREAD = "the rows of the attention that carry the prompt are not told by what the scheduler receives"


VECTOR = "what is denoised is one vector for each image (an embedding), and no picture"


class Untold(Unscored):
    """The guidance equation does not tell the roles."""


@dataclass(frozen=True)
class Joined:
    """A step's predictions as the pipeline has joined them.

    Attributes:
        found: who is who.
        here: the noise level.
        cond: with the prompt, in units of epsilon, [B, C, h, w] or with frames.
        uncond: without it.
        layout: of what the scheduler receives.

    """

    found: Combination
    here: Level
    cond: Tensor
    uncond: Tensor
    layout: Layout

    def put(self, received: Tensor, gap: Tensor, images: Tensor | None) -> Tensor:
        """Return what the scheduler is to receive under another gap of the two predictions.

        Args:
            received: what it receives.
            gap: in units of epsilon, in the shape of ``cond``.
            images: numbers of those that have it; None is all.

        """
        own = self.found
        moved = own.uncond.float() + self.layout.back(gap) / (gain(self.here) * own.unit)
        made = own.put(received, moved, own.uncond).to(received)
        return made if images is None else received.index_copy(0, images, made[images])


class Received:
    """What a run's denoiser gave since the last step of its scheduler.

    Args:
        pipe: the pipeline that runs.
        module: its denoiser.
        given: the arguments of the pipeline's call, by name.
        scale: guidance scale, where it is known.
        attention: whether a detector asks for attention.

    Attributes:
        read: the attention of its calls; ``unread`` says why it is not known.
        taken: steps of the scheduler so far.
        last: what was given in the step that was just taken.
        follows: whether steps that are not scored are of use as well.

    """

    def __init__(self, pipe: Any, module: Any, given: dict[str, Any], scale: float | None, attention: bool) -> None:
        self.pipe, self.module, self.given, self.scale = pipe, module, given, scale
        self.unread = UNREAD if attention else ""
        self.read: Reading | None = None
        self.taken = 0
        self.last: list[Tensor] = []
        self.follows = False
        self._outputs: list[Tensor] = []
        self._calls: list[tuple[Tensor, Tensor | None, dict[str, Any]]] = []  # prediction, text, attention

    def take_attention(self, read: Reading | str) -> None:
        """Take the attention of the run's calls, or why it cannot be read."""
        if isinstance(read, str):
            self.unread = read
        else:
            self.read = read

    def add(self, output: Any) -> None:
        """Take what one call of the denoiser gave."""
        made = _tensors(output)
        self._outputs += made
        if self.read is not None and self.read.calls and made:
            self._calls.append((made[0], *self.read.calls[-1]))

    def step(self) -> None:
        """The scheduler has taken a step; what was kept belongs to it."""
        self.taken += 1
        self.last, self._outputs, self._calls = self._outputs, [], []

    def evidence(self, step: int, received: Tensor, timestep: Any, sample: Any) -> StepEvidence:
        """Return the evidence of the step that is about to be taken.

        Args:
            step: its number.
            received: what the scheduler receives as the model's output.
            timestep: as it receives it.
            sample: the latents, as it receives them.

        Raises:
            Untold: if the roles are not told by the guidance equation.
            Unscored: if there are none to tell, or the noise level is not known.

        """
        joined = self.joined(self._outputs, received, timestep, sample)
        here = joined.here
        return StepEvidence(
            step=step,
            num_steps=model_calls(self.pipe),
            sigma=here.sigma,
            sigma_max=here.sigma_max,
            timestep=here.timestep,
            noise_cond=joined.cond,
            noise_uncond=joined.uncond,
            parameterization=here.parameterization,
            family=family(self.module),
            full_noise=here.full_noise,
            prompts=self._numbers(len(joined.cond)),
            **self._attention(joined.found.cond, received),
        )

    def _attention(self, cond: Tensor, received: Tensor) -> dict[str, Any]:
        """Return what StepEvidence holds of the attention of the rows that have made a prediction."""
        for output, text, found in self._calls:
            rows = where(output, cond, received)
            if rows is None or self.read is None or text is None or len(text) != len(output):
                continue
            try:
                taken = self.read.rows(found, rows, text)
            except Unscored as reason:
                return {"unread": str(reason)}
            return {"attention": {name: mass(each.probabilities()) for name, each in taken.items()}}
        return {"unread": self.unread}

    def joined(self, outputs: Sequence[Tensor], received: Tensor, timestep: Any, sample: Any) -> Joined:
        """Return how the predictions of a step were joined.

        Args:
            outputs: of the denoiser in that step.
            received: as ``evidence``.
            timestep: as ``evidence``.
            sample: as ``evidence``.

        Raises:
            Untold: as ``evidence``.
            Unscored: as ``evidence``.

        """
        candidates = parts(outputs, received)
        same = sample if isinstance(sample, Tensor) and sample.shape == received.shape else None
        try:
            found = find(candidates, received, same, self.scale)
        except Alike:
            raise Unscored(ALIKE) from None
        if found is None and len(candidates) == 1:
            raise Unscored(ONCE)
        if found is None:
            raise Untold("no two predictions of the step combine to what the scheduler receives")
        if found.cond.ndim < 3:
            raise Unscored(VECTOR)
        here = level(self.pipe.scheduler, torch.as_tensor(timestep))
        x = torch.zeros_like(found.cond) if same is None else same
        cond, uncond = (here.convert(found.unit * each, x) for each in (found.cond, found.uncond))
        layout = Layout.like(cond, self._channels(), self._ratio())
        return Joined(found, here, layout.latents(cond), layout.latents(uncond), layout)

    def _channels(self) -> int | None:
        config = getattr(self.module, "config", {})
        found = config.get("out_channels") or config.get("in_channels")
        return found if isinstance(found, int) else None

    def _ratio(self) -> float | None:
        height, width = self.given.get("height"), self.given.get("width")
        return height / width if height and width else None

    def _numbers(self, images: int) -> tuple[int, ...]:
        prompts = self.given.get("prompt")
        many = len(prompts) if isinstance(prompts, list) else 1
        return tuple(image * many // images for image in range(images)) if many > 1 and images % many == 0 else ()


Take = Callable[[Tensor, Any, Any], "Tensor | None"]  # model_output, timestep, sample -> another model_output or None


@contextmanager
def receiving(scheduler: Any, take: Take, trouble: Trouble) -> Iterator[None]:
    """Call ``take`` with the model's output, the timestep and the sample before each step of a scheduler.

    What it returns is what the scheduler receives as the model's output; None leaves that as it is.

    The scheduler keeps its class: pipelines ask whether it is exactly the one that they know.

    Args:
        scheduler: of the pipeline; left alone where it has no ``step``.
        take: the hook.
        trouble: of the run.

    """
    if not callable(getattr(scheduler, "step", None)):
        yield
        return
    step = vars(scheduler).get("step")
    if not isinstance(step, _Step):
        step = scheduler.step = _Step(scheduler)
    own = (take, trouble)
    step.takers.append(own)
    try:
        yield
    finally:
        step.takers.remove(own)
        if not step.takers:
            step.leave()


class _Step:
    """Stands for the ``step`` of one scheduler while runs are watched, several at a time."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.before = scheduler, vars(scheduler).get("step")
        self.inner = scheduler.step
        self.takers: list[tuple[Take, Trouble]] = []
        self.signature = inspect.signature(self.inner)
        update_wrapper(self, self.inner)  # pipelines read its signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for take, trouble in tuple(self.takers):
            args, kwargs = trouble(self._given, args, kwargs, take) or (args, kwargs)
        return self.inner(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Leave a copy of the scheduler its own step."""
        copied = memo[id(self.scheduler)]
        return type(copied).step.__get__(copied)

    def leave(self) -> None:
        """Put back what stood here, unless somebody else stands here now."""
        if vars(self.scheduler).get("step") is self:
            if self.before is None:
                del self.scheduler.step
            else:
                self.scheduler.step = self.before

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any], take: Take) -> Any:
        """Return the arguments of a step with another output of the model; None where it stays."""
        bound = self.signature.bind(*args, **kwargs)
        output = bound.arguments.get("model_output")
        if not isinstance(output, Tensor):
            return None
        found = take(output, bound.arguments.get("timestep"), bound.arguments.get("sample"))
        if found is None:
            return None
        bound.arguments["model_output"] = found
        return bound.args, bound.kwargs


def _tensors(output: Any) -> list[Tensor]:
    """Return the predictions in a denoiser's output; of a list of images of one size, one tensor."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, list | tuple):
        if output and isinstance(output[0], list | tuple):
            return _tensors(output[0])
        images = [each for each in output if isinstance(each, Tensor)]
        if isinstance(output, list) and len({each.shape for each in images}) == 1 and len(images) == len(output):
            return [torch.stack(images)]
        return images[:1]
    sample = getattr(output, "sample", None)
    if sample is None and hasattr(output, "values"):  # outputs of some priors have other names
        sample = next(iter(output.values()), None)
    return [] if sample is None else _tensors(sample)
