"""The prompts of a pass in A1111: which texts act, how they encode, the way back through network and text encoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from modules import devices, prompt_parser, sd_hijack
from torch import Tensor

from ..attributions.lean import lean
from ..attributions.moment import Encoded
from .a1111_call import Call, combined
from .webui import model, prompts, tokens
from .webui.explanation import Asked, grouped


def text_engine(engine: Any) -> Any:
    """Return what splits prompts into tokens, CLIP-L's where there are several; None where there is none."""
    if hasattr(engine, "conditioner"):
        return engine.conditioner.embedders[0]
    return getattr(engine, "cond_stage_model", None)


def first(p: Any) -> list[str]:
    """Return the first sub-prompt of each image, as it is at the first step."""
    return [parts[0] for parts in prompts.spoken(prompt_parser, p)]


def encode(p: Any, texts: list[str]) -> Any:
    """Return other texts as the host encodes its own."""
    return p.sd_model.get_learned_conditioning(prompt_parser.SdConditioning(texts, width=p.width, height=p.height))


def empty(p: Any) -> Encoded | None:
    """Return the empty prompt, one row; None where the pass's own negative prompt is empty."""
    if not any(text.strip() for text in model.negatives(p)):
        return None
    with torch.no_grad():
        given = prompt_parser.SdConditioning([""], is_negative_prompt=True, width=p.width, height=p.height)
        return tokens.encoded(p.sd_model.get_learned_conditioning(given))


def asked(call: Call) -> Asked:
    """Return what is known of the prompts of a call, for an explanation."""
    p, images = call.p, len(call.parts)
    uncond: list[Tensor] = []  # the mean of joined prompts is measured from it; made only where there are any

    def predict(prompt: Encoded) -> Tensor:
        made = call.asked(tokens.like(call.text, prompt), call.rows_x[: call.rows])
        if call.alone:
            return made
        if not uncond:
            with torch.no_grad():
                uncond.append(call.asked(call.reference, call.x))
        return torch.stack([combined(made, call.parts[image], uncond[0][image]) for image in range(images)])

    return Asked(
        tokens.encoded(call.text),
        grouped(prompts.spoken(prompt_parser, p), lambda image, part: call.parts[image][part][0]),
        text_engine(p.sd_model),
        predict,
        lambda: gradients(p),
        following,
    )


@contextmanager
def gradients(p: Any) -> Iterator[None]:
    """Let autograd through the network, for the time of the block."""
    with lean(p.sd_model.model.diffusion_model), torch.enable_grad():
        yield


@contextmanager
def following() -> Iterator[None]:
    """Let autograd through the text encoder; what it notes for saved pictures stays as it was."""
    noted = sd_hijack.model_hijack.extra_generation_params
    before = dict(noted)
    try:
        with devices.autocast(), torch.enable_grad():
            yield
    finally:
        noted.clear()
        noted.update(before)
