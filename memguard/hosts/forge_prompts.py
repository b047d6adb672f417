"""The prompts of a pass in Forge or Forge Neo: which texts act, how they encode, and the way back to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from backend import args, memory_management
from backend.text_processing import classic_engine
from modules import prompt_parser
from torch import Tensor

from ..attributions.moment import Encoded
from .forge_call import Call, exchanged, text
from .inference import differentiable, normal
from .webui import model, prompts, tokens
from .webui.explanation import Asked, grouped

NOTED = "last_extra_generation_params"


def text_engine(engine: Any) -> Any:
    """Return what splits prompts into tokens, CLIP-L's where there are several; None where that is not the prompt's."""
    if hasattr(engine, "text_processing_engine_t5") and not hasattr(engine, "text_processing_engine_g"):
        return None  # Flux: CLIP gives a vector only, and the columns are T5's
    names = "text_processing_engine", "text_processing_engine_l"
    return next(filter(None, (getattr(engine, name, None) for name in names)), None)


def first(p: Any) -> list[str]:
    """Return the first sub-prompt of each image, as it is at the first step."""
    return [parts[0] for parts in prompts.spoken(prompt_parser, p)]


def encode(p: Any, texts: list[str]) -> Any:
    """Return other texts as the host encodes its own."""
    return p.sd_model.get_learned_conditioning(prompt_parser.SdConditioning(texts, width=p.width, height=p.height))


def empty(p: Any) -> Encoded | None:
    """Return the empty prompt, one row; None where the pass compares with one anyway.

    The text encoder is asked before the sampler has the network in memory.
    """
    if model.cfg(p) != 1 and not any(each.strip() for each in model.negatives(p)):
        return None
    given = prompt_parser.SdConditioning([""], is_negative_prompt=True, width=p.width, height=p.height)
    made = tokens.encoded(p.sd_model.get_learned_conditioning(given))
    return Encoded(normal(made.text), None if made.pooled is None else normal(made.pooled))


def asked(call: Call) -> Asked:
    """Return what is known of the prompts of a call, for an explanation; rows are sub-prompt by sub-prompt."""
    p, images = call.p, len(call.x)
    given = [text([cond]) for cond in call.cond]
    pooled = [each.pooled for each in given if each.pooled is not None]
    prompt = Encoded(torch.cat([each.text for each in given]), torch.cat(pooled) if pooled else None)

    def predict(prompt: Encoded) -> Tensor:
        own = [
            exchanged(cond, prompt.rows(slice(number * images, (number + 1) * images)))
            for number, cond in enumerate(call.cond)
        ]
        return call.asked(own, call.x)

    return Asked(
        prompt,
        grouped(prompts.spoken(prompt_parser, p), lambda image, part: part * images + image),
        text_engine(p.sd_model),
        predict,
        lambda: gradients(p),
        lambda: following(p),
    )


def gradients(p: Any) -> AbstractContextManager[Any]:
    """Let autograd through the network, for the time of the block."""
    return differentiable(p.sd_model.forge_objects.unet.model)


@contextmanager
def following(p: Any) -> Iterator[None]:
    """Let autograd through the text encoder; what it notes for saved pictures stays as it was."""
    noted = _noted()
    before = dict(noted)
    encoder = text_engine(p.sd_model).text_encoder
    memory_management.load_model_gpu(p.sd_model.forge_objects.clip.patcher)
    try:
        with differentiable(encoder):
            yield
    finally:
        noted.clear()
        noted.update(before)


def _noted() -> dict[str, Any]:
    """Return where the host notes what goes into infotext: beside its text engine, or in Neo its arguments."""
    place = classic_engine if hasattr(classic_engine, NOTED) else args.dynamic_args
    return getattr(place, NOTED)
