"""Words and maps of runs that are sampled, and of conditionings of several parts, in the real ComfyUI."""

import node_helpers
import pytest
import torch
from comfy.samplers import CFGGuider

from memguard_pack.memguard import MemorizationStop
from memguard_pack.memguard.calibration import Conditions, Profile, fit
from memguard_pack.memguard.hosts.comfyui import explaining, graph, maps, model, weighing
from memguard_pack.memguard.hosts.comfyui.latents import store
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.test_comfyui_explain import PROMPT, encode, explain, parts, score  # noqa: F401

OTHER = "blue whale"


@pytest.fixture
def texts(monkeypatch):
    """A function that says which texts the workflow holds; in-process runs have no workflow."""

    def say(*found):
        monkeypatch.setattr(graph, "prompt_texts", lambda *_: list(found))

    say(PROMPT)
    return say


def profile(patcher, rms, side=8, sigma=None):
    """Return a profile whose ordinary prompts score about this RMS."""
    sampling = patcher.get_model_object("model_sampling")
    conditions = Conditions(
        model=model.name_of(patcher),
        family="sd15",
        latent=(side, side),
        sigma=float(sampling.sigma_max),
        timestep=999.0,
        steps_scored=1,
        num_steps=3,
        scheduler="normal",
        reference="negative",
        dtype="float32",
        guidance_scale=7.5,
    )
    return Profile(conditions, {"text_noise_norm": fit([rms * (1 + i / 500) for i in range(320)])})


@pytest.fixture
def run(parts, texts, watch, rows):  # noqa: F811
    """A function that samples with and without a guard that explains; latents must be equal."""

    def go(positive=None, batch=1, extra=None, **settings):
        patcher, clip, negative = parts()
        positive = encode(clip) if positive is None else positive(clip)
        image = tiny.latent(batch=batch)
        with torch.inference_mode():
            with rows(patcher) as free:
                plain = tiny.sample(patcher, positive, negative, image)
            watched, watcher = watch(patcher, **{k: v for k, v in settings.items() if k != "explain"})
            watcher.clip, watcher.explain = clip, settings.get("explain", "always")
            with rows(patcher) as counted:
                latents = tiny.sample(watched, positive, negative, image)
        assert torch.equal(plain, latents)
        assert all(weight.is_inference() for weight in patcher.model.diffusion_model.parameters())
        assert not any(part._forward_hooks for part in patcher.model.diffusion_model.modules())
        report = watcher.report_of(latents)
        assert report.error is None
        assert sum(counted) == sum(free) + report.extra_rows
        return report

    return go


def test_a_run_that_is_explained_names_its_words(run, parts):  # noqa: F811
    report = run()
    found = report.attribution
    assert [word for word, _ in found.words] == PROMPT.split() and found.method == "gradient"
    patcher, clip, negative = parts()
    # the sampler's own noise: the same words as before sampling, with the sampler's seed
    with torch.inference_mode():
        alone = explaining.explain(patcher, clip, PROMPT, negative, {"samples": tiny.latent()}, 5)
    assert found.weights == pytest.approx(alone.weights, rel=1e-3)
    assert report.extra_rows == 1 and found.score == pytest.approx(report.findings[0].score, rel=1e-5)
    assert report.maps == ("noise_gap", *(f"word {i}" for i in range(6)), "bright_ending")


def test_words_cost_nothing_where_no_run_is_flagged(run):
    report = run(explain="flagged")
    assert report.attribution is None and report.extra_rows == 0 and report.maps == ("noise_gap",)


def test_a_flagged_run_is_explained_also_when_it_is_stopped(parts, texts, watch):  # noqa: F811
    patcher, clip, negative = parts()
    with torch.inference_mode():
        watched, watcher = watch(patcher, policy="stop", profile=profile(patcher, 1e-6))
        watcher.clip = clip
        with pytest.raises(MemorizationStop):
            tiny.sample(watched, encode(clip), negative, tiny.latent())
    report = watcher.guard.report
    assert report.verdict == "memorized" and [word for word, _ in report.attribution.words] == PROMPT.split()


