"""Evidence with a known score, and a profile store that never sees the user's own profiles."""

import hypothesis
import pytest
import torch

from memguard.calibration import Conditions, Profile, fit, store
from memguard.records import StepEvidence
from tests.spread import spread

MODEL = "00000000cafe0001"

# no deadline: a busy machine must not fail a property; the same examples every time
hypothesis.settings.register_profile("memguard", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("memguard")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty MEMGUARD_HOME and no folder registered by a host."""
    monkeypatch.setenv("MEMGUARD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store, "_registered", [])
    return tmp_path / "home"


@pytest.fixture
def step():
    """A function that builds the evidence of one model call whose noise gap has the given RMS per image."""

    def build(*rms: float, index: int = 0, latent: tuple[int, int] = (8, 8), **changes) -> StepEvidence:
        gap = torch.tensor(rms or (0.01,)).reshape(-1, 1, 1, 1).expand(-1, 4, *latent)
        uncond = torch.linspace(-1, 1, gap.numel()).reshape(gap.shape)
        facts = {"step": index, "num_steps": 20, "sigma": 14.6, "sigma_max": 14.6, "timestep": 999.0}
        return StepEvidence(**{**facts, "noise_cond": uncond + gap, "noise_uncond": uncond, **changes})

    return build


@pytest.fixture
def profile():
    """A function that builds a profile in which ordinary prompts score 0.01, give or take a factor exp(0.2)."""

    def build(count: int = 320, **changes) -> Profile:
        conditions = {
            "model": MODEL,
            "family": "sd15",
            "latent": (8, 8),
            "sigma": 14.6,
            "timestep": 999.0,
            "steps_scored": 1,
            "num_steps": 20,
            "scheduler": "euler",
            "reference": "negative",
            "dtype": "float32",
            "guidance_scale": 7.5,
        }
        scores = fit(spread(0.01, 0.2, count))
        return Profile(Conditions(**{**conditions, **changes}), {"text_noise_norm": scores})

    return build
