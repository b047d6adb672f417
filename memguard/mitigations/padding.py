"""Other padding for CLIP-L (Kim & No, "CLIP-pad", CVPR 2026 Findings).

SD1 fills a prompt up with copies of EOS, and memorized prompts hang on these copies. "swap": fill up with token 0 ("!")
and set the encoded EOS to zero. "partial": set the first 70 % of the encoded padding to zero.

Acts on SD1 and on the CLIP-L half of SDXL's text; SD2 and CLIP-G fill up with token 0 already.
``parity="official"``: with "swap" the negative prompt is replaced by the empty one, filled up with token 0 as well: the
official code knows no other and leaves its tokenizer changed. The report says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..attributions.moment import Encoded
from ..setting import setting
from .base import Mitigation, Start, Treatment, Unsuitable, blend
from .edit import EOS, PADDING, rows_of

TOKEN = 0
EMPTY = 'the negative prompt replaced by the empty one, padded with "!"'


@dataclass(frozen=True)
class Padding(Mitigation):
    """Take the copies of EOS out of the padding. At a strength s the prompt goes the share s of the way there."""

    NAME = "padding"
    TITLE = "Padding"
    SOURCE = "Kim & No, CVPR 2026"

    variant: Literal["swap", "partial"] = setting(
        "swap",
        "What is done to the padding.",
        choices={"swap": 'it becomes token 0 ("!"), and EOS zero', "partial": "a share of it is set to zero"},
    )
    share: float = setting(0.7, "Of the padding that partial sets to zero.", least=0, most=1, step=0.05)

    def _treat(self, start: Start, before: Treatment) -> Treatment:
        prompt = before.prompt or start.prompt
        if not start.eos_padded:
            raise Unsuitable("it acts where prompts are filled up with EOS (SD1, CLIP-L of SDXL); here they are not")
        if start.groups is None:
            raise Unsuitable("the prompt's tokens are not known, so its padding is not")
        width = start.eos_padded
        if self.variant == "partial":
            changed = self._partial(prompt.text, start.groups)
            return self._with(before, prompt, changed, width).note(f"{self.share:.0%} of the padding set to zero")
        if start.encode is None or not start.texts:
            raise Unsuitable("the prompt's text is not known, so it cannot be encoded with other padding")
        rows = len(prompt.text)
        changed = start.encode(start.texts, padding=TOKEN).expand(rows).text.to(prompt.text)
        eos = rows_of(start.groups, rows) == EOS
        changed = changed.masked_fill(eos[..., None], 0)
        after = self._with(before, prompt, changed, width).note('padded with "!" instead of EOS, EOS set to zero')
        reference = before.reference or start.negative
        if self.parity != "official" or reference is None:
            return after
        empty = start.encode([""], padding=TOKEN).expand(rows)
        return replace(after, reference=_half(reference, empty.text.to(reference.text), width)).note(EMPTY)

    def _with(self, before: Treatment, prompt: Encoded, changed: Tensor, width: int) -> Treatment:
        return replace(before, prompt=blend(prompt, _half(prompt, changed, width), self.strength))

    def _partial(self, text: Tensor, groups: Tensor) -> Tensor:
        pads = rows_of(groups, len(text)) == PADDING
        number = (pads.sum(-1, keepdim=True) * self.share).int()
        return text.masked_fill((pads & (pads.cumsum(-1) <= number))[..., None], 0)


def _half(prompt: Encoded, text: Tensor, width: int) -> Encoded:
    """Return a prompt whose CLIP-L part is that of another text."""
    return Encoded(torch.cat([text[..., :width], prompt.text[..., width:]], -1), prompt.pooled)
