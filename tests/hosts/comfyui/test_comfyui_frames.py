"""Latents that are no pictures: scores, maps, word weights against differences, local guidance against its formula."""

import math
from dataclasses import replace

import node_helpers
import pytest
import torch

from memguard_pack.memguard import Guard, loop
from memguard_pack.memguard.hosts.comfyui import explaining, latents, preflight, weighing
from memguard_pack.memguard.hosts.comfyui.treating import Treater
from memguard_pack.memguard.hosts.comfyui.watcher import Watcher
from memguard_pack.tests.hosts.comfyui import kinds, tiny
from memguard_pack.tests.hosts.comfyui.kinds import build
from memguard_pack.tests.hosts.comfyui.scene import made
from memguard_pack.tests.hosts.comfyui.test_comfyui_words import profile

KINDS = kinds.ONE_FRAME | kinds.VIDEOS | kinds.SOUND | kinds.PACKED
METHODS = ("gradient", "ablation", "attention")
EVERY = {
    f"{name} {number}": (name, kind)
    for number, group in enumerate((KINDS, kinds.READ_FIRST, kinds.ONE_ROW))
    for name, kind in group.items()
}


@pytest.fixture(params=KINDS)
def kind(request):
    """A class of ComfyUI's and its settings."""
    return request.param, KINDS[request.param]


@pytest.fixture
def picture(kind, monkeypatch):
    """A model, its CLIP, prompt, negative prompt and latent."""
    return build(*kind, monkeypatch)


def gap_of(call):
    """Return the noise gap of a call, in the sampler's own tensors."""
    _, sigma, cond, uncond = call
    return (uncond - cond) / sigma


def streams(values, shapes):
    """Return latents, one after the other in [1, 1, n] or alone, in shapes of their own."""
    counts = [math.prod(shape) for shape in shapes]
    return [part.reshape(1, *shape) for part, shape in zip(values.flatten().split(counts), shapes, strict=True)]


def check_weights(picture, monkeypatch, before=True):
    """Compare the words' weights with how far the score moves when their columns are moved.

    ``before``: whether columns that a model adds stand before those of the prompt.
    """
    model, clip, positive, negative, image = picture
    taken = []
    take = weighing._gradient
    monkeypatch.setattr(weighing, "_gradient", lambda *asked: (taken.append(take(*asked)), taken[-1])[1])
    with torch.inference_mode():
        latent = {"samples": image}
        found = explaining.explain(
            model, clip, kinds.PROMPT, negative, latent, 5, respect_to="encoded", positive=positive
        )
        assert found.status == "ok" and found.method == "gradient" and found.notes == ()

        def score(shift):
            moved = [[positive[0][0] + shift, positive[0][1]]]
            return preflight.check(Guard(), model, moved, negative, latent, [5]).findings[0].score

        count, columns = positive[0][0].shape[1], slice(1, 4)  # the words
        (gradient, _) = taken[0]
        gradient = gradient[:, -count:] if before else gradient[:, :count]
        along = torch.zeros_like(positive[0][0])
        along[:, columns] = gradient[:, columns]
        along /= along.norm()
        step = 0.003 * found.score / float(gradient[:, columns].norm())  # the score moves by about this share of it
        slope = (score(step * along) - score(-step * along)) / (2 * step)
    assert found.score == pytest.approx(score(0 * along), rel=1e-4)
    assert slope == pytest.approx(float((gradient[0] * along[0]).sum()), rel=0.03)
    assert [weight for _, weight in found.words] == pytest.approx(
        [float(gradient[0, column].norm()) for column in (1, 2, 3)], rel=1e-4
    )


def test_word_weights_are_the_finite_differences(picture, kind, monkeypatch):
    check_weights(picture, monkeypatch, before=kind[0] != "StableAudio")


