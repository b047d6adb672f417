"""A model of a few lines whose memory sits in known neurons: its prediction is a picture that they gate, and noise."""

from __future__ import annotations

from contextlib import contextmanager

import torch
import torch.nn.functional as F

from memguard.neurons.activations import ActivationStatistics
from memguard.neurons.probe import NoGradient, Rows

LAYERS = {"down_blocks.0.attn2": 40, "down_blocks.1.attn2": 60, "mid_block.attn2": 60}
PLANTED = {("down_blocks.1.attn2", 3), ("mid_block.attn2", 7), ("mid_block.attn2", 11)}


class ToyProbe:
    """All planted neurons must be blocked for the picture to go; every other neuron adds a little."""

    model = "00000000cafe0001"

    def __init__(self, images: int = 6, side: int = 16, planted=PLANTED, memory: float = 6.0, quantised: bool = False):
        drawn = torch.Generator().manual_seed(0)
        self.layers, self.rows = dict(LAYERS), Rows()
        self.x = torch.randn(images, 2, side, side, generator=drawn)
        coarse = torch.randn(1, 2, side // 4, side // 4, generator=drawn)
        self.picture = memory * F.interpolate(coarse, scale_factor=4, mode="bilinear")
        self.clutter = {n: torch.randn(w, 2, side, side, generator=drawn) for n, w in self.layers.items()}
        self.planted = {n: [i for name, i in sorted(planted) if name == n] for n in self.layers}
        self.z = {n: 8 * torch.rand(w, generator=drawn) for n, w in self.layers.items()}
        for name, index in planted:
            self.z[name][index] = 2.6
        self.quantised, self.gates, self.calls = quantised, {}, []

    @property
    def statistics(self) -> ActivationStatistics:
        mean = {n: torch.ones(w) for n, w in self.layers.items()}
        return ActivationStatistics(mean, {n: 0.1 * m for n, m in mean.items()}, 100, self.model)

    def start(self, parity=None):
        return self.x, 961.0 if parity else 981.0

    def activations(self):
        return {n: 1 + 0.1 * z for n, z in self.z.items()}

    def noise(self, x, t, masks):
        self.calls.append(len(x))
        self.rows.forward += len(x)
        found, share = x + 0.3 * F.avg_pool2d(x, 3, 1, 1), 0.0
        for name, width in self.layers.items():
            gate = masks.get(name, torch.ones(len(x), width)) * self.gates.get(name, 1.0)
            found = found + 0.002 * torch.einsum("rw,wchk->rchk", gate, self.clutter[name])
            share = share + gate[:, self.planted[name]].sum(1)
        return found + share[:, None, None, None] / sum(map(len, self.planted.values())) * self.picture

    @contextmanager
    def gradients(self, gates):
        if self.quantised:
            raise NoGradient("the weights are quantised (a.weight is float8_e4m3fn)")
        self.gates = gates
        try:
            yield 2
        finally:
            self.gates = {}
