"""``scan`` and ``calibrate`` against plain computations of the same runs, step by step."""

import gc
import math
import time
from itertools import islice

import diffusers
import pytest
import torch

import memguard
from memguard.calibration import ProfileError, negative_of, ordinary_prompts
from memguard.hosts.diffusers import pipes
from memguard.hosts.diffusers.scans import Scan, grain
from tests.hosts import tiny

PROMPTS = ["a red fox", "a blue house by the sea", "a cat on the roof", "lamp " * 90]
STEPS = 6


@pytest.fixture(scope="module")
def pipe():
    return tiny.sd()


def per_step(pipe, prompt: str, images: int, steps: int, total: int = STEPS, seed: int = 0) -> torch.Tensor:
    """Norms of the noise gap of a guided run, [steps, images]: two UNet calls per model call, one prompt alone."""
    plan = pipe.scheduler
    generator = torch.Generator("cpu").manual_seed(seed)
    plan.set_timesteps(total)
    x = torch.randn(images, 4, 8, 8, generator=generator) * plan.init_noise_sigma
    cond, uncond = pipe.encode_prompt([prompt], "cpu", images, True)
    rows = []
    for t in plan.timesteps[:steps]:
        scaled = plan.scale_model_input(x, t)
        with torch.no_grad():
            c = pipe.unet(scaled, t, encoder_hidden_states=cond).sample
            u = pipe.unet(scaled, t, encoder_hidden_states=uncond).sample
        rows.append((c - u).flatten(1).norm(dim=1))
        noisy = {"generator": generator} if "Ancestral" in type(plan).__name__ else {}
        x = plan.step(u + 7.5 * (c - u), t, x, **noisy).prev_sample
    return torch.stack(rows)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize(
    "name", ["DDIM", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "HeunDiscrete"]
)
def test_scores_equal_an_independent_computation(name, images, steps):
    pipe = tiny.sd(tiny.scheduler(getattr(diffusers, f"{name}Scheduler")))
    reports = list(memguard.scan(pipe, PROMPTS, num_images=images, steps=steps, num_inference_steps=STEPS))
    assert [report.prompt for report in reports] == PROMPTS
    for prompt, report in zip(PROMPTS, reports, strict=True):
        expected = per_step(pipe, prompt, images, steps)
        torch.testing.assert_close(torch.tensor(report.findings[0].per_step), expected, rtol=1e-4, atol=0)
        assert report.findings[0].scores == pytest.approx(expected.mean(0).tolist(), rel=1e-4)
        assert (report.seeds, report.steps, report.cfg, report.width) == ((0,), STEPS, 7.5, 16)


