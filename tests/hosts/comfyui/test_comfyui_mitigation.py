"""Policy mitigate in the real ComfyUI: ordinary runs untouched, flagged ones changed and reported, nothing left."""

import comfy.model_management
import comfy.samplers
import pytest
import torch

from memguard_pack.memguard import mitigations
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.scene import Scene, made


@pytest.fixture
def scene(monkeypatch):
    return lambda **settings: Scene(monkeypatch, **settings)


@pytest.mark.parametrize("name", mitigations.available())
def test_strength_0_installs_nothing_and_changes_no_bit(name, scene):
    here = scene()
    treated = here.treated(made(name, strength=0.0))
    assert treated.wrappers == here.model.wrappers
    watched, watcher = here.watched(made(name, strength=0.0))
    plain, seen = here.sample(), here.sample(watched)
    assert torch.equal(plain, here.sample(treated)) and torch.equal(plain, seen)
    assert watcher.report_of(seen).attempts[0].changes == () and watcher.report_of(seen).extra_rows == 0


@pytest.mark.parametrize("name", [*mitigations.available(), "auto"])
def test_an_ordinary_run_is_untouched(name, scene, rows):
    here = scene()
    with rows(here.model) as free:
        plain = here.sample(image=tiny.latent(batch=2))
    watched, watcher = here.watched("auto" if name == "auto" else made(name), rms=10.0)
    with rows(here.model) as spent:
        seen = here.sample(watched, image=tiny.latent(batch=2))
    assert torch.equal(plain, seen) and spent == free
    report = watcher.report_of(seen)
    assert report.verdict == "ordinary" and report.attempts == () and report.extra_rows == 0 and report.error is None


@pytest.mark.parametrize("name", mitigations.available())
def test_a_flagged_run_is_changed_like_one_that_is_treated_anyway(name, scene, rows):
    here = scene()
    with rows(here.model) as free:
        plain = here.sample()
    watched, watcher = here.watched(made(name))
    with rows(here.model) as spent:
        seen = here.sample(watched)
    report = watcher.report_of(seen)
    (attempt,) = report.attempts
    assert report.error is None and attempt.kept and report.actions == attempt.changes[: len(report.actions)] != ()
    assert "was left out" not in attempt.changes[0]
    assert torch.isfinite(seen).all() and not torch.equal(plain, seen)
    assert sum(spent) - sum(free) == report.extra_rows
    ungated = here.sample(here.treated(made(name)))
    if name == "local_guidance":  # a guard's profile sets its limit
        assert not torch.equal(plain, ungated)
    else:
        assert (seen - ungated).abs().max() < 1e-3 * (seen - plain).abs().max()


def test_auto_escalates_and_reports_each_attempt(scene, monkeypatch):
    monkeypatch.setattr("memguard_pack.memguard.mitigations.auto.ITERATIONS", 2)
    here = scene(keep=False)
    watched, watcher = here.watched("auto")
    report = watcher.report_of(here.sample(watched))
    names = [attempt.mitigation for attempt in report.attempts]
    assert names == ["Padding + Guidance delay", "Noise adjustment", "Prompt optimisation"]
    assert report.error is None and report.scores_before == report.findings[0].scores
    assert all(attempt.scores for attempt in report.attempts)


# --- other noise: the sampler starts once more ---------------------------------------------------------------------


@pytest.fixture
def adopted(monkeypatch):
    """The treatments that runs went on with."""
    from memguard_pack.memguard.hosts.comfyui.steering import Steering

    found, adopt = [], Steering.adopt
    monkeypatch.setattr(Steering, "adopt", lambda self, t, *rest: (found.append(t), adopt(self, t, *rest))[1])
    return found


NOISE = {"rounds": 1, "until": 1000.0}  # no other guidance


@pytest.mark.parametrize("name", comfy.samplers.SAMPLER_NAMES)
def test_every_sampler_starts_from_the_adjusted_noise(name, scene, rows, adopted):
    here = scene()
    watched, watcher = here.watched(made("noise_adjustment", **NOISE))
    with rows(here.model) as spent:
        seen = here.sample(watched, sampler=name, steps=2)
    (treatment,) = adopted
    with torch.inference_mode(), rows(here.model) as free:
        plain = comfy.sample.sample(
            here.model, treatment.noise, 2, 7.5, name, "normal", here.positive, here.negative, here.latent(),
            seed=5, disable_pbar=True,
        )  # fmt: skip
    assert torch.equal(plain, seen)
    report = watcher.report_of(seen)
    assert sum(spent) == sum(free) + report.extra_rows and report.error is None
    assert report.attempts[0].scores == report.scores_after != report.scores_before


def test_the_adjusted_noise_is_that_of_the_formula(scene, adopted):
    here = scene()
    image = torch.zeros((2, 4, 8, 8))
    here.sample(here.treated(made("noise_adjustment", rounds=2)), image=image)
    x = comfy.sample.prepare_noise(image, 5)
    sigma = float(here.model.model.model_sampling.sigma_max)

    def gap(noise):
        return tiny.gap(here.model, here.positive, here.negative, noise * (1 + sigma**2) ** 0.5, sigma)

    with torch.inference_mode():
        for _ in range(2):
            first = gap(x)
            unit = first / first.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
            x = x - 0.7 * (gap(x + 50 * (256 / 16384) ** 0.5 * unit) - first)
    assert torch.allclose(adopted[0].noise, x, atol=1e-4)


def test_a_picture_to_start_from_has_a_reason(scene):
    here = scene()
    picture = torch.randn((1, 4, 8, 8), generator=torch.manual_seed(8))
    watched, watcher = here.watched(made("noise_adjustment"))
    plain = here.sample(image=picture, denoise=0.5, steps=6)
    seen = here.sample(watched, image=picture, denoise=0.5, steps=6)
    report = watcher.report_of(seen)
    assert torch.equal(plain, seen)
    assert report.attempts == () or "not from pure noise" in report.attempts[0].changes[0]
