"""A model call as memguard.sampling sees it: predicted again with another prompt, other noise, other edits.

Part of the ComfyUI host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ... import host
from ...attributions.moment import Encoded
from ...host import Role
from ...mitigations.base import Encode, Unsuitable
from ...mitigations.edit import Edit
from ...mitigations.effect import Effect
from ..inference import differentiable
from . import model, roles
from .began import Began
from .calls import Call, Cond, layout_of, leading, normal_cond, rows_of, trailing, with_prompt
from .edits import Editor
from .prompts import Prompts

EOS_PADDED = {"sdxl": 768}  # features of CLIP-L; SD1's text is all of it


class Evaluation:
    """One model call (memguard.host.Call), and the network of its run (memguard.host.Network).

    Args:
        call: the model call, its options without any edits of ours.
        began: what the sampler was started with.
        editor: of the run.
        reference: the role that the prompt is compared with; None without guidance.
        denoised: what the call has predicted, by role, where it was made.
        step: its number.

    Attributes:
        cost: rows of the network that the last prediction took.

    """

    coverage: Tensor | None = None
    why = ""

    def __init__(
        self,
        call: Call,
        began: Began | None,
        editor: Editor,
        reference: str | None = None,
        denoised: Mapping[str, Tensor] | None = None,
        step: int = 0,
    ) -> None:
        self.call, self.began, self.editor, self.x, self.step, self.cost = call, began, editor, call.x, step, 0
        self.roles: dict[Role, str] = {"prompt": roles.PROMPT}
        self.roles |= {} if reference is None else {"negative": reference}
        guider, sampling, sigma = call.guider, call.guider.inner_model.model_sampling, call.sigma
        self.layout = layout_of(guider.conds[roles.PROMPT])
        self.level = host.Level(float(sigma.flatten()[0]), float(sampling.sigma_max), model.timestep(sampling, sigma))
        self.scale = float(getattr(guider, "cfg1", getattr(guider, "cfg", 1.0)))
        # the guider's own prompts are known again by identity: predicting with one takes all its parts and areas
        self.given: Mapping[Role, Encoded] = {
            role: call.encoded(guider.conds[name][0]) for role, name in self.roles.items()
        }
        made = {} if denoised is None else {role: denoised[name] for role, name in self.roles.items()}
        self.predicted: Mapping[Role, Tensor] = {role: call.noise(each) for role, each in made.items()}
        self._edits: tuple[tuple[Edit, ...], Effect | None] = (), None
        self._mode = torch.is_inference_mode_enabled()

    @property
    def noise(self) -> Tensor | None:
        """Noise of unit variance that the run starts from; None where it does not start from noise alone."""
        pure = self.began is not None and self.began.pure(self.call.guider)
        return self.began.noise.float() if self.began is not None and pure else None

    @property
    def widths(self) -> dict[str, int]:
        """The number of value neurons of each layer of cross-attention."""
        return self.editor.widths

    @contextmanager
    def following(self, edits: tuple[Edit, ...], call: host.Call, effect: Effect | None = None) -> Iterator[None]:
        """Let cross-attention follow edits."""
        before, self._edits = self._edits, (edits, effect)
        try:
            yield
        finally:
            self._edits = before

    def gradients(self) -> AbstractContextManager[Any]:
        """Let autograd through the network, for the time of the block."""
        network = self.call.guider.inner_model.diffusion_model
        return differentiable(getattr(network, "_orig_mod", network))

    def latents(self, noise: Tensor, images: Tensor | None = None) -> Tensor:
        """Return the noisy latents of a run that starts from other noise; images that keep theirs have it in there.

        Raises:
            Unsuitable: where the noise cannot be changed.

        """
        if self.began is None:
            raise Unsuitable("the guider starts its sampler in a way of its own, so the noise cannot be changed")
        return self.began.scaled(self.call.guider, noise)

    def predict(self, role: Role, prompt: Encoded, x: Tensor) -> Tensor:
        """Predict latents with a prompt, float32 [B, C, h, w] in units of epsilon."""
        known = next((name for each, name in self.roles.items() if prompt is self.given[each]), None)
        conds = self.call.guider.conds[known or self.roles[role]]
        if known is None:
            conds = [exchanged(conds, prompt)]
        call = Call(self.call.guider, x, self.call.sigma, self.call.options)
        if torch.is_grad_enabled():
            call, conds = call.normal(), [_normal(cond, prompt) for cond in conds]
        edits, effect = self._edits
        call.options = self.editor.options(call.options, edits, self.step, self.level.sigma, effect)
        with self.as_sampled():
            made = call.predict([conds])[0]
        self.cost = rows_of(conds, self.x, self.call.sigma)
        return made

    @contextmanager
    def as_sampled(self) -> Iterator[None]:
        """Make a call as the sampler does, which may write to weights: in its inference mode, but for gradients."""
        if torch.is_grad_enabled() or not self._mode:
            yield
            return
        with torch.inference_mode():
            yield


class Texts:
    """The prompts of a run (memguard.host.Texts).

    Args:
        prompts: what is known of them.
        call: of the run.

    """

    def __init__(self, prompts: Prompts, call: Evaluation) -> None:
        self.prompts, self.prompt = prompts, call.given["prompt"]
        guider = call.call.guider
        self.parts, self.family = guider.conds[roles.PROMPT], model.family(guider.model_patcher)
        text = " | ".join(filter(None, map(prompts.text, self.parts)))
        self.known: tuple[str, ...] = (text,) if text else ()

    def eos_padded(self, width: int) -> int:
        """Return how many of a text's features come from an encoder that fills prompts up with EOS."""
        return width if self.family == "sd15" else EOS_PADDED.get(self.family, 0)

    def table(self, columns: int) -> Tensor | None:
        """Return what stands in each column of the prompts, int8 [1, columns]; None where that is not known."""
        return next((table for part in self.parts if (table := self.prompts.table(part)) is not None), None)

    @property
    def encode(self) -> Encode | None:
        """Encodes other texts, one row each; None without the CLIP that has encoded the prompt."""
        return None if self.prompts.clip is None else self._encoded

    def word(self, number: int) -> str | None:
        """Return the text of a token of CLIP's vocabulary; None without CLIP."""
        return None if self.prompts.clip is None else self.prompts.word(number)

    def _encoded(self, texts: Sequence[str], padding: int | None = None) -> Encoded:
        if len(self.parts) != 1:
            exchanged(self.parts, self.prompt)
        made = self.prompts.encode(texts, padding)
        behind = trailing(self.parts[0])
        filled = self.prompt.text.shape[1] - made.text.shape[1] - behind if leading(self.parts[0]) else 0
        own = self.prompt.text[:1].to(made.text).expand(len(texts), -1, -1)  # as the model fills up its own
        left, right = own[:, : max(0, filled)], own[:, own.shape[1] - behind :]
        return replace(made, text=torch.cat([left, made.text, right], 1))


def exchanged(conds: Sequence[Cond], prompt: Encoded) -> Cond:
    """Return the one conditioning of a role with another prompt.

    Raises:
        Unsuitable: if the role has several parts.

    """
    if len(conds) != 1:
        raise Unsuitable(
            f"the prompt is combined of {len(conds)} parts, and only a prompt of one part can be exchanged"
        )
    return with_prompt(conds[0], prompt.text, prompt.pooled)


def _normal(cond: Cond, prompt: Encoded) -> Cond:
    """Return a conditioning that autograd may save, with the graph of its prompt."""
    found = normal_cond(cond)
    return with_prompt(found, prompt.text, prompt.pooled) if prompt.text.requires_grad or _leads(prompt) else found


def _leads(prompt: Encoded) -> bool:
    return prompt.pooled is not None and prompt.pooled.requires_grad