@pytest.mark.parametrize("make", [tiny.sdxl, tiny.sd3], ids=["sdxl", "sd3"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("images", [1, 3])
def test_scores_equal_those_of_a_watched_run_of_one_prompt(make, steps, images):
    pipe = make()
    reports = memguard.scan(pipe, PROMPTS[:3], num_images=images, steps=steps, num_inference_steps=STEPS, seed=5)
    for prompt, report in zip(PROMPTS, reports, strict=False):
        guard = memguard.Guard(steps=steps)
        with guard.attach(pipe):
            pipe(
                prompt,
                num_inference_steps=STEPS,
                guidance_scale=7.5,
                num_images_per_prompt=images,
                generator=torch.Generator("cpu").manual_seed(5),
                output_type="latent",
            )
        for mine, theirs in zip(report.findings[0].per_step, guard.report.findings[0].per_step, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)
        assert report.findings[0].sigma == guard.report.findings[0].sigma
        assert report.model == guard.report.model and report.family == guard.report.family


@pytest.mark.parametrize("steps", [1, 2])
def test_flux_is_compared_with_the_empty_prompt(steps):
    pipe = tiny.flux()
    settings = {"height": 32, "width": 32, "num_inference_steps": STEPS, "guidance_scale": 3.5}
    (report,) = memguard.scan(pipe, ["a red fox"], steps=steps, **settings)
    guard = memguard.Guard(steps=steps, reference="empty")
    with guard.attach(pipe):
        pipe("a red fox", generator=torch.Generator("cpu").manual_seed(0), output_type="latent", **settings)
    assert report.findings[0].scores == pytest.approx(guard.report.findings[0].scores, rel=1e-4)


def rows_of(pipe, prompts, **settings) -> int:
    return costs(pipe, prompts, **settings)[0]


def costs(pipe, prompts, **settings) -> tuple[int, list]:
    count = 0

    def add(_module, _args, kwargs):
        nonlocal count
        count += len(kwargs["encoder_hidden_states"])

    handle = pipe.unet.register_forward_pre_hook(add, with_kwargs=True)
    try:
        reports = list(memguard.scan(pipe, prompts, **settings))
    finally:
        handle.remove()
    assert len(reports) == len(prompts)
    return count, reports


def test_one_step_costs_one_row_per_image_and_the_reference_once(pipe):
    assert rows_of(pipe, PROMPTS * 3, num_images=2) == 12 * 2 + 2


@pytest.mark.parametrize(
    ("settings", "own"), [({}, 1), ({"reference": "empty"}, 1), ({"reference": "empty", "steps": 2}, 4)]
)
def test_rows_and_seconds_of_all_reports_are_those_of_the_scan(pipe, settings, own):
    begun = time.perf_counter()
    count, reports = costs(pipe, PROMPTS, num_inference_steps=STEPS, negative_prompt="blurry", **settings)
    assert sum(report.extra_rows for report in reports) + own * len(PROMPTS) == count
    assert 0 < sum(report.seconds for report in reports) < time.perf_counter() - begun


def test_a_run_ends_after_the_scored_steps(pipe):
    assert rows_of(pipe, PROMPTS, steps=3, num_inference_steps=50) == 4 * 2 * 3


def test_prompts_are_taken_as_they_are_needed(pipe):
    taken = []

    def endless():
        while True:
            taken.append(f"prompt {len(taken)}")
            yield taken[-1]

    reports = list(islice(memguard.scan(pipe, endless(), batch_size=2), 3))
    assert [r.prompt for r in reports] == ["prompt 0", "prompt 1", "prompt 2"]
    assert len(taken) == 4


def test_nothing_of_a_scored_prompt_is_kept(pipe):
    def tensors() -> int:
        gc.collect()
        return sum(isinstance(o, torch.Tensor) for o in gc.get_objects())

    reports = memguard.scan(pipe, (f"prompt {i}" for i in range(100)), batch_size=2)
    for _ in islice(reports, 10):
        pass
    early = tensors()
    for _ in islice(reports, 60):
        pass
    assert tensors() <= early + 4


def test_the_pipeline_is_as_before_between_two_reports(pipe):
    bar = dict(pipe._progress_bar_config)
    reports = memguard.scan(pipe, PROMPTS, batch_size=1)
    next(reports)
    assert type(pipe) is diffusers.StableDiffusionPipeline
    assert pipe._progress_bar_config == bar
    assert not pipe.unet._forward_hooks
    assert "prepare_latents" not in vars(pipe)


def test_a_bad_prompt_is_reported_and_the_scan_goes_on(pipe):
    prompts = ["a red fox", math.nan, "a blue house", None, "a cat"]
    reports = list(memguard.scan(pipe, prompts))
    assert [bool(r.findings[0].scores) for r in reports] == [True, False, True, False, True]
    assert reports[1].findings[0].status == "the prompt is no text but float nan"
    assert reports[3].findings[0].status == "the prompt is no text but NoneType None"
    alone = list(memguard.scan(pipe, [p for p in prompts if isinstance(p, str)]))
    assert [r.findings[0].scores for r in reports if r.findings[0].scores] == [
        pytest.approx(r.findings[0].scores, rel=1e-4) for r in alone
    ]


def test_a_prompt_whose_prediction_is_nan_does_not_spoil_its_batch(monkeypatch):
    pipe = tiny.sd()
    encode = pipe.text_encoder.forward

    def broken(ids, *args, **kwargs):
        out = encode(ids, *args, **kwargs)
        fox = pipe.tokenizer("fox").input_ids[1]
        out.last_hidden_state[(ids == fox).any(1)] = math.nan
        return out

    monkeypatch.setattr(pipe.text_encoder, "forward", broken)
    fox, house = memguard.scan(pipe, ["a red fox", "a blue house"])
    assert fox.findings[0].status == "the model's prediction at step 0 holds NaN or infinity"
    assert house.findings[0].scores == (pytest.approx(float(per_step(pipe, "a blue house", 1, 1, 50)), rel=1e-4),)


def test_a_prompt_that_breaks_the_encoder_is_found_in_its_batch(monkeypatch):
    pipe = tiny.sd()
    encode = pipe.tokenizer

    def picky(texts, **settings):
        if "a red fox" in texts:
            raise ValueError("no foxes")
        return encode(texts, **settings)

    for name in ("model_max_length", "batch_decode"):
        setattr(picky, name, getattr(encode, name))
    monkeypatch.setattr(pipe, "tokenizer", picky)
    monkeypatch.setattr(pipe, "maybe_convert_prompt", lambda prompt, _: prompt)
    reports = list(memguard.scan(pipe, ["a house", "a red fox", "a cat", "a roof"]))
    assert [r.error for r in reports] == [None, "ValueError: no foxes", None, None]
    assert [len(r.findings[0].scores) for r in reports] == [1, 0, 1, 1]
    assert reports[1].findings[0].status == "the pipeline failed (ValueError); the row's error has its words"
    assert reports[1].error == "ValueError: no foxes"


def test_after_memory_ran_out_forwards_stay_as_small_as_those_that_fitted(pipe, monkeypatch):
    sizes, inner = [], Scan._run

    def run(self, texts):
        sizes.append(len(texts))
        if len(texts) > 2:
            raise torch.OutOfMemoryError
        return inner(self, texts)

    monkeypatch.setattr(Scan, "_run", run)
    reports = list(memguard.scan(pipe, 2 * PROMPTS, batch_size=4, num_inference_steps=STEPS))
    assert all(report.findings[0].scores for report in reports)
    assert sizes == [4, 2, 2, 2, 2]


@pytest.mark.parametrize(("images", "rows"), [(1, 16), (3, 10), (5, 3), (16, 1)])
def test_lists_are_cut_where_a_forward_begins_with_one_row_or_two_for_a_picture(images, rows):
    assert grain(images) == rows
    assert grain(images, 7) == 7


def test_a_negative_prompt_is_compared_with_and_shared(pipe):
    settings = {"num_inference_steps": STEPS, "negative_prompt": "ugly"}
    one = list(memguard.scan(pipe, PROMPTS[:2], **settings))
    two = list(memguard.scan(pipe, PROMPTS[:2], steps=2, **settings))
    empty = list(memguard.scan(pipe, PROMPTS[:2], num_inference_steps=STEPS))
    for a, b, c in zip(one, two, empty, strict=True):
        assert a.findings[0].per_step[0] == pytest.approx(b.findings[0].per_step[0], rel=1e-4)
        assert a.findings[0].scores != pytest.approx(c.findings[0].scores, rel=1e-2)
        assert (a.negative_prompt, a.findings[0].reference) == ("ugly", "negative")


def test_guidance_1_still_has_scores_at_every_step(pipe):
    (report,) = memguard.scan(pipe, ["a red fox"], steps=3, num_inference_steps=STEPS, guidance_scale=1.0)
    assert len(report.findings[0].per_step) == 3
    assert report.findings[0].per_step[0] == pytest.approx(per_step(pipe, "a red fox", 1, 1)[0].tolist(), rel=1e-4)


def test_a_height_without_a_width_is_not_dropped(pipe):
    (report,) = memguard.scan(pipe, ["a red fox"], height=32)
    assert (report.height, report.width) == (32, 16)
    assert report.noise_gap_map.shape == (1, 16, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 60}, "only 50"),
        ({"num_images": 0}, "at least 1"),
        ({"height": 13}, "13 x None .height x width.: give multiples of 8"),
        ({"detectors": ["nothing"]}, "no detector is called 'nothing'"),
        ({"reference": "zero"}, "use one of negative, empty"),
    ],
)
def test_a_wrong_setting_is_said_before_the_first_prompt(pipe, settings, message):
    with pytest.raises(ValueError, match=message):
        memguard.scan(pipe, PROMPTS, **settings)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (diffusers.StableDiffusionInstructPix2PixPipeline, "no encode_prompt"),
        (diffusers.StableDiffusionImg2ImgPipeline, "a picture to start from"),
    ],
)
def test_a_pipeline_that_needs_a_picture_cannot_be_scanned(cls, reason):
    with pytest.raises(ValueError, match=f"{cls.__name__} makes pictures from text alone: it has {reason}"):
        memguard.scan(tiny.sd(cls=cls), PROMPTS)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (diffusers.HunyuanDiTControlNetPipeline, "a picture to start from"),
        (diffusers.IFPipeline, "no prepare_latents"),  # it makes pictures from text alone, in a way of its own
    ],
)
def test_what_memguard_does_not_know_is_not_said_of_the_pipeline(cls, reason, monkeypatch):
    monkeypatch.setattr(pipes, "denoiser", lambda pipe: tiny.unet())
    with pytest.raises(ValueError, match=f"does not know how {cls.__name__} makes pictures .* it has {reason}"):
        pipes.text_to_image(cls.__new__(cls))


