"""``treat``: a mitigation applied to every run of a pipeline. ``optimize_prompt``: an optimised prompt by itself.

Room: memguard.hosts, diffusers. May import: memguard.mitigations, torch.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ...loop import BROKEN
from ...mitigations.base import Mitigation, Parity, Treatment, Unsuitable
from ...mitigations.prompt_optimization import PromptOptimization, optimize
from ...troubles import in_words
from . import pipes
from .batch import Enough
from .calls import Call
from .edits import Editor
from .hooks import eagerly, listening, set_eager
from .rows import OWN, SWAPPED, Prompts, Unscored
from .starting import start
from .steering import Steering, keeping_latents, suitable
from .watch import encoding, methods

log = logging.getLogger("memguard")


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
    plain, now = type(pipe).__call__, _Now()
    now.model = pipes.name_of(module)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if mitigation.strength == 0:
            return plain(self, *args, **kwargs)
        prompts = now.prompts = Prompts()
        steering = now.steering = Steering(self, module, prompts, lambda rows: None, _chooser(self, mitigation, now))
        try:
            with ExitStack() as stack:
                stack.enter_context(steering.editor.installed())
                stack.enter_context(eagerly(module))
                set_eager(stack, module)
                stack.enter_context(listening(module, steering.after, steering.before))
                return plain(self, *args, **kwargs)
        finally:
            now.prompts = now.steering = None
            SWAPPED.set(None)

    def learn(*what: Any) -> None:
        if now.prompts is not None:
            now.prompts.learn(*what)

    own = {"__call__": call, **encoding(pipe, learn), **keeping_latents(pipe, lambda: now.steering)}
    with methods(pipe, **own):
        yield pipe


class _Now:
    """The run in progress, and the model's fingerprint."""

    model: str = ""
    prompts: Prompts | None = None
    steering: Steering | None = None


def _chooser(pipe: Any, mitigation: Mitigation, now: _Now) -> Any:
    def choose(call: Call, blocks: dict[str, slice]) -> Treatment:
        assert now.steering is not None and now.prompts is not None
        began = start(
            pipe,
            call,
            blocks,
            now.prompts,
            now.steering.editor,
            None,
            lambda rows: None,
            now.steering.scale(call),
            now.model,
        )
        try:
            treatment = mitigation.treat(began, Treatment())
        except BROKEN as error:
            log.warning("%s was left out: %s", mitigation.TITLE, in_words(error))
            return Treatment()
        found = suitable(treatment, blocks, given=now.prompts.uncond is not None)
        for note in found.notes[len(treatment.notes) :]:
            log.warning("%s: %s", mitigation.TITLE, note)
        return found

    return choose


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
    editor = Editor(module)
    steering = Steering(pipe, module, prompts, lambda rows: None)

    def before(called: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if OWN.get():
            return
        first = Call.of(called, args, kwargs, None)
        began = start(pipe, first, steering.blocks(first.text), prompts, editor, None, lambda rows: None, 1.0, "")
        found.append(optimize(settings, began, Treatment(), settings.target)[0])
        raise Enough

    progress = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(disable=True)
    try:
        with (
            eagerly(module),
            methods(pipe, **encoding(pipe, prompts.learn)),
            listening(module, lambda *_: None, before),
            contextlib.suppress(Enough),
        ):
            pipe(**{k: v for k, v in call.items() if v is not None})
    except (Unscored, Unsuitable) as reason:
        raise ValueError(f"the prompt cannot be optimised: {reason}") from None
    finally:
        pipe.set_progress_bar_config(**progress)
        pipe.maybe_free_model_hooks()
    return found[0].text[:1]