def test_maps_are_kept_and_chosen(run):
    report = run(batch=2)
    kept = store.maps_of(report.run)
    assert kept.size == (8, 8) and set(kept.maps) == set(report.maps)
    heaviest = max(report.attribution.words, key=lambda pair: pair[1])[0]
    found, label = maps.chosen(report, "word")
    assert found.shape == (2, 8, 8) and label == f'word "{heaviest}"'
    fox, _ = maps.chosen(report, "word", "Fox")
    assert torch.equal(fox, kept.unpacked("word 2"))
    assert maps.chosen(report, "bright_ending")[1] == "end of prompt, last step"
    assert maps.chosen(report, "noise_gap")[0].shape == (2, 8, 8)
    with pytest.raises(ValueError, match="^word is 'cat', and the prompt has: a, red, fox, on, the, roof$"):
        maps.chosen(report, "word", "cat")


def test_a_map_that_was_not_asked_for_says_what_to_do(run):
    with pytest.raises(ValueError, match="^no map 'word', because the run was not explained; connect clip to MemGuard"):
        maps.chosen(run(explain="never"), "word")


def test_late_entropy_knows_the_summary_columns_from_clip(run):
    report = run(detectors=["attention_entropy_late"])
    assert report.findings[0].status == "ok" and len(report.findings[0].per_step) == 1


def test_the_curve_has_a_point_for_every_model_call(run, parts):  # noqa: F811
    report = run(explain="never")
    assert len(report.curve) == 3
    patcher, clip, negative = parts()
    sigma, rms = report.curve[0]
    assert sigma == pytest.approx(14.6146, rel=1e-4) and rms == pytest.approx(report.findings[0].mean_rms, rel=1e-5)
    assert [s for s, _ in report.curve] == sorted((s for s, _ in report.curve), reverse=True)


def limited(conditioning, **extra):
    return node_helpers.conditioning_set_values(conditioning, extra)


def halves(clip):
    """Return two prompts, each for one half of the picture: (height, width, y, x) in latent pixels."""
    left = limited(encode(clip), area=(8, 4, 0, 0), strength=1.0)
    right = limited(encode(clip, OTHER), area=(8, 4, 0, 4), strength=1.0)
    return [*left, *right]


def test_every_part_has_rows_of_its_own_and_the_map_of_its_area(run, texts):
    texts(PROMPT, OTHER)
    report = run(halves)
    spans = report.attribution.spans
    words = [(span.part, span.text) for span in spans if span.group == "word"]
    assert words == [*((0, word) for word in PROMPT.split()), (1, "blue"), (1, "whale")]
    whale = next(i for i, span in enumerate(spans) if span.text == "whale")
    found, _ = maps.chosen(report, "word", "whale")
    assert float(found[..., :4].abs().max()) < 1e-2 * float(found.max()) < float(found[..., 4:].min())
    assert f"word {whale}" in report.maps


@pytest.mark.parametrize("respect_to", ["encoded", "input"])
def test_the_gradient_of_a_part_is_the_finite_difference(respect_to, parts, texts):  # noqa: F811
    texts(PROMPT, OTHER)
    patcher, clip, negative = parts()
    found = explain(patcher, clip, negative, positive=halves(clip), respect_to="encoded")
    place = next(i for i, span in enumerate(found.spans) if span.text == "whale")
    (column,), h, slopes = found.spans[place].columns, 0.02, []
    for axis in range(tiny.WIDTH["sd15"]):
        ends = []
        for sign in (1, -1):
            with torch.inference_mode():
                first, (cond, extra) = halves(clip)
                moved = cond.clone()
                moved[0, column, axis] += sign * h
            ends.append(score(patcher, [first, [moved, extra]], negative))
        slopes.append((ends[0] - ends[1]) / (2 * h))
    assert found.weights[place] == pytest.approx(float(torch.tensor(slopes).norm()), rel=0.02)
    assert found.score == pytest.approx(score(patcher, halves(clip), negative), rel=1e-5)
    if respect_to == "input":
        assert explain(patcher, clip, negative, positive=halves(clip)).weights != found.weights


def test_leaving_a_word_out_of_a_part_is_the_difference_of_two_checks(parts, texts):  # noqa: F811
    texts(PROMPT, OTHER)
    patcher, clip, negative = parts()
    found = explain(patcher, clip, negative, positive=halves(clip), method="ablation")
    first, (_, extra) = halves(clip)
    whole = score(patcher, halves(clip), negative)
    without = score(patcher, [first, [encode(clip, "blue")[0][0], extra]], negative)
    assert dict(found.words)["whale"] == pytest.approx(whole - without, abs=1e-4 * whole)


