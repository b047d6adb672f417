"""One scan: its settings, and prompts that share a forward.

Every prompt starts from the same latents, drawn by the pipeline itself from ``torch.Generator("cpu")``, so several
prompts share one forward, and for a single step the prediction without the prompt is made once for all of them: half
the rows of one guided run per prompt. Prompts with seeds of their own share the forward only. The pipeline builds every
argument of its denoiser; nothing is rebuilt here.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice, repeat
from typing import Any

import torch

from ...aside import aside
from ...calibration import Profile, Sensitivity
from ...guard import Guard, Run
from ...records import Reference, Report
from ...texts import unfit
from ...troubles import of_pipeline
from . import pipes
from .attention import attending
from .batch import Seen, latents_of_prompts, together
from .hooks import listening
from .methods import encoding, methods
from .reader import Reader, Shared
from .rows import Prompts, until_enough
from .tokens import unread

ROWS = 16  # of one forward, unless the caller knows better; halved when memory runs out
# Schedulers whose steps draw no noise of their own: with the others, a second prompt in a batch would get other noise
# than alone.
DETERMINISTIC = frozenset(
    "DDIM PNDM DPMSolverMultistep DPMSolverSinglestep UniPCMultistep DEISMultistep EulerDiscrete HeunDiscrete"
    " KDPM2Discrete LMSDiscrete FlowMatchEulerDiscrete FlowMatchHeunDiscrete".split()
)


def grain(num_images: int = 1, batch_size: int | None = None) -> int:
    """Return a number of prompts at whose multiples a forward of ``scan`` begins, whatever the pipeline.

    A list that is cut there is scored in the same forwards as in one piece, so that the scores are equal to the last
    bit; where a model predicts a prompt depends, by rounding, on how many share the forward.

    Args:
        num_images: images per prompt.
        batch_size: prompts per forward, as given to ``scan``.

    """
    return batch_size or math.lcm(_fitting(num_images), _fitting(2 * num_images))


def _fitting(rows: int) -> int:
    """Return how many prompts of so many rows make a forward."""
    return max(1, ROWS // rows)


class Scan:
    """Settings of one scan and what its batches share.

    Args:
        pipe: the pipeline.
        own_seeds: whether prompts start from latents of their own, which the seeds of ``reports`` may say.
        **settings: as ``scan``.

    Attributes:
        batch_size: prompts per forward; less from the first that did not fit the memory.

    Raises:
        ValueError: as ``scan``.

    """

    def __init__(
        self,
        pipe: Any,
        *,
        detectors: Sequence[str],
        num_images: int,
        steps: int,
        seed: int,
        profile: Profile | None,
        reference: Reference,
        sensitivity: float | Sensitivity,
        batch_size: int | None,
        own_seeds: bool,
        **settings: Any,
    ) -> None:
        guard = self.guard = Guard(detectors, "observe", None, profile, steps, sensitivity, reference)
        if guard.late:
            raise ValueError(
                "a scan ends after the first steps, and attention_entropy_late needs the last; use a Guard"
            )
        if num_images < 1 or (batch_size is not None and batch_size < 1):
            raise ValueError("num_images and batch_size are at least 1")
        if steps > settings["num_inference_steps"]:
            whole = settings["num_inference_steps"]
            raise ValueError(f"steps is {steps}, but a run has only {whole} (num_inference_steps)")
        self.pipe, self.seed, self.own_seeds, self.images = pipe, seed, own_seeds, num_images
        given = settings | {"num_images_per_prompt": num_images}
        module = self.module = pipes.text_to_image(pipe)
        config = getattr(module, "config", {})
        self.built_in = bool(config.get("guidance_embeds") or config.get("time_cond_proj_dim"))
        self.facts = pipes.host_facts() | pipes.run_facts(pipe, given)
        self.facts |= {"model": pipes.name_of(module)}
        call = given | pipes.size(pipe, module, given["height"], given["width"])
        # one step needs no guided trajectory: rows with the prompt alone, and the reference once
        self.single = guard.steps == 1 and not self.built_in
        if self.single:
            call |= {"guidance_scale": 1.0, "negative_prompt": None}
        self.call = pipes.known(pipe, call) | {"output_type": "latent"}
        self.wish = "" if guard.reference == "empty" else given["negative_prompt"] or ""
        mixes = guard.steps == 1 or type(pipe.scheduler).__name__.removesuffix("Scheduler") in DETERMINISTIC
        rows = self.images if self.single else 2 * self.images
        self.batch_size = (batch_size or _fitting(rows)) if mixes and together(pipe) else 1
        self.shared: Shared | None = None

    def reports(self, prompts: Iterable[Any], seeds: Iterable[int] | None = None) -> Iterator[Report]:
        """Yield the reports of prompts; as ``scan``."""
        try:
            yield from self.scored(self.paired(prompts, seeds))
        finally:
            self.pipe.maybe_free_model_hooks()  # a run that was ended early has not done so itself

    def paired(self, prompts: Iterable[Any], seeds: Iterable[int] | None = None) -> Iterator[tuple[Any, int]]:
        """Yield each prompt with its seed."""
        if seeds is None:
            seeds = count(self.seed) if self.own_seeds else repeat(self.seed)
        left = iter(seeds)
        for number, prompt in enumerate(prompts):
            seed = next(left, None)
            if seed is None:
                raise ValueError(f"there are {number} seeds, and more prompts; give one for each")
            yield prompt, seed

    def scored(self, pairs: Iterable[tuple[Any, int]]) -> Iterator[Report]:
        """Yield the reports of prompts with their seeds; the pipeline is left ready for more of them."""
        source = iter(pairs)
        while batch := list(islice(source, self.batch_size)):
            yield from self._batch(batch)

    def _batch(self, batch: list[tuple[Any, int]]) -> Iterator[Report]:
        reasons = [unfit(prompt) for prompt, _ in batch]
        scored = self._texts([each for each, reason in zip(batch, reasons, strict=True) if not reason])
        for (prompt, seed), reason in zip(batch, reasons, strict=True):
            if not reason:
                yield next(scored)
            else:
                run = self._begin(prompt if isinstance(prompt, str) else None, seed)
                run.unavailable(reason)
                yield run.finish()

    def _begin(self, text: str | None, seed: int, **facts: Any) -> Run:
        return self.guard.begin(**self.facts | facts | {"prompt": text, "seeds": (seed,)})

    def _texts(self, texts: list[tuple[str, int]]) -> Iterator[Report]:
        """Score texts, each with its seed, together; where that fails, in halves, so that only the bad one is lost."""
        if not texts:
            return
        started = time.perf_counter()
        try:
            seen = self._run(texts)
        except Exception as error:
            if len(texts) > 1:
                half = len(texts) // 2
                if isinstance(error, torch.OutOfMemoryError):
                    self.batch_size = half
                yield from self._texts(texts[:half])
                yield from self._texts(texts[half:])
                return
            run = self._begin(*texts[0], error=f"{type(error).__name__}: {error}")
            run.unavailable(of_pipeline(error))
            yield run.finish()
            return
        seconds = (time.perf_counter() - started) / len(texts)
        for i, (text, seed) in enumerate(texts):
            cut = unread(self.pipe, text, seen.columns)
            notes = (*(self.facts | seen.facts)["notes"], *([cut] if cut else ()))
            run = self._begin(text, seed, **seen.facts | {"notes": notes})
            run.started = time.perf_counter() - seconds
            run.extra_rows = seen.extra_rows if i == 0 else 0
            if seen.reason is not None:
                run.unavailable(seen.reason)
            rows = slice(i * self.images, (i + 1) * self.images)
            for step in seen.evidence:
                run.observe(step.rows(rows))
            yield run.finish()

    def _run(self, texts: list[tuple[str, int]]) -> Seen:
        """Run the pipeline on several prompts up to the last scored step."""
        seen = Seen(self.guard.steps)
        prompts = Prompts(self.wish if self.single or self.guard.reference == "empty" or not self._pairs() else None)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in dict.fromkeys(seed for _, seed in texts)]
        call = self.call | {"prompt": [text for text, _ in texts], "generator": generators[0]}
        if "negative_prompt" in call:
            call["negative_prompt"] = len(texts) * [call["negative_prompt"]]
        before = getattr(self.pipe, "_progress_bar_config", {})
        self.pipe.set_progress_bar_config(disable=True)
        images = None if self.own_seeds else self.images
        reader = Reader(self.pipe, seen, prompts, self.guard.reference, images=images, shared=self.shared)
        try:
            with (
                aside(self.module),
                attending(self.guard.attention, self.module) as read,
                methods(self.pipe, **encoding(self.pipe, prompts.learn), **latents_of_prompts(len(texts), generators)),
            ):
                reader.read = read
                with listening(self.module, reader), until_enough(self.module):
                    self.pipe(**call)
        finally:
            self.pipe.set_progress_bar_config(**before)
        self.shared = reader.shared
        seen.columns = 0 if prompts.cond is None else prompts.cond.text.shape[1]
        return seen

    def _pairs(self) -> bool:
        """Whether the run that is scored predicts with and without the prompt by itself."""
        guided = not self.built_in and self.call.get("guidance_scale", 7.5) > 1
        return guided and "negative_prompt" in inspect.signature(self.pipe.encode_prompt).parameters
