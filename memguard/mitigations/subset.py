"""Some images of a run mitigated for themselves, where a batch holds several prompts and not all look memorized.

Mitigations get a start that is narrowed to these images; what they return is widened to the batch and leaves the other
images bit by bit as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..attributions.moment import Encoded
from .base import Guidance, Start, Step, Treatment, View
from .edit import AttentionSite, Edit

Predict = Callable[[View], Tensor]


class Subset:
    """Narrows a start to some images, and widens treatments of them to all.

    Args:
        whole: the start of the run, B images.
        images: their numbers, at least one, ascending.

    """

    def __init__(self, whole: Start, images: Sequence[int]) -> None:
        rows, device = len(whole.prompt.text), whole.prompt.text.device
        self.whole, self.rows = whole, rows
        self.images = torch.tensor(images, device=device)
        # the image that stands in for each one of the batch in predictions, of which only these images' are taken
        self._stand_in = torch.tensor([images.index(i) if i in images else 0 for i in range(rows)], device=device)
        self._wide: dict[int, tuple[Any, Any]] = {}  # what was widened, by identity: treatments are compared by it
        texts = whole.texts if len(whole.texts) != rows else tuple(whole.texts[i] for i in images)
        self.start = replace(
            whole,
            prompt=whole.prompt.rows(self.images),
            reference=None if whole.reference is None else whole.reference.rows(self.images),
            negative=None if whole.negative is None else whole.negative.rows(self.images),
            noise=None if whole.noise is None else whole.noise[self.images],
            groups=whole.groups if whole.groups is None or len(whole.groups) == 1 else whole.groups[self.images],
            predict=partial(self.predict, whole.predict),
            texts=texts,
        )

    def widened(self, treatment: Treatment) -> Treatment:
        """Return a treatment of the narrowed start as one of the batch."""
        whole = self.whole
        wide = replace(
            treatment,
            edits=tuple(self._once(edit, self._edit) for edit in treatment.edits),
            prompt=self._once(treatment.prompt, partial(self._merged, whole.prompt)),
            reference=self._once(treatment.reference, partial(self._merged, whole.negative)),
            noise=self._once(treatment.noise, self._with_noise),
            guidance=tuple(GuideImages(self, each) for each in treatment.guidance),
            images=self.images,
        )
        return replace(wide, claimed=wide.parts)  # the same parts in other objects

    def predict(self, predict: Predict, view: View) -> Tensor:
        """Return what a function from a View of the batch to its prediction says of these images."""
        prompt = view.prompt
        if prompt is self.start.prompt:
            prompt = self.whole.prompt  # hosts know their own prompts by identity
        elif prompt is self.start.reference and self.whole.reference is not None:
            prompt = self.whole.reference
        else:
            prompt = prompt.rows(self._stand_in)
        noise = None if view.noise is None else view.noise[self._stand_in]
        edits = tuple(self._once(edit, self._edit) for edit in view.edits)
        return predict(View(prompt, noise, edits))[self.images]

    def _once(self, value: Any, widen: Callable[[Any], Any]) -> Any:
        if value is None:
            return None
        if id(value) not in self._wide:
            self._wide[id(value)] = value, widen(value)
        return self._wide[id(value)][1]

    def _edit(self, edit: Edit) -> Edit:
        return EditImages(edit, self.images, self.rows)

    def _merged(self, own: Encoded | None, prompt: Encoded) -> Encoded:
        assert own is not None
        text, pooled = own.text.clone(), own.pooled
        text[self.images] = prompt.text.to(text)
        if pooled is not None and prompt.pooled is not None:
            pooled = pooled.clone()
            pooled[self.images] = prompt.pooled.to(pooled)
        return Encoded(text, pooled)

    def _with_noise(self, noise: Tensor) -> Tensor:
        assert self.whole.noise is not None
        merged = self.whole.noise.clone()
        merged[self.images] = noise.to(merged)
        return merged


class EditImages(Edit):
    """An edit on the prompt's rows of some images; a call holds the prompt's rows of all images, once or repeatedly."""

    def __init__(self, edit: Edit, images: Tensor, rows: int) -> None:
        self.edit = edit
        self._chosen = torch.zeros(rows, dtype=torch.bool, device=images.device)
        self._chosen[images] = True
        self._last: tuple[Tensor, Tensor] | None = None  # rows are the same objects at every layer and step

    def acts(self, layer: str) -> bool:
        """Whether the edit acts on a layer."""
        return self.edit.acts(layer)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, edited for these images."""
        return self.edit(q, k, v, replace(site, conditional=self._rows(site.conditional)))

    def keep(self, conditional: Tensor, groups: Tensor | None) -> Tensor | None:
        """Return which keys take part."""
        return self.edit.keep(self._rows(conditional), groups)

    def bias(self, q: Tensor, k: Tensor, site: AttentionSite) -> Tensor | None:
        """Return what is added to the logits."""
        return self.edit.bias(q, k, replace(site, conditional=self._rows(site.conditional)))

    def _rows(self, conditional: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not conditional:
            times = int(conditional.sum()) // len(self._chosen)
            found = conditional.clone()
            found[conditional] = self._chosen.to(conditional.device).repeat(times)
            self._last = conditional, found
        return self._last[1]


class GuideImages(Guidance):
    """Guidance of some images; the gap of the others is returned as it came."""

    def __init__(self, subset: Subset, guidance: Guidance) -> None:
        self.subset, self.guidance = subset, guidance

    def __call__(self, gap: Tensor, step: Step) -> Tensor:
        """Return the noise gap [B, C, h, w]."""
        images = self.subset.images.to(gap.device)
        inner = replace(
            step,
            prompt=step.prompt.rows(images),
            cond=step.cond[images],
            uncond=step.uncond[images],
            predict=partial(self.subset.predict, step.predict),
        )
        out = gap.clone()
        out[images] = self.guidance(gap[images], inner).to(gap)
        return out
