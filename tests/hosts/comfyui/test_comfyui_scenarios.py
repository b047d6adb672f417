"""Guiders, cfg 1, areas, masks, time limits, LoRA, pictures to start from, windows: a score or a named reason each.

Every scenario also leaves the latents ``torch.equal`` and, but for reference "empty", costs no row.
"""

import comfy.context_windows
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Guider_Basic, Guider_DualCFG
from comfy_extras.nodes_perpneg import Guider_PerpNeg

from memguard_pack.tests.hosts.comfyui import tiny

SD15 = tiny.build("sd15")
POSITIVE, NEGATIVE, OTHER = (tiny.prompt(seed=seed) for seed in (1, 2, 3))
IMAGE = tiny.latent()
X, SIGMA = tiny.start(SD15, IMAGE)
GAP = tiny.gap(SD15, POSITIVE, NEGATIVE, X, SIGMA)


@pytest.fixture
def finding(watch, rows):
    """A function that runs with and without a guard, compares, and returns the finding and the report."""

    def run(go, model=SD15, empty=None, extra=0, **settings):
        with rows(model) as free:
            plain = go(model)
        watched, watcher = watch(model, empty, **settings)
        with rows(model) as guarded:
            seen = go(watched)
        assert torch.equal(plain, seen)
        assert sum(guarded) == sum(free) + extra
        report = watcher.report_of(seen)
        assert report.extra_rows == extra and report.error is None
        return report.findings[0], report

    return run


def simple(positive=POSITIVE, negative=NEGATIVE, image=IMAGE, **more):
    return lambda model: tiny.sample(model, positive, negative, image, **more)


def with_guider(cls, conds, cfg=None, image=IMAGE):
    def go(model):
        guider = cls(model)
        guider.set_conds(*conds)
        if cfg is not None:
            guider.set_cfg(*cfg)
        return tiny.guide(guider, image)

    return go


def limited(conditioning, **extra):
    return [[vectors, {**known, **extra}] for vectors, known in conditioning]


# --- guiders and cfg 1 ---------------------------------------------------------------------------------------------


def test_the_cfg_guider(finding):
    found, report = finding(with_guider(comfy.samplers.CFGGuider, (POSITIVE, NEGATIVE), (5.0,)))
    assert found.scores == pytest.approx(tiny.norms(GAP), rel=1e-5)
    assert (report.cfg, report.steps, report.seeds, report.sampler) == (5.0, 3, (5,), "euler")


@pytest.mark.parametrize("nested", [True, False])
def test_the_dual_cfg_guider_is_scored_on_its_first_prompt(nested, finding):
    go = with_guider(Guider_DualCFG, (POSITIVE, OTHER, NEGATIVE), (5.0, 3.0, nested))
    found, report = finding(go)
    assert found.scores == pytest.approx(tiny.norms(GAP), rel=1e-5)
    assert any("cond2 is not scored" in note for note in report.notes)


def test_the_dual_cfg_guider_without_a_negative_prediction(finding):
    found, _ = finding(with_guider(Guider_DualCFG, (POSITIVE, OTHER, NEGATIVE), (5.0, 1.0, False)))
    assert found.scores == () and found.status.startswith("cfg of the negative prompt is 1")


@pytest.mark.parametrize("reference", ["negative", "empty"])
def test_the_perp_neg_guider_knows_the_empty_prompt_for_free(reference, finding):
    go = with_guider(Guider_PerpNeg, (POSITIVE, NEGATIVE, OTHER), (5.0, 1.0))
    found, _ = finding(go, reference=reference)
    expected = GAP if reference == "negative" else tiny.gap(SD15, POSITIVE, OTHER, X, SIGMA)
    assert found.scores == pytest.approx(tiny.norms(expected), rel=1e-5) and found.reference == reference


def test_the_basic_guider_has_a_reason(finding):
    found, _ = finding(with_guider(Guider_Basic, (POSITIVE,)))
    assert found.scores == () and found.status.startswith("there is no negative prompt (guider Guider_Basic)")


