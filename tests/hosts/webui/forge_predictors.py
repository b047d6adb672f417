"""Run by Forge's or Forge Neo's own Python, in its folder: what our adapter makes of each of the host's model classes.

Every engine of the host is begun with stand-ins for its weights, up to the place where it hands over its predictor. A
small network with that predictor is then called through the host's own sampling function. Prints lines of JSON.
"""

import inspect
import json
import os
import pkgutil
import sys
from importlib import import_module
from types import SimpleNamespace
from unittest.mock import MagicMock

sys.path[:0] = [os.getcwd(), os.environ["MEMGUARD_REPOSITORY"]]

from modules_forge.initialization import initialize_forge  # noqa: E402

initialize_forge()

from modules import shared_init  # noqa: E402

shared_init.initialize()

import backend.diffusion_engine as engines  # noqa: E402
import torch  # noqa: E402
from backend import args  # noqa: E402
from backend.diffusion_engine.base import ForgeDiffusionEngine  # noqa: E402
from backend.modules.k_model import KModel  # noqa: E402
from backend.sampling.condition import compile_conditions  # noqa: E402
from backend.sampling.sampling_function import sampling_function_inner  # noqa: E402

from memguard.detectors import text_noise_norm  # noqa: E402
from memguard.guard import Guard  # noqa: E402
from memguard.hosts import forge  # noqa: E402
from memguard.hosts.forge_call import Call  # noqa: E402


class HandedOver(Exception):
    """The engine has made its predictor."""


class Network(torch.nn.Module):
    """Predicts something that depends on picture and prompt."""

    storage_dtype = computation_dtype = dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, timesteps, context=None, **others):
        pull = context.mean((1, 2)).reshape(-1, 1, 1, 1)
        return 0.3 * x + pull * torch.tanh(x)


def predictor_of(engine):
    """Begin an engine; return the predictor that it makes, None where it leaves that to a scheduler of diffusers."""
    module = sys.modules[engine.__module__]

    def hand_over(*args, **named):
        raise HandedOver(named.get("k_predictor"))

    for name, value in list(vars(module).items()):
        made_here = inspect.isclass(value) and value.__module__ == module.__name__
        if inspect.isclass(value) and not (made_here or value is ForgeDiffusionEngine or "Predict" in name):
            setattr(module, name, MagicMock())
    module.UnetPatcher = SimpleNamespace(from_model=hand_over)
    config = MagicMock()  # Forge's loader names Chroma's engine itself
    if engine.matched_guesses:
        config = engine.matched_guesses[0]({"in_channels": 4})
        config.model_type = config.model_type({})  # as the hosts' loader does
    try:
        engine(config, MagicMock())
    except HandedOver as got:
        return got.args[0]
    raise RuntimeError(f"{engine.__name__} hands nothing over")


def measured(name, predictor, scheduler, level):
    """Return what our adapter makes of one call at a noise level, and the same computed by hand."""
    config = SimpleNamespace(memory_usage_factor=1.0)
    model = KModel(model=Network(), diffusers_scheduler=scheduler, k_predictor=predictor, config=config)
    kind, largest = model.predictor.prediction_type, float(model.predictor.sigma_max)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * largest
    sigma = torch.tensor([level * largest])
    prompt, other = torch.full((1, 3, 5), 0.7), torch.full((1, 3, 5), 0.2)
    seen = []

    def look(args):
        seen.append(Call(p, args, 5.0))
        return args["denoised"]

    p = SimpleNamespace(prompts=["a fox"], init_latent=None, is_hr_pass=False)
    sampling_function_inner(
        model,
        x,
        sigma,
        compile_conditions(other),
        compile_conditions(prompt),
        5.0,
        {"sampler_post_cfg_function": [look]},
    )
    run = Guard().begin(host="forge", steps=4, family="other")
    watch = forge.Watch.__new__(forge.Watch)
    found = watch._evidence(SimpleNamespace(run=run, read=lambda ask: {}), 0, seen[0], None)
    given = model.predictor.calculate_input(sigma, x)
    gap = model.diffusion_model(given, None, prompt) - model.diffusion_model(given, None, other)
    by_hand = gap / (float(sigma) ** 2 + 1) ** 0.5 if kind == "v_prediction" else gap
    return {
        "model": name,
        "kind": kind,
        "units": found.parameterization,
        "timestep": found.timestep,
        "sigma": [found.sigma, float(sigma), found.sigma_max, largest],
        "score": text_noise_norm.detect([found]).scores[0],
        "by_hand": float(by_hand.norm()),
        "unit_noise": [watch._unit(seen[0]), float(sigma)],
    }


def main():
    if hasattr(args.dynamic_args, "ops"):  # Neo writes there how a checkpoint's weights are stored
        args.dynamic_args.ops = "plain"
    found = []
    for kind in ("epsilon", "v_prediction"):
        config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
        scheduler = SimpleNamespace(config=SimpleNamespace(prediction_type=kind, num_train_timesteps=1000, **config))
        found.append(measured(kind, None, scheduler, 1.0))
        found.append(measured(kind, None, scheduler, 0.1))
    for each in pkgutil.iter_modules(engines.__path__):
        module = import_module(f"{engines.__name__}.{each.name}")
        own = [each for each in vars(module).values() if getattr(each, "__module__", "") == module.__name__]
        for engine in (each for each in own if inspect.isclass(each) and issubclass(each, ForgeDiffusionEngine)):
            predictor = None if engine is ForgeDiffusionEngine else predictor_of(engine)
            if predictor is not None:
                found += [measured(engine.__name__, predictor, None, level) for level in (1.0, 0.4)]
    engine = "text_processing_engine"
    kinds = {"sd15": [""], "sdxl": ["_l", "_g"], "sd3": ["_l", "_g", "_t5"], "flux": ["_l", "_t5"], "chroma": ["_t5"]}
    asked = {kind: SimpleNamespace(**{engine + end: end or "alone" for end in ends}) for kind, ends in kinds.items()}
    print("WORDS " + json.dumps({kind: forge.text_engine(each) for kind, each in asked.items()}))
    print("FOUND " + json.dumps(found))


with torch.inference_mode():
    main()
