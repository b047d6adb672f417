"""ComfyUI against the contract of every host: a tiny model and its CLIP, sampled by the KSampler node itself."""

import sys
from functools import cache
from itertools import count

import comfy.model_management
import comfy.utils
import pytest
import torch
from comfy_execution.graph import DynamicPrompt
from comfy_execution.progress import reset_progress_state
from comfy_execution.utils import CurrentNodeContext

import nodes
from memguard_pack.memguard.hosts.comfyui import treating, watcher
from memguard_pack.memguard.hosts.comfyui.watcher import Watcher
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.test_comfyui_explain import Clip, encode
from memguard_pack.tests.hosts.comfyui.test_comfyui_mitigation_errors import state
from memguard_pack.tests.hosts.contract import MEMGUARD, SIDE, HostContract
from memguard_pack.tests.hosts.contract_treated import TreatedContract

STEPS = 4
FACTOR = 8  # pixels per latent

_jobs = count()


@cache
def built(kind):
    """Return a model and its CLIP as nodes get them: of inference tensors."""
    with torch.inference_mode():
        return tiny.build(kind), Clip(kind)


def encoded(clip, prompts):
    """Return the CONDITIONING of a batch, a row per prompt: what nodes that schedule prompts over a batch give."""
    parts = [encode(clip, text)[0] for text in prompts]
    with torch.inference_mode():
        extra = {
            name: None if value is None else torch.cat([more[name] for _, more in parts])
            for name, value in parts[0][1].items()
        }
        return [[torch.cat([vectors for vectors, _ in parts]), extra]]


def workflow(prompts):
    """Return the graph of such a run, as the executor knows it."""
    texts = {f"text {i}": {"class_type": "CLIPTextEncode", "inputs": {"text": text}} for i, text in enumerate(prompts)}
    links = {f"conditioning_{i}": [node, 0] for i, node in enumerate(texts)}
    batch = {"prompts": {"class_type": "BatchOfPrompts", "inputs": links}}
    prompt = ["text 0", 0] if len(prompts) == 1 else ["prompts", 0]
    inputs = {"positive": prompt, "negative": ["negative", 0], "sampler_name": "euler"}
    return {
        **texts,
        **batch,
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"text": ""}},
        "sampler": {"class_type": "KSampler", "inputs": inputs},
    }


def progress(*_, **__):
    """What ComfyUI's main program does at each step, as far as it can end a run."""
    comfy.model_management.throw_exception_if_processing_interrupted()


class Comfy:
    """A model in ComfyUI; ``close`` it, since models are shared between tests.

    Args:
        kind: of model.

    """

    steps = STEPS

    def __init__(self, kind="sd15"):
        self.kind = kind
        self.model, self.clip = built(kind)
        self.negative = encode(self.clip, "")
        self.watchers = {}
        self.count, self.error, self.button, self.left = 0, None, None, 0
        self.padding = self.clip.tokenizer.clip_l.pad_token
        self._handle = self.model.model.diffusion_model.register_forward_pre_hook(self._before)
        comfy.utils.set_progress_bar_global_hook(progress)

    def close(self):
        self._handle.remove()
        comfy.utils.set_progress_bar_global_hook(None)
        comfy.model_management.interrupt_current_processing(False)

    def _before(self, _module, inputs):
        self.count += len(inputs[0])
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if self.button is not None:
            self.button -= 1
            if self.button < 0:
                self.button = None
                comfy.model_management.interrupt_current_processing()

    def watched(self, guard):
        """Return the model under the guard of a MemGuard node; a node that ran before keeps its watcher."""
        if id(guard) not in self.watchers:
            self.watchers[id(guard)] = Watcher(guard, self.negative, clip=self.clip, explain="never")
        return self.watchers[id(guard)].install(self.model)

    def sample(self, guard, prompts=("a red fox",), cfg=7.5, size=(SIDE, SIDE), seed=3):
        return self.run(self.model if guard is None else self.watched(guard), prompts, cfg, size, seed)

    def run(self, model, prompts=("a red fox",), cfg=7.5, size=(SIDE, SIDE), seed=3):
        """Sample with a model, as the executor runs a KSampler node: a prompt id of its own, in inference mode."""
        job, before = f"job {next(_jobs)}", state(model)
        image = {"samples": torch.zeros(len(prompts), tiny.CHANNELS.get(self.kind, 4), *size)}
        texts = encoded(self.clip, prompts), self.negative
        reset_progress_state(job, DynamicPrompt(workflow(prompts)))
        try:
            with CurrentNodeContext(job, "sampler"), torch.inference_mode():
                (made,) = nodes.KSampler().sample(model, seed, self.steps, cfg, "euler", "normal", *texts, image, 1.0)
                return made["samples"]
        finally:
            self.left += state(model) != before

    def noise(self, images, seed=3):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(images, tiny.CHANNELS.get(self.kind, 4), SIDE, SIDE, generator=generator)

    def rows(self):
        return self.count

    def hooks(self):
        modules = list(self.model.model.modules())
        hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)
        layers = sum("forward" in vars(module) for module in modules)
        wrappers = sum(len(each) for by_key in self.model.wrappers.values() for each in by_key.values())
        callbacks = sum(len(each) for by_key in self.model.callbacks.values() for each in by_key.values())
        patches = len(self.model.patches) + len(self.model.object_patches) + str(self.model.model_options).count("mem")
        host = [vars(module) for name, module in list(sys.modules.items()) if name.startswith("comfy.")]
        replaced = sum(
            str(getattr(found, "__module__", "")).startswith(MEMGUARD) for own in host for found in own.values()
        )
        running = len(watcher._running.get()) + len(treating._running.get())
        padded = self.clip.tokenizer.clip_l.pad_token != self.padding
        # ``left`` counts the runs after which the watched clone was not what the node had made of it
        return hooks + layers + wrappers + callbacks + patches + replaced + running + padded + self.left

    def break_model(self, error):
        self.error = error

    def interrupt(self, call):
        self.button = call

    def score(self, prompt, size=(SIDE, SIDE)):
        image = torch.zeros(1, tiny.CHANNELS.get(self.kind, 4), *size)
        x, sigma = tiny.start(self.model, image, seed=3)
        with torch.inference_mode():
            return float(tiny.gap(self.model, encode(self.clip, prompt), self.negative, x, sigma).norm())


@pytest.fixture
def comfy_host():
    """A function that returns a host of one kind of model."""
    hosts = []

    def make(kind="sd15", cls=Comfy):
        hosts.append(cls(kind))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


class TestContract(HostContract):
    @pytest.fixture(params=["sd15", "sdxl"])
    def host(self, request, comfy_host):
        return comfy_host(request.param)


class TestTreated(TreatedContract):
    @pytest.fixture(params=["sd15", "sdxl"])
    def host(self, request, comfy_host):
        return comfy_host(request.param)
