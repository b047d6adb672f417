"""A pass's first model call as mitigations see it. Part of the WebUI hosts; may import: memguard's core, torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...attributions.moment import Encoded
from ...detectors.text_noise_norm import NAME as NORM
from ...mitigations.base import Start, View
from ...records import Report
from . import tokens
from .edits import Editor

EOS_PADDED = {"sdxl": 768}  # features of CLIP-L; SD1's text is all of it


@dataclass(frozen=True)
class First:
    """What a host gives of the call; see Start for the fields."""

    prompt: Encoded
    reference: Encoded | None
    noise: Tensor | None
    size: tuple[int, int, int]
    sigma: float
    predict: Callable[[View], Tensor]
    gradients: Callable[[], AbstractContextManager[Any]]
    cancelled: Callable[[], None]


def start(
    first: First,
    report: Report,
    editor: Editor,
    engine: Any,
    encode: Callable[[list[str]], Any],
    texts: Sequence[str],
) -> Start:
    """Return the start of a run.

    Args:
        first: the call.
        report: of the run so far.
        editor: of the network; learns what stands in the prompts' columns.
        engine: the WebUI's text engine, of CLIP-L where there are several; None where it is not known.
        encode: encodes texts as the host encodes its own.
        texts: the prompt of each image.

    """
    scored = next((finding for finding in report.findings if finding.detector == NORM), None)
    table = tokens.table(engine, texts, first.prompt.text.shape[1])
    editor.table = table
    device, known = first.prompt.text.device, tuple(dict.fromkeys(texts))

    def encoded(texts: Sequence[str], padding: int | None = None) -> Encoded:
        with tokens.padded(engine, padding), torch.no_grad():
            return tokens.encoded(encode(list(texts)))

    def word(number: int) -> str:
        return str(engine.tokenizer.decode([number])).strip()

    return Start(
        prompt=first.prompt,
        reference=first.reference,
        noise=first.noise,
        size=first.size,
        predict=first.predict,
        groups=None if table is None else table.to(device),
        texts=known if len(known) == 1 else tuple(texts),
        encode=encoded,
        widths=editor.widths,
        model=report.model,
        eos_padded=first.prompt.text.shape[-1] if report.family == "sd15" else EOS_PADDED.get(report.family, 0),
        family=report.family,
        sigma=first.sigma,
        threshold=None if scored is None else scored.threshold,
        typical=None if scored is None else scored.typical,
        gradients=first.gradients,
        word=word if hasattr(getattr(engine, "tokenizer", None), "decode") else None,
        cancelled=first.cancelled,
    )
