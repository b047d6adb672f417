"""One call of A1111's denoiser (memguard.host.Call): its rows, its noise level, and the way to make it again.

Rows are those of ``on_cfg_denoiser``: for each image its AND sub-prompts, then the images without the prompt.
k-diffusion's samplers predict denoised latents x0, of which epsilon is (x - x0) / sigma; the others (DDIM, PLMS, UniPC)
predict epsilon itself, and what is called sigma is their timestep.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from modules import shared
from modules.sd_samplers_timesteps import CFGDenoiserTimesteps
from torch import Tensor

from ..aside import aside
from ..attributions.moment import Encoded
from ..host import Level, Role
from ..layout import Layout
from .webui import model, tokens
from .webui.session import SKIPPED

EDIT = "InstructPix2Pix predicts three ways, and a score is of two"


@contextmanager
def beside(network: torch.nn.Module) -> Iterator[None]:
    """The block around every evaluation of ours: ``aside``, and the generator of the HyperTile that A1111 brings."""
    tiles = getattr(sys.modules.get("hypertile"), "RNG_INSTANCE", None)
    own = tiles if isinstance(tiles, random.Random) else random.Random()
    before = own.getstate()
    with aside(network):
        try:
            yield
        finally:
            own.setstate(before)


class Call:
    """One call of the denoiser, as ``on_cfg_denoiser`` and ``on_cfg_denoised`` show it.

    Args:
        params: of ``on_cfg_denoiser``.
        restarts: whether the sampler can be started once more.

    Attributes:
        parts: of each image, row and weight of its sub-prompts.
        raw: what all rows were predicted, as ``on_cfg_denoised`` shows it; None before.

    """

    coverage = None
    layout = Layout()

    def __init__(self, params: Any, restarts: bool = False) -> None:
        self.denoiser, self.sigma, self.rows_x = params.denoiser, params.sigma, params.x
        self.text, self.reference, self.image_cond = params.text_cond, params.text_uncond, params.image_cond
        self.p, self.restarts = self.denoiser.p, restarts
        self.steps = isinstance(self.denoiser, CFGDenoiserTimesteps)
        extra = self.denoiser.sampler.sampler_extra_args["cond"]
        self.parts = [
            [(n, each.weight) for n, each in enumerate(image, sum(map(len, extra.batch[:i])))]
            for i, image in enumerate(extra.batch)
        ]
        self.level = self._level()
        self.raw: Tensor | None = None
        self._before: Tensor | None = None  # the same, before we wrote into it
        self._predicted: dict[Role, Tensor] | None = None
        self._given: dict[Role, Encoded] | None = None

    def _level(self) -> Level:
        known = self.p.sd_model.alphas_cumprod.float()
        levels = ((1 - known) / known).sqrt()
        if self.steps:
            timestep = float(self.sigma[0])
            sigma = float(levels[min(round(timestep), len(levels) - 1)])
        else:
            sigma = float(self.sigma[0])
            timestep = float(self.denoiser.inner_model.sigma_to_t(self.sigma[:1])[0])
        return Level(sigma, float(levels[-1]), timestep, full_noise=None if model.from_picture(self.p) else True)

    @property
    def x(self) -> Tensor:
        """The noisy latents of the images."""
        return self.rows_x[self.rows :]

    @property
    def noise(self) -> Tensor | None:
        """Noise of unit variance that the run starts from; None where it cannot start from other noise."""
        return self.x.float() / self._unit if self.restarts and not model.from_picture(self.p) else None

    @property
    def scale(self) -> float:
        """The guidance scale of the call."""
        return float(model.cfg(self.p) * getattr(self.denoiser, "cond_scale_miltiplier", 1.0))  # the host's spelling

    @property
    def rows(self) -> int:
        """The number of the prompt's rows."""
        return sum(map(len, self.parts))

    @property
    def columns(self) -> int:
        """The number of the prompt's columns."""
        text = self.text["crossattn"] if isinstance(self.text, dict) else self.text
        return int(text.shape[1])

    @property
    def total(self) -> int | None:
        """The number of calls that the sampler makes; some make several in each step."""
        return getattr(self.denoiser, "total_steps", None)

    @property
    def alone(self) -> bool:
        """Whether each image has one prompt and not several that are joined by AND."""
        return self.rows == len(self.parts)

    @property
    def given(self) -> Mapping[Role, Encoded]:
        """What the network was conditioned on, without prompts that are joined of several."""
        if self._given is None:
            prompt: dict[Role, Encoded] = {"prompt": tokens.encoded(self.text)} if self.alone else {}
            self._given = prompt | {"negative": tokens.encoded(self.reference)}
        return self._given

    @property
    def whole(self) -> bool:
        """Whether prompt and negative prompt were predicted, and nothing else."""
        return self.raw is not None and len(self.raw) == self.rows + len(self.parts)

    @property
    def predicted(self) -> Mapping[Role, Tensor]:
        """What was predicted, of AND sub-prompts their mean by weight; see memguard.host.Call."""
        if self._predicted is None:
            self._predicted = {}
            if self.raw is not None and self.whole:
                noise, rows = self._noise(self.rows_x, self.raw), self.rows
                uncond = noise[rows:]
                joined = [combined(noise, part, uncond[image]) for image, part in enumerate(self.parts)]
                self._predicted["prompt"] = torch.stack(joined)
                first = torch.tensor([part[0][0] for part in self.parts], device=noise.device)
                if not torch.equal(self.raw[rows:], self.raw[first]):  # where it is skipped, it is the prompt's own
                    self._predicted["negative"] = uncond
        return self._predicted

    @property
    def why(self) -> str:
        """Why a prediction is missing."""
        return SKIPPED if self.whole else EDIT

    def gap(self) -> Tensor | None:
        """Return the noise gap of each image, [B, C, h, w], in units of epsilon; zero where a row was left out."""
        if self.raw is None or not self.whole:
            return None
        uncond = self.raw[self.rows :].float()
        made = torch.stack([combined(self.raw.float(), part, uncond[i]) for i, part in enumerate(self.parts)])
        return made - uncond if self.steps else (uncond - made) / self.level.sigma

    def latents(self, noise: Tensor, images: Tensor | None = None) -> Tensor:
        """Return the latents of a run that starts from other noise; see memguard.host.Call."""
        moved = (noise * self._unit).to(self.x)
        return moved if images is None else self.x.index_copy(0, images, moved[images])

    def predict(self, role: Role, prompt: Encoded, x: Tensor) -> Tensor:
        """Predict each image once with another text, in units of epsilon."""
        return self.asked(tokens.like(self.text if role == "prompt" else self.reference, prompt), x)

    def asked(self, text: Any, x: Tensor) -> Tensor:
        """Predict rows with a text in the form that the host gives one in, in units of epsilon."""
        image = self.image_cond[: len(x)]
        cond = {**text, "c_concat": [image]} if isinstance(text, dict) else {"c_crossattn": [text], "c_concat": [image]}
        if self.p.sd_model.model.conditioning_key == "crossattn-adm":
            cond = {"c_crossattn": [text], "c_adm": image}
        return self._noise(x, self.denoiser.inner_model(x, self.sigma[: len(x)], cond=cond))

    def exchange(self, given: Mapping[Role, Encoded]) -> None:
        """Take other texts, as the host gives them to its model."""
        for role, name in ORDER:
            if given.get(role) is not self.given.get(role):
                setattr(self, name, tokens.like(getattr(self, name), given[role]))
        self._given = dict(given)

    def put(self, predicted: Mapping[Role, Tensor], images: Tensor | None = None) -> None:
        """Write other predictions over those that the sampler gets."""
        assert self.raw is not None
        if self._before is None:
            self._before = self.raw.clone()
        for role, part in (("prompt", self.raw[: self.rows]), ("negative", self.raw[self.rows :])):
            if role in predicted:
                noise = predicted[role]  # type: ignore[index]
                moved = (noise if self.steps else self.x.float() - noise * self._scale).to(part)
                chosen = slice(None) if images is None else images
                part[chosen] = moved[chosen]
        self._predicted = None

    def undo(self) -> None:
        """Take back what ``put`` has written."""
        if self.raw is not None and self._before is not None:
            self.raw.copy_(self._before)

    def _noise(self, x: Tensor, predicted: Tensor) -> Tensor:
        """Return a prediction in units of epsilon."""
        return predicted.float() if self.steps else (x.float() - predicted.float()) / self._scale

    @property
    def _scale(self) -> Tensor:
        return self.sigma.float()[:1].reshape(-1, 1, 1, 1)

    @property
    def _unit(self) -> float:
        """What noise of unit variance is multiplied by in the sampler's latents."""
        if self.steps:
            return 1.0
        sigma = self.level.sigma
        return float((1 + sigma**2) ** 0.5) if shared.opts.sgm_noise_multiplier else sigma


ORDER: tuple[tuple[Role, str], ...] = (("prompt", "text"), ("negative", "reference"))  # where a role's text stands


def combined(noise: Tensor, parts: list[tuple[int, float]], uncond: Tensor) -> Tensor:
    """Return what an image's AND sub-prompts predict together, [C, h, w]: their mean by weight.

    Args:
        noise: predictions of all rows, [R, C, h, w].
        parts: row and weight of each sub-prompt.
        uncond: the image's prediction without the prompt, [C, h, w].

    """
    total = sum(weight for _, weight in parts)
    if len(parts) == 1 or total == 0:
        return noise[parts[0][0]]
    return uncond + sum(weight / total * (noise[row] - uncond) for row, weight in parts)
