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


def test_auto_escalates_and_reports_each_attempt(scene):
    here = scene(keep=False)
    watched, watcher = here.watched("auto")
    report = watcher.report_of(here.sample(watched))
    names = [attempt.mitigation for attempt in report.attempts]
    assert names == ["Padding + Guidance delay", "Noise adjustment", "Prompt optimisation"]
    assert report.error is None and report.scores_before == report.findings[0].scores
    assert all(attempt.scores for attempt in report.attempts)