def test_the_basic_guider_with_an_empty_prompt(finding):
    found, _ = finding(with_guider(Guider_Basic, (POSITIVE,)), empty=OTHER, extra=1, reference="empty")
    expected = tiny.norms(tiny.gap(SD15, POSITIVE, OTHER, X, SIGMA))
    assert found.scores == pytest.approx(expected, rel=1e-5) and found.reference == "empty"


def test_cfg_1_has_a_reason(finding):
    found, report = finding(simple(cfg=1.0))
    assert found.scores == () and found.status.startswith("cfg is 1") and report.verdict == "unknown"


def test_cfg_1_with_the_negative_prompt_as_reference(finding):
    found, _ = finding(simple(cfg=1.0), extra=1, reference="empty")
    assert found.scores == pytest.approx(tiny.norms(GAP), rel=1e-5) and found.reference == "negative"


@pytest.mark.parametrize("cfg", [1.0, 7.5])
@pytest.mark.parametrize("steps", [1, 2])
def test_an_empty_prompt_costs_a_row_per_image_and_scored_step(cfg, steps, finding):
    go = simple(image=tiny.latent(batch=2), cfg=cfg)
    found, _ = finding(go, empty=OTHER, extra=2 * steps, reference="empty", steps=steps)
    x, sigma = tiny.start(SD15, tiny.latent(batch=2))
    expected = tiny.norms(tiny.gap(SD15, POSITIVE, OTHER, x, sigma))
    assert found.per_step[0] == pytest.approx(expected, rel=1e-5) and found.reference == "empty"


def test_an_empty_prompt_is_free_where_the_negative_prompt_is_the_same(finding):
    found, _ = finding(simple(), empty=tiny.prompt(seed=2), extra=0, reference="empty")
    assert found.scores == pytest.approx(tiny.norms(GAP), rel=1e-5) and found.reference == "empty"


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])
def test_an_empty_prompt_on_other_models(kind, finding):
    model, image = tiny.build(kind), tiny.latent(kind)
    positive, negative, empty = (tiny.prompt(kind, seed) for seed in (1, 2, 3))
    go = simple(positive, negative, image, cfg=1.0)
    found, _ = finding(go, model, empty=empty, extra=1, reference="empty")
    x, sigma = tiny.start(model, image)
    assert found.scores == pytest.approx(tiny.norms(tiny.gap(model, positive, empty, x, sigma)), rel=1e-4)


# --- where and when a prompt acts ----------------------------------------------------------------------------------

BOX = (slice(None), slice(None), slice(2, 6), slice(2, 6))


def test_an_area_is_scored_where_it_acts(finding):
    found, _ = finding(simple(limited(POSITIVE, area=(4, 4, 2, 2), strength=1.0)))
    inside = tiny.predict(SD15, POSITIVE, X[BOX], SIGMA)
    # the negative prompt acts on the whole picture and, as ComfyUI pairs areas, on the area by itself: the mean of both
    whole, part = (tiny.predict(SD15, NEGATIVE, x, SIGMA, "negative") for x in (X, X[BOX]))
    weight = _border(4)
    reference = (whole[BOX] + part * weight) / (1 + weight)
    assert found.scores == pytest.approx(tiny.norms(inside - reference), rel=1e-4)
    assert found.rms == pytest.approx([found.scores[0] / 64**0.5], rel=1e-5)  # 4 channels x 4 x 4


def _border(side: int) -> torch.Tensor:
    """Return how strongly an area of this side acts inside a larger picture: ComfyUI fades 1/4 of it on each edge."""
    return torch.ones(side, side)  # 4 // 4 = 1 pixel, faded to 1/1


def test_a_mask_is_scored_where_it_acts(finding):
    mask = torch.zeros((1, 64, 64))
    mask[:, :, :32] = 1
    found, _ = finding(simple(limited(POSITIVE, mask=mask, mask_strength=1.0)))
    # ComfyUI shrinks the mask bilinearly: columns 0-3 of 8
    assert found.scores == pytest.approx(tiny.norms(GAP[..., :4]), rel=1e-4)


def test_a_prompt_that_starts_later_has_a_reason(finding):
    found, _ = finding(simple(limited(POSITIVE, start_percent=0.5, end_percent=1.0)))
    assert found.scores == () and found.status == "prompt not active at step 0"


