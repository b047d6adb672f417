"""``treat``: a mitigation applied to every run of a pipeline. ``optimize_prompt``: an optimised prompt by itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...aside import aside
from ...loop import BROKEN
from ...mitigations.base import Mitigation, Parity, Treatment
from ...mitigations.effect import NOTHING
from ...mitigations.prompt_optimization import PromptOptimization, optimize
from ...sampling import Unwatched
from ...troubles import NotFinite, Told, careful, in_words
from . import pipes
from .calls import Call
from .edits import PLAN
from .hooks import Trouble, eagerly, listening, set_eager
from .latents import keeping_latents
from .methods import encoding, methods
from .pair import Pair
from .putting import suitable
from .received import receiving
from .rows import OWN, SWAPPED, UNCALLED, Enough, Prompts, until_enough
from .steering import Steering

log = logging.getLogger("memguard")


LEFT = "%s was left out: %s"


@contextmanager
def treat(mitigation: Mitigation, pipe: Any) -> Iterator[Any]:
    """Apply a mitigation to every call of a pipeline inside the block, memorized or not; leaves nothing behind.

    A run that the mitigation cannot act on goes on without it, and a warning says why.

    Raises:
        ValueError: for a pipeline without a unet or transformer.

    """
    module = pipes.denoiser(pipe)
    if module is None:
        raise ValueError(f"{type(pipe).__name__} has neither a unet nor a transformer to mitigate")
    treating = _Treating(mitigation, module)
    trouble = lambda: treating.trouble  # noqa: E731
    own = {"__call__": treating.run, **encoding(pipe, treating.encoded, trouble)}
    with methods(pipe, **own, **keeping_latents(pipe, lambda: treating.steering, trouble)):
        yield pipe


class _Treating:
    """The run in progress, and the model's fingerprint."""

    def __init__(self, mitigation: Mitigation, module: nn.Module) -> None:
        self.mitigation, self.module = mitigation, module
        self.model: str | None = None
        self.prompts: Prompts | None = None
        self.steering: Steering | None = None
        self.trouble: Trouble | None = None

    def run(self, call: Any, pipe: Any, *args: Any, **kwargs: Any) -> Any:
        """Make one call of the pipeline under the mitigation."""
        if self.mitigation.strength == 0:
            return call(pipe, *args, **kwargs)
        self.trouble = Trouble(partial(careful, self._failed), self._undo)
        try:
            with ExitStack() as stack:
                self.trouble(self._prepare, call, pipe, args, kwargs, stack)
                made = call(pipe, *args, **kwargs)
            if self.steering is not None:
                self.trouble(self._tell, self.steering)
            return made
        finally:
            self.prompts = self.steering = self.trouble = None
            SWAPPED.set(None)
            PLAN.set(None)  # a call that failed leaves its plan behind

    def _tell(self, steering: Steering) -> None:
        """Say what of the mitigation came to nothing in a run that has ended."""
        if steering.calls == 0:
            log.warning(LEFT, self.mitigation.TITLE, UNCALLED)
        for line in steering.effect.left:
            log.warning("%s: %s", line, NOTHING)

    def encoded(self, *what: Any) -> None:
        """Take what the pipeline encodes."""
        if self.prompts is not None:
            self.prompts.learn(*what)

    def _prepare(self, call: Any, pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any], stack: ExitStack) -> None:
        assert self.trouble is not None
        if self.model is None:
            self.model = pipes.name_of(self.module)
        cfg = pipes.guidance(pipes.arguments(call, (pipe, *args), kwargs))
        self.prompts = Prompts()
        run = Unwatched(model=self.model, family=pipes.family(self.module))
        self.steering = now = Steering(pipe, self.module, self.prompts, run, self.trouble, cfg, choose=self._choose)
        stack.enter_context(now.editor.installed())
        stack.enter_context(eagerly(self.module))
        set_eager(stack, self.module)
        stack.enter_context(listening(self.module, now.after, now.before, trouble=self.trouble, instead=now.plain))
        step = receiving(getattr(pipe, "scheduler", None), now.put, self.trouble)
        now.listen = partial(stack.enter_context, step)

    def _failed(self, error: Exception) -> None:
        log.warning(LEFT, self.mitigation.TITLE, in_words(error), exc_info=None if isinstance(error, Told) else error)

    def _undo(self) -> None:
        if self.steering is not None:
            self.steering.undo()

    def _choose(self, pair: Pair) -> Treatment:
        assert self.steering is not None
        title = self.mitigation.TITLE
        with aside(self.module):
            began = self.steering.sampling(pair).start(pair)
            try:
                treatment = self.mitigation.treat(began, Treatment())
            except BROKEN as error:
                log.warning(LEFT, title, in_words(error))
                return Treatment()
        found = suitable(treatment, pair.given)
        for note in found.notes[len(treatment.notes) :]:
            log.warning("%s: %s", title, note)
        return found