def test_a_score_is_of_the_tensors_as_they_are_and_a_map_of_the_first_ones(picture, kind):
    model, clip, positive, negative, image = picture
    shapes = kind[1][1]
    with torch.inference_mode():
        gap = gap_of(first := kinds.first(model, positive, negative, image))
        settings = {"steps": 2, "scheduler": "simple"}
        plain = tiny.sample(model, positive, negative, image, **settings)
        watcher = Watcher(Guard(), clip=clip, explain="always")
        made = tiny.sample(watcher.install(model), positive, negative, image, **settings)
    assert first[0].shape == gap.shape
    assert latents.fingerprint(made) == latents.fingerprint(plain)
    report, finding = watcher.guard.report, watcher.guard.report.findings[0]
    assert report.error is None and report.attribution.status == "ok" and any(report.attribution.weights)
    assert finding.scores == (pytest.approx(float(gap.norm()), rel=1e-4),)
    assert finding.rms == (pytest.approx(float(gap.norm()) / math.sqrt(gap.numel()), rel=1e-4),)
    assert watcher.report_of(made).run == report.run
    channels, *rest = shapes[0]
    height, width = math.prod(rest[:-1]), rest[-1]  # frames one below the other, sound as one row
    assert report.noise_gap_map.shape == (1, height, width)
    assert latents.store.maps_of(report.run).latent.shape == (1, *shapes[0])
    ratio = getattr(model.model.latent_format, "spacial_downscale_ratio", 8)
    size = (None, None) if len(shapes[0]) == 2 else tuple(ratio * side for side in shapes[0][-2:])
    assert (report.height, report.width) == size


def test_the_map_of_a_scored_call(picture, kind):
    model, _, positive, negative, image = picture
    shapes = kind[1][1]
    with torch.inference_mode():
        gap = gap_of(kinds.first(model, positive, negative, image, denoise=1.0))
        report = preflight.check(Guard(), model, positive, negative, {"samples": image}, [5])
    squares = streams(gap, shapes)[0][0].square().mean(0)
    rounding = 5e-3  # at the sigma of 500 that Stable Audio starts with
    assert torch.allclose(report.noise_gap_map[0], squares.reshape(-1, squares.shape[-1]), rtol=rounding, atol=1e-9)