def test_a_prompt_that_ends_later_is_scored(finding):
    found, _ = finding(simple(limited(POSITIVE, start_percent=0.0, end_percent=0.5)))
    assert found.scores == pytest.approx(tiny.norms(GAP), rel=1e-5)


def test_combined_prompts_are_scored_as_the_sampler_merges_them(finding):
    found, _ = finding(simple(POSITIVE + OTHER))
    merged = (GAP + tiny.gap(SD15, OTHER, NEGATIVE, X, SIGMA)) / 2
    assert found.scores == pytest.approx(tiny.norms(merged), rel=1e-4)


def test_two_areas_cover_the_picture(finding):
    halves = limited(POSITIVE, area=(8, 4, 0, 0), strength=1.0) + limited(OTHER, area=(8, 4, 0, 4), strength=1.0)
    found, _ = finding(simple(halves))
    assert found.status == "ok" and found.rms == pytest.approx([found.scores[0] / 256**0.5], rel=1e-5)
    assert found.scores[0] < 1  # without coverage a half that is not covered scores 11 (COMFYUI.md)


def test_a_prompt_of_strength_zero_has_a_reason(finding):
    found, _ = finding(simple(limited(POSITIVE, area=(4, 4, 2, 2), strength=0.0)))
    assert found.scores == () and found.status == "prompt not active at step 0"


# --- LoRA, pictures, windows ---------------------------------------------------------------------------------------

TO_V = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"


def patched(model, key=TO_V):
    clone = model.clone()
    weight = dict(model.model.named_parameters())[key]
    clone.add_patches({key: (torch.full_like(weight, 0.3),)}, 1.0)
    return clone


@pytest.mark.parametrize("order", ["guard first", "patch first"])
def test_a_lora_changes_the_score_but_not_the_fingerprint(order, watch):
    model = tiny.build("sd15", seed=9)
    watched, watcher = watch(model)
    before = watcher.report_of(tiny.sample(watched, POSITIVE, NEGATIVE, IMAGE))
    if order == "patch first":
        watched, watcher = watch(patched(model))
    else:
        watched = patched(watched)
    plain = tiny.sample(patched(model), POSITIVE, NEGATIVE, IMAGE)
    seen = tiny.sample(watched, POSITIVE, NEGATIVE, IMAGE)
    assert torch.equal(plain, seen)
    after = watcher.report_of(seen)
    assert after.findings[0].scores[0] != pytest.approx(before.findings[0].scores[0], rel=1e-3)
    assert after.model == before.model
    assert before.notes == () and after.notes[0].startswith("a LoRA or another patch changes 1 weights")


def test_a_model_first_seen_with_a_lora_has_its_checkpoint_s_fingerprint(watch):
    name = {}
    for how in ("plain", "patched"):
        model = tiny.build("sd15", seed=9)
        key = "diffusion_model.input_blocks.0.0.weight"
        chosen = patched(model, key) if how == "patched" else model
        tiny.sample(chosen, POSITIVE, NEGATIVE, IMAGE)  # the patch is in the weights now
        watched, watcher = watch(chosen)
        name[how] = watcher.report_of(tiny.sample(watched, POSITIVE, NEGATIVE, IMAGE)).model
    assert name["plain"] == name["patched"]


def test_img2img_is_scored_and_marked(finding):
    picture = torch.randn(IMAGE.shape, generator=torch.manual_seed(8))
    found, _ = finding(simple(image=picture, denoise=0.5, steps=6))
    assert found.status == "ok" and found.sigma < 0.7 * 14.6
    assert found.threshold_source.startswith("uncalibrated: the run starts at sigma")


def test_a_noise_mask_is_scored_and_noted(finding):
    picture = torch.randn(IMAGE.shape, generator=torch.manual_seed(8))
    mask = torch.zeros((1, 1, 8, 8))
    mask[..., :4] = 1
    found, report = finding(simple(image=picture, noise_mask=mask))
    assert found.status == "ok" and any("noise mask" in note for note in report.notes)