def optimize_prompt(
    pipe: Any,
    prompt: str,
    num_images: int = 1,
    seed: int = 0,
    lr: float = 0.05,
    iterations: int = 10,
    target: float | None = None,
    parity: Parity = None,
    *,
    weight_decay: float = 0.01,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    negative_prompt: str | None = None,
) -> Tensor:
    """Return an optimised encoded prompt, float32 [1, tokens, d], to be given to the pipeline as ``prompt_embeds``.

    Wen et al., ICLR 2024, section 4.3: the noise gap at the first step falls, for the starting noise of this seed, ONE
    randn of [num_images, C, h, w] from ``torch.Generator("cpu").manual_seed(seed)``. Generate with the same seed.

    Args:
        pipe: a diffusers text-to-image pipeline.
        prompt: the text.
        num_images: images that share the prompt.
        seed: of the starting noise.
        lr: learning rate of AdamW.
        iterations: at most.
        target: L2 of the noise gap, mean over images, at which to stop; official: of the whole batch.
        parity: "official" takes the norm of the whole batch for the loss, and lets the weight decay shrink BOS.
        weight_decay: of AdamW.
        num_inference_steps: of the schedule whose first step counts.
        guidance_scale: above 1; it does not act on the first step.
        height: pixels; None is the pipeline's own default.
        width: pixels.
        negative_prompt: None is the pipeline's own empty prompt.

    Raises:
        ValueError: for a setting out of range, or a pipeline that makes no guided prediction of text alone.
        FloatingPointError: where the gradient holds NaN or infinity.

    """
    module = pipes.text_to_image(pipe)
    settings = PromptOptimization(lr, iterations, target, weight_decay, parity=parity)
    call = {
        "prompt": prompt,
        "num_images_per_prompt": num_images,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "generator": torch.Generator("cpu").manual_seed(seed),
        "output_type": "latent",
    }
    call |= pipes.size(pipe, module, height, width)
    prompts, found = Prompts(), []
    steering = Steering(pipe, module, prompts, Unwatched(family=pipes.family(module)), Trouble())

    def before(called: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if OWN.get():
            return
        first = Call.of(called, args, kwargs, None)
        pair = steering.pair([(first, steering.blocks(first.text))])
        began = steering.sampling(pair).start(pair)
        found.append(optimize(settings, began, Treatment(), settings.target)[0])
        raise Enough

    progress = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(disable=True)
    try:
        with (
            aside(module),
            eagerly(module),
            methods(pipe, **encoding(pipe, prompts.learn)),
            listening(module, lambda *_: None, before),
            until_enough(module),
        ):
            pipe(**pipes.known(pipe, call))
    except NotFinite:
        raise
    except Told as reason:
        raise ValueError(f"the prompt cannot be optimised: {in_words(reason)}") from None
    finally:
        pipe.set_progress_bar_config(**progress)
        pipe.maybe_free_model_hooks()
    if not found:
        raise ValueError(f"the prompt cannot be optimised: {UNCALLED}")
    return found[0].text[:1]