def test_calibrate_keeps_the_scores_of_the_scan_each_prompt_with_a_seed_of_its_own(pipe):
    texts = ordinary_prompts()[:60]
    profile = memguard.calibrate(pipe, texts, num_inference_steps=STEPS, seed=7)
    scores = [
        report.findings[0].mean_rms
        for number, text in enumerate(texts)
        for report in memguard.scan(pipe, [text], seed=7 + number, num_inference_steps=STEPS)
    ]
    assert profile.distributions["text_noise_norm"].scores == pytest.approx(sorted(scores), rel=1e-5)
    same = [report.findings[0].mean_rms for report in memguard.scan(pipe, texts, seed=7, num_inference_steps=STEPS)]
    assert profile.distributions["text_noise_norm"].scores != pytest.approx(sorted(same), rel=1e-3)
    c = profile.conditions
    assert (c.latent, c.scheduler, c.dtype, c.num_steps) == ((8, 8), "DDIMScheduler", "float32", STEPS)
    (report,) = memguard.scan(pipe, texts[:1], num_inference_steps=STEPS, profile=profile)
    assert report.verdict in ("ordinary", "suspicious")
    assert report.findings[0].count == 60
    assert (c.negative, c.images, profile.note) == ("empty", 1, "")


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux"])
@pytest.mark.parametrize("images", [1, 2])
def test_prompts_with_seeds_of_their_own_score_in_one_forward_as_they_do_alone(name, images):
    pipe, calls = getattr(tiny, name)(), []
    settings = {"num_images": images, "num_inference_steps": STEPS, "negative_prompt": "blurry"}
    alone = [
        next(memguard.scan(pipe, [text], seed=7 + number, **settings)) for number, text in enumerate([*PROMPTS, None])
    ]
    getattr(pipe, "unet", getattr(pipe, "transformer", None)).register_forward_hook(lambda *call: calls.append(call))
    found = list(memguard.scan(pipe, [*PROMPTS, None], seed=7, batch_size=5, own_seeds=True, **settings))
    assert [report.seeds for report in found] == [report.seeds for report in alone] == [(7,), (8,), (9,), (10,), (11,)]
    for one, other in zip(found, alone, strict=True):
        assert one.findings[0].scores == pytest.approx(other.findings[0].scores, rel=1e-5)
        assert one.findings[0].status == other.findings[0].status
    assert len(calls) == 2  # with and without the prompts