def test_a_batch_has_a_score_per_image_and_pictures_need_not_be_square(finding):
    image = torch.zeros((3, 4, 8, 12))
    found, report = finding(simple(image=image))
    x, sigma = tiny.start(SD15, image)
    assert found.scores == pytest.approx(tiny.norms(tiny.gap(SD15, POSITIVE, NEGATIVE, x, sigma)), rel=1e-5)
    assert len(set(found.scores)) == 3 and (report.width, report.height) == (96, 64)


def test_a_prompt_of_three_chunks_against_one_of_one(finding):
    image = torch.zeros((3, 4, 8, 12))
    long, short = tiny.prompt(seed=4, tokens=231), tiny.prompt(seed=5, tokens=77)
    found, _ = finding(simple(long, short, image))
    x, sigma = tiny.start(SD15, image)
    assert found.scores == pytest.approx(tiny.norms(tiny.gap(SD15, long, short, x, sigma)), rel=1e-4)


def test_context_windows_are_scored_after_they_were_fused(finding):
    contexts = comfy.context_windows
    model = SD15.clone()
    model.model_options["context_handler"] = contexts.IndexListContextHandler(
        context_schedule=contexts.get_matching_context_schedule(contexts.ContextSchedules.STATIC_STANDARD),
        fuse_method=contexts.get_matching_fuse_method(contexts.ContextFuseMethods.FLAT),
        context_length=2,
        context_overlap=1,
        dim=0,
    )
    contexts.create_prepare_sampling_wrapper(model)
    # as many images as sigmas: ComfyUI's own comparison of the two fails otherwise
    found, _ = finding(simple(image=tiny.latent(batch=4), steps=3), model)
    x, sigma = tiny.start(SD15, tiny.latent(batch=4))
    assert found.scores == pytest.approx(tiny.norms(tiny.gap(SD15, POSITIVE, NEGATIVE, x, sigma)), rel=1e-4)


def test_a_perturbed_pass_after_the_guidance_is_not_the_prompt(finding):
    def perturb(state):
        comfy.samplers.calc_cond_batch(
            state["model"], [state["cond"]], state["input"] * 0.9, state["sigma"], state["model_options"]
        )
        return state["denoised"].mul_(1.0)

    model = SD15.clone()
    model.set_model_sampler_post_cfg_function(perturb)
    found, _ = finding(simple(), model)
    assert found.scores == pytest.approx(tiny.norms(GAP), rel=1e-5)


def test_a_guidance_that_rewrites_the_predictions_is_not_the_models_opinion(finding):
    def rewrite(state):
        return [out.mul_(0.5) for out in state["conds_out"]]

    model = SD15.clone()
    model.set_model_sampler_pre_cfg_function(rewrite)
    found, _ = finding(simple(), model)
    assert found.scores == pytest.approx(tiny.norms(GAP), rel=1e-5)


def test_a_guider_of_unknown_prompts_has_a_reason(finding):
    class Odd(comfy.samplers.CFGGuider):
        def set_conds(self, one, two):
            self.inner_set_conds({"one": one, "two": two})

        def predict_noise(self, x, timestep, model_options=None, seed=None):
            conds = [self.conds["one"], self.conds["two"]]
            return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)[0]

    found, _ = finding(with_guider(Odd, (POSITIVE, NEGATIVE)))
    assert found.status == "the guider Odd has no prompt called positive; it has: one, two"


def test_a_guider_that_copies_its_lists_is_understood(finding):
    class Copying(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            conds = [[dict(c) for c in self.conds[role]] for role in ("negative", "positive")]
            return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)[1]

    found, _ = finding(with_guider(Copying, (POSITIVE, NEGATIVE)))
    assert found.scores == pytest.approx(tiny.norms(GAP), rel=1e-5)


def test_predictions_that_are_not_numbers_have_a_reason(watch):
    model = tiny.build("sd15", seed=4)
    model.model.diffusion_model.out[2].weight.fill_(float("nan"))
    watched, watcher = watch(model)
    found = watcher.report_of(tiny.sample(watched, POSITIVE, NEGATIVE, IMAGE)).findings[0]
    assert found.status == "the model's prediction at step 0 holds NaN or infinity"
