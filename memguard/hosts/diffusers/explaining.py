"""``explain``: which words and which places of the picture drive the noise gap of a prompt.

The pipeline itself runs, guided, up to the last step that is needed; the scored model calls are kept and made again
with gradients, or with other prompts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ...aside import aside
from ...attributions import MAPS, METHODS, gradient, weighing, words
from ...attributions.moment import Encoded
from ...records import Attribution, TokenSpan
from ...troubles import Told, in_words
from . import pipes
from .attention import reading
from .caches import differentiable
from .hooks import Trouble, listening
from .ids import UNKNOWN_COLUMNS
from .inputs import input_gradients
from .keeping import Keeping
from .masses import Masses
from .methods import encoding, methods
from .rows import Prompts, Unscored, told, until_enough
from .tokens import columns, sure

Method = Literal["gradient", "ablation", "attention"]
With = Literal["input", "encoded"]


def explain(
    pipe: Any,
    prompt: str,
    method: Method = "gradient",
    num_images: int = 1,
    steps: int = 1,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    parity: Literal["official"] | None = None,
    *,
    respect_to: With = "input",
    substitute: str = "",
    maps: Sequence[str] = (),
    negative_prompt: str | None = None,
) -> Attribution:
    """Say which words of a prompt drive its noise gap, and where in the picture it lies.

    Args:
        pipe: a diffusers text-to-image pipeline.
        prompt: the text.
        method: "gradient" (token significance, Wen et al., ICLR 2024), "ablation" (how far the score falls without the
            word; forward only) or "attention" (what cross-attention gives to the word; models that have it).
        num_images: images that the weights are averaged over.
        steps: model calls that the weights are averaged over, from the first on.
        num_inference_steps: of the schedule.
        guidance_scale: of the run; it does not act on the first step.
        height: pixels; None is the pipeline's own default.
        width: pixels.
        seed: of the starting noise, ONE randn of [num_images, C, h, w].
        parity: "official" reproduces the number of Wen et al.'s code, which is of the encoded prompt; method "gradient"
            only.
        respect_to: for method "gradient". "input": the word's own embedding before the text encoder, which answers
            "which word do I change?". "encoded": the encoder's output, which answers "which column does the model look
            at?"; a causal encoder writes each word into all later columns too. With parity "official" always "encoded".
        substitute: for method "ablation", what stands in place of the word; "" drops it.
        maps: of "noise_gap", "bright_ending" and "word"; they need the whole run. "word" gives one map per word, called
            "word 0", "word 1", ... by the index of its span.
        negative_prompt: None is the pipeline's own empty prompt.

    Returns:
        An Attribution; ``status`` says why where there is none.

    Raises:
        ValueError: for a setting out of range or a pipeline that does not make pictures from text alone.

    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"prompt is {prompt!r}; give the text to explain")
    for name, value, known in (
        ("method", method, METHODS),
        ("parity", parity, gradient.PARITIES),
        ("respect_to", respect_to, ("input", "encoded")),
        *(("maps", wanted, MAPS) for wanted in maps),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; use one of {', '.join(map(str, known))}")
    if num_images < 1 or not 1 <= steps <= num_inference_steps:
        raise ValueError("num_images is at least 1, and steps between 1 and num_inference_steps")
    if parity and method != "gradient":
        raise ValueError(f"parity='official' is a number of method gradient, and method is {method!r}")
    call = {
        "prompt": prompt,
        "num_images_per_prompt": num_images,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        "negative_prompt": negative_prompt,
        "generator": torch.Generator("cpu").manual_seed(seed),
        "output_type": "np" if maps else "latent",
    }
    call |= pipes.size(pipe, pipes.text_to_image(pipe), height, width)
    return _Explaining(pipe, prompt, method, steps, parity, respect_to, substitute, tuple(maps)).run(call)


@dataclass
class _Explaining:
    pipe: Any
    prompt: str
    method: Method
    steps: int
    parity: Literal["official"] | None
    respect_to: With
    substitute: str
    maps: tuple[str, ...]

    def run(self, call: dict[str, Any]) -> Attribution:
        module = pipes.text_to_image(self.pipe)
        if self.parity:  # the official code's halves are swapped: it follows the empty prompt, away from the prompt
            call = call | {"prompt": call["negative_prompt"] or "", "negative_prompt": self.prompt}
        # where guidance is off, the pipeline predicts nothing to compare with: a row per image is spent
        prompts = Prompts(None if self.parity else call["negative_prompt"] or "")
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(aside(module))
                wants_attention = self.method == "attention" or {"bright_ending", "word"} & set(self.maps)
                read = stack.enter_context(reading(module)) if wants_attention else None
                if read is not None:
                    read.positions = bool({"bright_ending", "word"} & set(self.maps))
                watch = Keeping(self.pipe, prompts, read, self.steps, self.maps, swapped=self.parity is not None)
                images = self._go(module, watch, prompts, call)
                if not watch.moments:
                    why = watch.seen.reason or "the pipeline made no guided prediction"
                    return Attribution(self.method, status=why)
                with told():
                    return replace(self._weigh(module, watch, prompts, isinstance(read, Masses)), images=images)
        except Told as reason:
            return Attribution(self.method, status=in_words(reason))
        finally:
            self.pipe.maybe_free_model_hooks()

    def _go(self, module: nn.Module, watch: Keeping, prompts: Prompts, call: dict[str, Any]) -> tuple[Any, ...]:
        """Run the pipeline; return its pictures if it ran to its end."""
        trouble = Trouble(told)  # the pipeline's own errors pass as they are
        before = getattr(self.pipe, "_progress_bar_config", {})
        self.pipe.set_progress_bar_config(disable=True)
        try:
            with (
                methods(self.pipe, **encoding(self.pipe, prompts.learn, lambda: trouble)),
                listening(module, watch, trouble=trouble),
                until_enough(module),
            ):
                made = self.pipe(**pipes.known(self.pipe, call)).images
                return tuple((255 * np.asarray(picture)).round().astype(np.uint8) for picture in made)
            return ()
        finally:
            self.pipe.set_progress_bar_config(**before)

    def _weigh(self, module: nn.Module, watch: Keeping, prompts: Prompts, by_structure: bool) -> Attribution:
        moments = watch.moments
        spans = self._spans(moments[0].prompt, prompts.read if by_structure else None)
        found = replace(weighing.start(self.method, spans, moments), maps=watch.maps(spans))
        if self.method == "attention":
            return weighing.by_attention(found, watch.layers)
        if self.method == "gradient":
            try:
                with differentiable(module):
                    inputs = self.respect_to == "input" and not self.parity
                    pullback = input_gradients(self.pipe, prompts, self.prompt) if inputs else None
                    gradients = [gradient.prompt_gradient(moment, self.parity) for moment in moments]
                    return weighing.by_gradient(found, gradients, pullback)
            except weighing.LEFT as error:
                found = replace(found, method="ablation", notes=(*found.notes, weighing.stood_in(error)))

        def encode(texts: list[str]) -> list[Encoded]:
            together = prompts.encode(texts)
            return [together.row(i) for i in range(len(texts))]

        return weighing.by_ablation(found, moments, self.prompt, encode, self.substitute)

    def _spans(self, prompt: Encoded, read: Sequence[Sequence[int]] | None) -> tuple[TokenSpan, ...]:
        """Return the words of the prompt; of attention by structure they are those that the encoders read."""
        parts, text = columns(self.pipe, self.prompt, prompt.text.shape[1])
        if read is not None and not sure(self.pipe, read, parts):
            raise Unscored(UNKNOWN_COLUMNS)
        return words.merge([words.spans(part, text) for part in parts])