def limited(gap):
    """Return a gap [C, ..., h, w] under local guidance at its first call, written out frame by frame."""
    rms = gap.square().mean(0).sqrt()
    frames = rms.reshape(-1, *rms.shape[-2:]) if rms.ndim > 1 else rms.reshape(1, 1, -1)
    smooth = torch.empty_like(frames)
    for t, frame in enumerate(frames):
        height, width = frame.shape
        for y in range(height):
            for x in range(width):
                near = [
                    frame[min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
                    for dy in (-1, 0, 1)
                    for dx in (-1, 0, 1)
                ]
                smooth[t, y, x] = sum(near) / 9
    limit = smooth.flatten().quantile(0.25)
    return gap * ((limit / smooth).clamp(max=1) ** 4).reshape(rms.shape)


def test_local_guidance_limits_each_frame_and_each_stream_by_a_map_of_its_own(picture, kind):
    model, clip, positive, negative, image = picture
    share = 0.5 if kind[0] == "StableAudio" else 1.0  # at its sigma of 500 the change is below rounding
    with torch.inference_mode():
        plain, treated = (
            gap_of(kinds.first(each, positive, negative, image, denoise=share))
            for each in (model, Treater(made("local_guidance"), clip).install(model))
        )
    for before, after in zip(*(streams(gap, kind[1][1]) for gap in (plain, treated)), strict=True):
        change = limited(before[0]) - before[0]
        assert float(change.norm()) > 5e-4 * float(before.norm())
        assert torch.allclose(after[0] - before[0], change, rtol=0, atol=0.02 * float(change.abs().max()))


@pytest.mark.parametrize("mitigation", ["guidance_delay", "noise_adjustment", "prompt_optimization", "random_tokens"])
def test_mitigations_of_pictures_act(picture, mitigation, caplog):
    model, clip, positive, negative, image = picture
    with torch.inference_mode():
        plain, treated = (
            kinds.flat(tiny.sample(each, positive, negative, image, steps=2, scheduler="simple"))
            for each in (model, Treater(made(mitigation), clip).install(model))
        )
    assert not [line for line in caplog.messages if "left out" in line or "left alone" in line or "never" in line]
    assert not torch.equal(plain, treated) and bool(treated.isfinite().all())


@pytest.mark.parametrize("name", ["WAN21_T2V", "StableAudio", "LTXAV"])
def test_a_flagged_run_goes_on_as_one_that_is_treated_anyway(name, monkeypatch):
    model, clip, positive, negative, image = build(name, KINDS[name], monkeypatch)
    monkeypatch.setattr(loop, "helped", lambda *_: True)
    settings = {"steps": 2, "scheduler": "simple"}
    with torch.inference_mode():
        size = preflight.check(Guard(), model, positive, negative, {"samples": image}, [5]).noise_gap_map.shape[1:]
        known = profile(model, 1e-9)
        known = replace(known, conditions=replace(known.conditions, latent=tuple(size)))
        guard = Guard(policy="mitigate", mitigation=made("noise_adjustment"), profile=known)
        watched = Watcher(guard, clip=clip, explain="never").install(model)
        seen, treated = (
            kinds.flat(tiny.sample(each, positive, negative, image, **settings))
            for each in (watched, Treater(made("noise_adjustment"), clip).install(model))
        )
    (attempt,) = guard.report.attempts
    assert guard.report.error is None and attempt.kept and guard.report.actions == attempt.changes[:2] != ()
    assert guard.report.scores_after == attempt.scores != guard.report.scores_before
    assert torch.allclose(seen, treated, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", kinds.VIDEOS)
def test_a_mask_covers_every_frame(name, monkeypatch):
    model, _, positive, negative, image = build(name, kinds.VIDEOS[name], monkeypatch)
    mask = torch.zeros(1, *image.shape[-2:])
    mask[:, :, :3] = 1
    part = node_helpers.conditioning_set_values(positive, {"mask": mask, "mask_strength": 1.0})
    with torch.inference_mode():
        gap = gap_of(kinds.first(model, positive, negative, image))
        finding = preflight.check(Guard(), model, part, negative, {"samples": image}, [5]).findings[0]
    inside = gap[..., :3]
    assert finding.scores == (pytest.approx(float(inside.norm()), rel=1e-3),)
    assert finding.rms == (pytest.approx(float(inside.square().mean().sqrt()), rel=1e-3),)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("which", EVERY)
def test_explain_has_words_or_a_reason(which, method, monkeypatch):
    model, clip, positive, negative, image = build(*EVERY[which], monkeypatch)
    with torch.inference_mode():
        found = explaining.explain(
            model, clip, kinds.PROMPT, negative, {"samples": image}, 5, method, positive=positive
        )
    if method == "attention":
        assert "does not know the attention of this model" in found.status
    else:
        assert found.status == "ok" and any(found.weights)


def test_a_model_that_fails_is_a_reason_and_no_error(monkeypatch):
    model, clip, positive, negative, image = build("WAN21_T2V", kinds.VIDEOS["WAN21_T2V"], monkeypatch)
    wrong = [[positive[0][0][..., :32], positive[0][1]]]
    with torch.inference_mode():
        for method in METHODS[:2]:
            found = explaining.explain(
                model, clip, kinds.PROMPT, negative, {"samples": image}, 5, method, positive=wrong
            )
            assert found.status == "the first model call failed (RuntimeError); ComfyUI's log tells more"


@pytest.mark.parametrize("name", kinds.READ_FIRST)
def test_words_of_a_model_that_reads_the_prompt_first_are_not_taken_back_to_the_encoder(name, monkeypatch):
    model, clip, positive, negative, image = build(name, kinds.READ_FIRST[name], monkeypatch)
    with torch.inference_mode():
        found = explaining.explain(model, clip, kinds.PROMPT, negative, {"samples": image}, 5, positive=positive)
    assert found.notes == (weighing.NO_WAY_BACK,)
