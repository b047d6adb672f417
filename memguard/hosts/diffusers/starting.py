"""The first model call of a pipeline run as mitigations see it: ``Start``, and ``Step`` for the calls that follow.

Room: memguard.hosts, diffusers. May import: memguard.mitigations, torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...attributions import moment
from ...calibration import ordinary
from ...mitigations.base import Start, Step, View
from ...mitigations.edit import CODES, OTHER, Plan
from ...records import Finding
from . import pipes
from .caches import differentiable
from .calls import Call, prompt_of
from .edits import Editor, following
from .levels import Level, level
from .rows import Encoded, Prompts
from .tokens import columns

Count = Callable[[int], None]  # of rows of the model that are spent


def groups_of(pipe: Any, texts: Sequence[str], count: int, rows: int) -> Tensor | None:
    """Return what stands in each column of the prompts' rows, int8 [rows, count]; None where that is not known."""
    if not texts or rows % len(texts):
        return None
    table = torch.full((len(texts), count), OTHER, dtype=torch.int8)
    for row, text in enumerate(texts):
        for token in (token for part in columns(pipe, text, count)[0] for token in part):
            if token.column < count:
                table[row, token.column] = CODES[token.group]
    return table.repeat_interleave(rows // len(texts), 0)


def predictor(
    call: Call, rows: slice, here: Level, groups: Tensor | None, count: Count, scale: float = 1.0
) -> Callable[[View], Tensor]:
    """Return the function from a View to the prediction of a call's rows, in units of epsilon.

    Args:
        call: the model call.
        rows: of the prompt.
        here: its noise level.
        groups: what stands in each column of these rows.
        count: told the rows that predictions cost.
        scale: of unit noise in the model's input.

    """
    x = call.x[rows]
    own = torch.ones(len(x), dtype=torch.bool, device=x.device)

    def predict(view: View) -> Tensor:
        plan = Plan(view.edits, own, groups, sigma=here.sigma) if view.edits else None
        with following(plan):
            given = None if view.noise is None else view.noise * scale
            made = call.repeat(rows, view.prompt, given)
        count(len(x))
        return here.convert(made, x if given is None else given)

    return predict


def start(
    pipe: Any,
    call: Call,
    blocks: dict[str, slice],
    prompts: Prompts,
    editor: Editor,
    finding: Finding | None,
    count: Count,
    scale: float,
    model: str,
) -> Start:
    """Return the start of a run.

    Args:
        pipe: the pipeline.
        call: its first model call.
        blocks: rows of "cond" and, with guidance, "uncond".
        prompts: what the pipeline encoded.
        editor: of the model's cross-attention.
        finding: what text_noise_norm says of the call; None where it was not asked: a profile of the model tells then.
        count: told the rows that predictions cost.
        scale: of unit noise in the model's input.
        model: fingerprint of the checkpoint.

    """
    here = level(pipe.scheduler, call.timestep)
    rows = blocks.get("cond", next(iter(blocks.values())))
    x, everything = call.x[rows], prompt_of(call.arguments)
    channels = call.prediction.shape[1]
    size = (channels, *call.x.shape[2:])
    table = groups_of(pipe, prompts.texts, call.text.shape[1], len(x))
    known = {role: _rows(everything, part) for role, part in blocks.items()}
    cond, uncond = known.get("cond") or prompts.cond, known.get("uncond") or prompts.uncond
    assert cond is not None

    levels = (finding.threshold, finding.typical) if finding else ordinary(model, here.sigma, size[1:])

    @contextmanager
    def gradients() -> Iterator[None]:
        with differentiable(call.module), torch.enable_grad():
            yield

    def word(number: int) -> str:
        return str(pipe.tokenizer.decode([number]).strip())

    return Start(
        prompt=cond,
        reference=uncond,
        noise=x[:, :channels].float() / scale if here.full_noise else None,
        size=size,
        predict=predictor(call, rows, here, None if table is None else table.to(x.device), count, scale),
        groups=None if table is None else table.to(x.device),
        texts=prompts.of_rows(len(x)),
        encode=_encoder(pipe, call, prompts),
        widths=editor.widths,
        model=model,
        eos_padded=pipes.eos_padded(pipe, cond.text.shape[-1]),
        family=pipes.family(call.module),
        sigma=here.sigma,
        threshold=levels[0],
        typical=levels[1],
        gradients=gradients,
        word=word if getattr(pipe, "tokenizer", None) is not None else None,
    )


def step(
    pipe: Any, call: Call, rows: slice, index: int, scale: float, gaps: tuple[Tensor, Tensor], groups: Any, count: Count
) -> Step:
    """Return a call as guidance sees it.

    Args:
        pipe: the pipeline.
        call: the model call.
        rows: of the prompt.
        index: of the call within the run.
        scale: guidance scale.
        gaps: predictions with and without the prompt, in units of epsilon.
        groups: what stands in each column of the prompt's rows.
        count: told the rows that predictions cost.

    """
    here = level(pipe.scheduler, call.timestep)
    predict = predictor(call, rows, here, groups, count)
    prompt = _rows(prompt_of(call.arguments), rows)
    steps = pipes.model_calls(pipe)
    return Step(index, steps, here.sigma, here.timestep, scale, predict, prompt, *gaps)


def _rows(prompt: moment.Encoded, rows: slice) -> Encoded:
    return Encoded(prompt.text[rows], None if prompt.pooled is None else prompt.pooled[rows])


def _encoder(pipe: Any, call: Call, prompts: Prompts) -> Any:
    def encode(texts: Sequence[str], padding: int | None = None) -> Encoded:
        call.takes_another_prompt()
        with _padded(getattr(pipe, "tokenizer", None), padding), torch.no_grad():
            return prompts.encode(texts)

    return encode


@contextmanager
def _padded(tokenizer: Any, padding: int | None) -> Iterator[None]:
    """Let a tokenizer fill prompts up with another token for the time of the block."""
    if padding is None:
        yield
        return
    before = tokenizer.pad_token
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
    try:
        yield
    finally:
        tokenizer.pad_token = before