def test_a_part_that_begins_later_weighs_nothing_at_the_first_step(parts, texts):  # noqa: F811
    texts(PROMPT, OTHER)
    patcher, clip, negative = parts()
    scheduled = [*limited(encode(clip), start_percent=0.0, end_percent=0.5)]
    scheduled += limited(encode(clip, OTHER), start_percent=0.5, end_percent=1.0)
    found = explain(patcher, clip, negative, positive=scheduled)
    weights = dict(found.words)
    assert (weights["blue"], weights["whale"]) == (0.0, 0.0) and min(weights[word] for word in PROMPT.split()) > 0
    assert found.notes == (weighing.NOT_YET,)
    alone = explain(patcher, clip, negative)
    assert found.weights[: len(alone.weights)] == pytest.approx(alone.weights, rel=1e-4)


def test_texts_that_follow_each_other_in_one_conditioning(parts, texts):  # noqa: F811
    texts(PROMPT, OTHER)
    patcher, clip, negative = parts()
    joined = [[torch.cat([encode(clip)[0][0], encode(clip, OTHER)[0][0]], 1), {}]]
    found = explain(patcher, clip, negative, positive=joined)
    columns = {span.text: span.columns for span in found.spans if span.group == "word"}
    assert columns["fox"] == (3,) and columns["blue"] == (78,) and columns["whale"] == (79,)
    assert len(found.token_scores) == 154 and min(weight for _, weight in found.words) > 0
    dropped = explain(patcher, clip, negative, positive=joined, method="ablation")
    with torch.inference_mode():
        cut = [[torch.cat([encode(clip)[0][0], encode(clip, "blue")[0][0]], 1), {}]]
    whole = score(patcher, joined, negative)
    assert dict(dropped.words)["whale"] == pytest.approx(whole - score(patcher, cut, negative), abs=1e-4 * whole)


def test_a_prompt_that_no_text_encodes_to_has_one_reason(parts, texts):  # noqa: F811
    patcher, clip, negative = parts()
    with torch.inference_mode():
        averaged = [[0.5 * encode(clip)[0][0] + 0.5 * encode(clip, OTHER)[0][0], {}]]
    found = explain(patcher, clip, negative, positive=averaged)
    assert found.spans == () and found.weights == () and found.status == weighing.NO_TEXT


def test_attention_before_sampling_gives_every_word_its_share(parts):  # noqa: F811
    patcher, clip, negative = parts()
    found = explain(patcher, clip, negative, method="attention")
    assert sum(found.weights) == pytest.approx(1.0, rel=1e-5) and len(found.layers) == 7
    assert [word for word, _ in found.words] == PROMPT.split()


def test_attention_of_a_model_that_has_none_is_a_reason(parts):  # noqa: F811
    patcher, clip, negative = parts("flux")
    found = explain(patcher, clip, negative, kind="flux", method="attention")
    assert found.status == "Flux has no cross-attention layers: prompt and picture share their attention"


def test_memory_that_runs_out_within_a_run_leaves_attention(run, monkeypatch):
    def poor(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(weighing.gradient, "prompt_gradient", poor)
    found = run().attribution
    assert found.method == "attention" and found.notes == (
        "the gradient failed (not enough memory); attention stood in",
    )


def test_no_gradient_and_no_attention_is_a_reason(parts, texts, watch, monkeypatch):  # noqa: F811
    def poor(*_):
        raise RuntimeError("no derivative for this weight")

    monkeypatch.setattr(weighing.gradient, "prompt_gradient", poor)
    patcher, clip, negative = parts("flux")
    with torch.inference_mode():
        watched, watcher = watch(patcher)
        watcher.clip, watcher.explain = clip, "always"
        latents = tiny.sample(watched, encode(clip), negative, tiny.latent("flux"))
    report = watcher.report_of(latents)
    expected = "the gradient failed (these weights have no gradient), and no attention was read"
    assert report.attribution.status == expected and report.error is None and report.findings[0].status == "ok"
    assert report.maps == ("noise_gap",)


def test_a_guider_of_the_custom_sampler_is_explained_as_well(parts, texts, watch):  # noqa: F811
    patcher, clip, negative = parts()
    with torch.inference_mode():
        watched, watcher = watch(patcher)
        watcher.clip, watcher.explain = clip, "always"
        guider = CFGGuider(watched)
        guider.set_conds(encode(clip), negative)
        guider.set_cfg(5.0)
        latents = tiny.guide(guider, tiny.latent(), sampler="heun")
    report = watcher.report_of(latents)
    assert [word for word, _ in report.attribution.words] == PROMPT.split() and len(report.curve) == 5