def test_a_profile_holds_for_its_negative_prompt_and_number_of_images(pipe):
    texts = ordinary_prompts()[:50]
    settings = {"num_inference_steps": STEPS, "negative_prompt": "blurry"}
    profile = memguard.calibrate(pipe, texts, num_images=2, **settings)
    assert (profile.conditions.negative, profile.conditions.images) == (negative_of("blurry"), 2)

    def source(**changes):
        (report,) = memguard.scan(pipe, texts[:1], profile=profile, **{**settings, "num_images": 2, **changes})
        return report.findings[0].threshold_source

    assert source() == "profile of 50 ordinary prompts"
    assert source(negative_prompt=None).startswith("uncalibrated: the profile is for another negative prompt than this")
    assert source(num_images=1) == "uncalibrated: the profile is of means over 2 images, this run has 1"


def test_calibrate_needs_fifty_prompts(pipe):
    with pytest.raises(ProfileError, match="49 prompts; a profile needs at least 50"):
        memguard.calibrate(pipe, ["a red fox"] * 49)


def test_what_a_pipeline_changes_for_a_run_is_put_back_where_the_run_ends_early():
    from diffusers import StableDiffusionPAGPipeline

    pipe = StableDiffusionPAGPipeline(**tiny.sd().components, pag_applied_layers="mid", requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    before = dict(pipe.unet.attn_processors)
    list(memguard.scan(pipe, ["a red fox"], num_inference_steps=2, height=16, width=16))
    assert all(pipe.unet.attn_processors[name] is each for name, each in before.items())
    memguard.explain(pipe, "a red fox", num_inference_steps=2, height=16, width=16, steps=1)
    assert all(pipe.unet.attn_processors[name] is each for name, each in before.items())


def test_one_detector_to_calibrate_may_be_a_name_as_for_a_guard(pipe):
    texts = [f"{word} {i}" for i in range(15) for word in "a b c d".split()]
    profile = memguard.calibrate(pipe, texts, "text_noise_norm", num_inference_steps=STEPS)
    assert list(profile.distributions) == ["text_noise_norm"]
