"""A host in one file, with all that a host must give: a network that adds up its text, a sampler of Euler's steps."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from memguard.attributions.moment import Encoded
from memguard.host import Level
from memguard.layout import Layout
from memguard.mitigations.edit import Plan
from memguard.sampling import Sampling, treated, unscored

WORDS = {"": 0.0, "a fox": 0.02, "a famous fox": 6.0}
LAYER, SIGMA = "down_blocks.0.attn2", 14.6


class Toy:
    """A network that adds what one layer of cross-attention makes of its text, on a ramp over the latents."""

    widths = {LAYER: 2}

    def __init__(self):
        self.rows, self.edits, self.effect = 0, (), None

    def __call__(self, x, prompt):
        self.rows += len(x)
        plan = Plan(self.edits, torch.ones(len(x), dtype=torch.bool), None, effect=self.effect)
        q = torch.zeros(len(x), 1, 2)
        found = plan.attend(LAYER, 1, 1.0, q, prompt.text, prompt.text, lambda q, k, v, *_: v.mean(1))
        return 0.1 * x / SIGMA + found.sum(1).reshape(-1, 1, 1, 1) * torch.linspace(0, 1, 64).reshape(8, 8)

    @contextmanager
    def following(self, edits, call, effect=None):
        before, self.edits, self.effect = (self.edits, self.effect), edits, effect
        try:
            yield
        finally:
            self.edits, self.effect = before

    gradients = staticmethod(torch.enable_grad)


class Texts:
    def __init__(self, *texts):
        self.known = texts

    def eos_padded(self, width):
        return width

    def table(self, columns):
        return None

    def encode(self, texts, padding=None):
        return Encoded(torch.tensor([[[WORDS[text], 0.0]] for text in texts]))

    def word(self, number):
        return None


class Call:
    """memguard.host.Call of the toy."""

    coverage, why = None, "nothing was predicted without the prompt"
    layout = Layout()

    def __init__(self, network, x, given, scale=7.5, guided=True, effect=None):
        self.network, self.x, self.given, self.scale, self.noise = network, x, given, scale, x / SIGMA
        self.level = Level(SIGMA, SIGMA, 999.0, full_noise=True)
        self.predicted = {
            role: network(x, given[role]) for role in ("prompt", "negative") if guided or role == "prompt"
        }
        self.own = self.predicted

    def latents(self, noise, images=None):
        moved = SIGMA * noise
        return moved if images is None else self.x.index_copy(0, images, moved[images])

    def predict(self, role, prompt, x):
        return self.network(x, prompt)

    def exchange(self, given):
        self.given = given

    def put(self, predicted, images=None):
        kept = dict(self.predicted)
        for role, other in predicted.items():
            kept[role] = other if images is None else kept[role].index_copy(0, images, other[images])
        self.predicted = kept

    def undo(self):
        self.predicted = self.own


def sample(guard, prompts, steps=4, negative=""):
    """Return the latents of one watched run of the toy, its report, and the rows that the network computed."""
    network, texts = Toy(), Texts(*prompts)
    run = guard.begin(host="toy", model="00000000cafe0001", family="sd15", steps=steps, sampler="euler", cfg=7.5)
    given = {"prompt": texts.encode(prompts), "negative": texts.encode(len(prompts) * [negative])}
    driver = Sampling(run, network, texts, texts.encode([""]) if guard.reference == "empty" else None)
    x = SIGMA * torch.randn(len(prompts), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    numbers, effect = given["prompt"].prompts(), None
    for number in range(steps):
        call = Call(network, x, given, effect=effect)
        if run.wants(number):
            why = unscored(call, driver.empty)
            run.unavailable(why) if why else run.observe(driver.evidence(call, number, numbers if any(numbers) else ()))
        if run.to_mitigate:
            treatment, made = driver.first(call)
            effect = run.carry(treatment)
            if treatment.noise is not None:
                raise NotImplementedError("the toy starts from its own noise")
            given = treated(given, treatment, effect)
            call.exchange(given)
            if made is not None:
                effect.join(made.effect)
                call.put(made.predicted, treatment.images)
        if effect is not None and effect.treatment.guidance:
            changed = driver.guided(call, number, effect)
            if changed is not None:
                call.put({"prompt": changed}, effect.treatment.images)
                effect.written()
        cond, uncond = call.predicted["prompt"], call.predicted["negative"]
        x = x - SIGMA / steps * (uncond + 7.5 * (cond - uncond))
    return x, run.finish(), network.rows
