"""Every sampler and every kind of model: a watched run costs no row, changes no value, and scores what it should."""

import comfy.samplers
import pytest
import torch

from memguard_pack.tests.hosts.comfyui import tiny

SD15 = tiny.build("sd15")


def both_ways(model, watched, *args, **more):
    return tiny.sample(model, *args, **more), tiny.sample(watched, *args, **more)


@pytest.mark.parametrize("name", comfy.samplers.SAMPLER_NAMES)
def test_every_sampler(name, watch, rows):
    positive, negative, image = tiny.prompt(seed=1), tiny.prompt(seed=2), tiny.latent()
    watched, watcher = watch(SD15)
    with rows(SD15) as free:
        plain = tiny.sample(SD15, positive, negative, image, sampler=name, steps=4)
    with rows(SD15) as guarded:
        seen = tiny.sample(watched, positive, negative, image, sampler=name, steps=4)
    assert torch.equal(plain, seen)
    assert guarded == free
    finding = watcher.report_of(seen).findings[0]
    x, sigma = tiny.start(SD15, image)
    assert finding.scores == pytest.approx(tiny.norms(tiny.gap(SD15, positive, negative, x, sigma)), rel=1e-5)
    assert finding.sigma == pytest.approx(14.6146, abs=1e-3)


@pytest.mark.parametrize("name", comfy.samplers.SCHEDULER_NAMES)
def test_every_scheduler_is_scored_at_its_own_first_sigma(name, watch):
    positive, negative, image = tiny.prompt(seed=1), tiny.prompt(seed=2), tiny.latent()
    watched, watcher = watch(SD15)
    plain, seen = both_ways(SD15, watched, positive, negative, image, scheduler=name)
    assert torch.equal(plain, seen)
    finding = watcher.report_of(seen).findings[0]
    sigma = float(comfy.samplers.calculate_sigmas(SD15.model.model_sampling, name, 3)[0])
    assert finding.sigma == pytest.approx(sigma)
    assert "not from pure noise" not in finding.threshold_source
    x, sigma_max = tiny.start(SD15, image)
    if sigma < sigma_max * (1 - 1e-5):  # ddim_uniform starts lower, and ComfyUI then scales the noise by sigma alone
        x = x / (1 + sigma_max**2) ** 0.5 * sigma
    expected = tiny.norms(tiny.gap(SD15, positive, negative, x, sigma))
    assert finding.scores == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["sd15", "vpred", "sdxl", "sd3", "flux"])
def test_every_kind_of_model(kind, watch, rows):
    model = tiny.build(kind)
    positive, negative, image = tiny.prompt(kind, 1), tiny.prompt(kind, 2), tiny.latent(kind, batch=2)
    watched, watcher = watch(model)
    with rows(model) as free:
        plain = tiny.sample(model, positive, negative, image, cfg=4.0)
    with rows(model) as guarded:
        seen = tiny.sample(watched, positive, negative, image, cfg=4.0)
    assert torch.equal(plain, seen) and guarded == free
    report = watcher.report_of(seen)
    x, sigma = tiny.start(model, image)
    expected = tiny.norms(tiny.gap(model, positive, negative, x, sigma))
    assert report.findings[0].scores == pytest.approx(expected, rel=1e-4)
    assert report.family == {"vpred": "sd15"}.get(kind, kind)
    assert report.findings[0].timestep == (None if kind in ("sd3", "flux") else pytest.approx(999, abs=1))


@pytest.mark.parametrize("steps", [1, 3])
def test_later_steps_are_scored_where_the_sampler_is(steps, watch):
    positive, negative = tiny.prompt(seed=1), tiny.prompt(seed=2)
    watched, watcher = watch(SD15, steps=steps)
    visited = []

    def see(state):
        visited.append((state["input"].clone(), float(state["sigma"][0])))
        return state["denoised"]

    watched.set_model_sampler_post_cfg_function(see)
    seen = tiny.sample(watched, positive, negative, tiny.latent(), steps=5)
    finding = watcher.report_of(seen).findings[0]
    expected = [tiny.norms(tiny.gap(SD15, positive, negative, x, sigma)) for x, sigma in visited[:steps]]
    assert [list(step) for step in finding.per_step] == [pytest.approx(step, rel=1e-4) for step in expected]


@pytest.mark.parametrize("lengths", [(7, 7), (7, 14), (7, 40)])
@pytest.mark.parametrize("batched", [True, False])
def test_prompts_of_any_length_batched_or_not(lengths, batched, watch, monkeypatch):
    if not batched:

        def none_free(device=None, torch_free_too=False):
            return (0, 0) if torch_free_too else 0

        monkeypatch.setattr("comfy.model_management.get_free_memory", none_free)
    positive, negative = tiny.prompt(seed=1, tokens=lengths[0]), tiny.prompt(seed=2, tokens=lengths[1])
    watched, watcher = watch(SD15)
    plain, seen = both_ways(SD15, watched, positive, negative, tiny.latent(batch=3))
    assert torch.equal(plain, seen)
    x, sigma = tiny.start(SD15, tiny.latent(batch=3))
    expected = tiny.norms(tiny.gap(SD15, positive, negative, x, sigma))
    assert watcher.report_of(seen).findings[0].scores == pytest.approx(expected, rel=1e-4)
