"""How strongly value neurons respond to ordinary prompts: mean and unbiased standard deviation of |to_v(prompt)|.

|to_v| is averaged over the tokens of a prompt first (NeMo, section 3.2). It depends on the text alone, so no UNet
pass is needed. The official statistics are of 50 000 LAION captions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..troubles import Refused
from . import tensors

KIND = "memguard-activation-statistics"
SCHEMA = 1
PROJECTION = ".to_v"


@dataclass(frozen=True)
class ActivationStatistics:
    """What ordinary prompts do to the neurons of a model.

    Attributes:
        mean: layer -> float32 [width]; layers may be given by the name of their to_v, as NeMo's scripts name them.
        std: layer -> float32 [width], unbiased.
        count: number of prompts; 0 where it is not known, as of statistics that NeMo's scripts made.
        model: fingerprint of the checkpoint.

    """

    mean: dict[str, Tensor]
    std: dict[str, Tensor]
    count: int = 0
    model: str = ""

    def __post_init__(self) -> None:
        for kind in ("mean", "std"):
            values = getattr(self, kind)
            object.__setattr__(self, kind, {name.removesuffix(PROJECTION): each for name, each in values.items()})

    def zscores(self, activations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return |a - mean| / std per layer of ``activations``, float32; NaN where both are 0."""
        return {name: (a.float() - self.mean[name]).abs() / self.std[name] for name, a in activations.items()}

    def check(self, layers: Mapping[str, int], model: str) -> None:
        """Raise ValueError unless the statistics are of this model and hold these layers."""
        if self.model and model and self.model != model:
            raise Refused(
                f"the statistics are of model {self.model}, and this is model {model}; compute them on this model"
            )
        for name, width in layers.items():
            held = len(self.mean[name]) if name in self.mean else None
            if held != width:
                has = f"{held} neurons" if held is not None else "nothing"
                raise Refused(
                    f"the statistics hold {has} for {name}, and the model has {width} neurons there;"
                    " compute them on this model with the same layers"
                )

    def save(self, path: Path | str) -> Path:
        """Write a safetensors file."""
        values = {f"{kind}.{name}": t for kind in ("mean", "std") for name, t in getattr(self, kind).items()}
        facts = {"count": self.count, "model": self.model, "layers": list(self.mean)}
        return tensors.write(path, KIND, SCHEMA, values, facts)

    @classmethod
    def load(cls, path: Path | str) -> ActivationStatistics:
        """Read what ``save`` wrote.

        Raises:
            ValueError: if the file is not one of these.

        """
        values, facts = tensors.read(path, KIND, SCHEMA)
        try:
            mean, std = ({name: values[f"{kind}.{name}"] for name in facts["layers"]} for kind in ("mean", "std"))
            if not all(t.ndim == 1 and t.is_floating_point() for t in (*mean.values(), *std.values())):
                raise ValueError
            return cls(mean, std, int(facts["count"]), str(facts["model"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise Refused(f"{path}: the file is incomplete; compute the statistics again") from None


class Tally:
    """Adds prompts up, one by one, in float64 (Welford's recurrence); memory does not grow with their number."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}

    def add(self, activations: Mapping[str, Tensor]) -> None:
        """Add the activations of one prompt, layer -> [width].

        Raises:
            ValueError: if they hold NaN or infinity.

        """
        if not all(bool(torch.isfinite(a).all()) for a in activations.values()):
            raise Refused("the activations hold NaN or infinity; run the text encoder in float32")
        self.count += 1
        for name, a in activations.items():
            value = a.detach().double().cpu()
            if name not in self._mean:
                self._mean[name], self._squares[name] = torch.zeros_like(value), torch.zeros_like(value)
            before = value - self._mean[name]
            self._mean[name] += before / self.count
            self._squares[name] += before * (value - self._mean[name])

    def result(self, model: str = "") -> ActivationStatistics:
        """Return the statistics.

        Raises:
            ValueError: for fewer than two prompts, which have no spread.

        """
        if self.count < 2:
            raise Refused(f"statistics of {self.count} prompts: give at least 2, better some thousands")
        mean = {name: m.float() for name, m in self._mean.items()}
        std = {name: (s.clamp(min=0) / (self.count - 1)).sqrt().float() for name, s in self._squares.items()}
        assert all(math.isfinite(float(s.sum())) for s in std.values())
        return ActivationStatistics(mean, std, self.count, model)
