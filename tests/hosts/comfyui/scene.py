"""A tiny model with its CLIP for tests of mitigations: sampled plainly, under policy mitigate, or treated by a node."""

from dataclasses import replace
from functools import cache

import torch

from memguard_pack.memguard import Guard, loop, mitigations
from memguard_pack.memguard.hosts.comfyui import graph
from memguard_pack.memguard.hosts.comfyui.treating import Treater
from memguard_pack.memguard.hosts.comfyui.watcher import Watcher
from memguard_pack.memguard.mitigations.edit import NOWHERE
from memguard_pack.memguard.mitigations.neuron_mask import Mask, NeuronMask
from memguard_pack.memguard.records import NeuronSet
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.test_comfyui_explain import PROMPT, Clip, encode
from memguard_pack.tests.hosts.comfyui.test_comfyui_words import profile

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
SETTINGS = {
    "neuron_mask": {"neurons": NeuronSet({LAYER: (0, 3, 5)})},
    "paraphrase": {"text": "a crimson fox above a house", "lower": 1e-6, "upper": 2e-6},
    "noise_adjustment": {"rounds": 1},
    "prompt_optimization": {"iterations": 2},
}


def made(name, **more):
    """Return a mitigation with settings that act on tiny models."""
    return mitigations.get(name, **(SETTINGS.get(name, {}) | more))


@cache
def built(kind):
    """Return a model, its CLIP and an empty prompt, as nodes get them: inference tensors."""
    with torch.inference_mode():
        clip = Clip(kind)
        return tiny.build(kind), clip, encode(clip, "")


class Scene:
    """What one test samples.

    Args:
        monkeypatch: of the test; the workflow's texts and the bar for keeping an attempt are set with it.
        kind: of model.
        keep: whether every attempt is kept, helpful or not: random weights memorize nothing.

    """

    def __init__(self, monkeypatch, kind="sd15", keep=True, texts=(PROMPT,)):
        self.kind = kind
        self.model, self.clip, self.negative = built(kind)
        self.positive = encode(self.clip)
        monkeypatch.setattr(graph, "prompt_texts", lambda *_: list(texts))
        monkeypatch.setattr(NeuronMask, "_treat", _masked)  # tiny models have no set of their own
        if keep:
            monkeypatch.setattr(loop, "helped", lambda *_: True)

    def latent(self, batch=1):
        return tiny.latent(self.kind, batch)

    def sample(self, model=None, positive=None, negative=None, image=None, **more):
        with torch.inference_mode():
            return tiny.sample(
                self.model if model is None else model,
                self.positive if positive is None else positive,
                self.negative if negative is None else negative,
                self.latent() if image is None else image,
                **more,
            )

    def guide(self, cls, conds, cfg, model=None, image=None):
        with torch.inference_mode():
            guider = cls(self.model if model is None else model)
            guider.set_conds(*conds)
            if cfg is not None:
                guider.set_cfg(*cfg)
            return tiny.guide(guider, self.latent() if image is None else image)

    def watched(self, mitigation, rms=1e-7, model=None, clip=True, **settings):
        """Return a model under policy mitigate, and its watcher; ordinary prompts score about ``rms``."""
        known = profile(self.model, rms)
        conditions = replace(known.conditions, reference=settings.get("reference", "negative"))
        settings = {
            "policy": "mitigate",
            "mitigation": mitigation,
            "profile": replace(known, conditions=conditions),
        } | settings
        watcher = Watcher(Guard(**settings), clip=self.clip if clip else None, explain="never")
        return watcher.install(self.model if model is None else model), watcher

    def treated(self, mitigation, model=None, clip=True):
        return Treater(mitigation, self.clip if clip else None).install(self.model if model is None else model)


def _masked(self, start, before):
    if not start.widths:
        raise mitigations.Unsuitable(NOWHERE)
    first = {next(iter(start.widths)): (0, 3, 5)}
    factor = 1 - self.strength
    return replace(before, edits=(*before.edits, Mask(first, factor))).note(f"neurons x {factor:g}")
