"""Check Prompt scores what the sampler will score, and Calibrate measures what its profile then judges."""

import comfy.samplers
import folder_paths
import pytest
import torch

from memguard_pack.memguard import Guard
from memguard_pack.memguard.calibration import ProfileError, ordinary_prompts
from memguard_pack.memguard.guard import MemorizationStop
from memguard_pack.memguard.hosts.comfyui import preflight, profiles
from memguard_pack.tests.hosts.comfyui import tiny

SD15 = tiny.build("sd15")
POSITIVE, NEGATIVE = tiny.prompt(seed=1), tiny.prompt(seed=2)


def sampled(watch, kind, model, image, **more):
    watched, made = watch(model)
    seen = tiny.sample(watched, tiny.prompt(kind, 1), tiny.prompt(kind, 2), image, **more)
    return made.report_of(seen).findings[0]


@pytest.mark.parametrize("kind", ["sd15", "vpred", "sdxl", "sd3", "flux"])
def test_the_check_is_the_sampler_s_first_step_exactly(kind, watch, rows):
    model, image = tiny.build(kind), tiny.latent(kind, batch=2)
    expected = sampled(watch, kind, model, image, seed=11)
    with rows(model) as spent:
        report = preflight.check(Guard(), model, tiny.prompt(kind, 1), tiny.prompt(kind, 2), {"samples": image}, [11])
    # the scheduler's own sigma is some 1e-7 off the model's largest; v-prediction divides by it once more
    assert report.findings[0].scores == pytest.approx(expected.scores, rel=2e-6 if kind == "vpred" else 1e-6)
    assert sum(spent) == 4  # one pair per image


def test_several_seeds_are_scored_as_one_batch(watch):
    image = tiny.latent()
    expected = [sampled(watch, "sd15", SD15, image, seed=seed).scores[0] for seed in (3, 4, 5)]
    report = preflight.check(Guard(), SD15, POSITIVE, NEGATIVE, {"samples": image}, [3, 4, 5])
    assert report.findings[0].scores == pytest.approx(expected, rel=1e-6)
    assert (report.seeds, report.family, report.width, report.host) == ((3, 4, 5), "sd15", 64, "comfyui")


def test_the_sampler_s_sigmas_and_mask_and_picture(watch):
    image = torch.randn((1, 4, 8, 8), generator=torch.manual_seed(8))
    mask = torch.zeros((1, 1, 8, 8))
    mask[..., :4] = 1
    sigmas = comfy.samplers.KSampler(SD15, 6, "cpu", "euler", "normal", 0.5, {}).sigmas
    expected = sampled(watch, "sd15", SD15, image, denoise=0.5, steps=6, noise_mask=mask)
    latent = {"samples": image, "noise_mask": mask}
    report = preflight.check(Guard(), SD15, POSITIVE, NEGATIVE, latent, [5], sigmas)
    assert report.findings[0].scores == expected.scores  # to the last bit
    assert report.findings[0].sigma == expected.sigma


def test_batch_indices_pick_the_same_noise(watch):
    latent = {"samples": tiny.latent(batch=1), "batch_index": [2]}
    report = preflight.check(Guard(), SD15, POSITIVE, NEGATIVE, latent, [5])
    batch = preflight.check(Guard(), SD15, POSITIVE, NEGATIVE, {"samples": tiny.latent(batch=3)}, [5])
    assert report.findings[0].scores[0] == pytest.approx(batch.findings[0].scores[2], rel=1e-5)


def test_sigmas_without_a_step_get_one_line():
    with pytest.raises(ValueError, match="^sigmas holds no step; connect the SIGMAS"):
        preflight.check(Guard(), SD15, POSITIVE, NEGATIVE, {"samples": tiny.latent()}, [5], torch.tensor([14.6]))


def test_a_prompt_that_does_not_act_has_a_reason():
    late = [[POSITIVE[0][0], {"start_percent": 0.5, "end_percent": 1.0}]]
    report = preflight.check(Guard(), SD15, late, NEGATIVE, {"samples": tiny.latent()}, [5])
    assert report.findings[0].status == "prompt not active at step 0"


# --- calibration ---------------------------------------------------------------------------------------------------


class Clip:
    """A text encoder: every text has a vector of its own."""

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        return tiny.prompt(seed=sum(text.encode()) + len(text))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """models/memguard in a folder of the test's own."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "memguard", raising=False)
    profiles.register()
    yield tmp_path / "models" / "memguard"
    folder_paths.folder_names_and_paths.pop("memguard")


def test_a_profile_is_written_found_and_judges_the_next_run(folder, watch, rows):
    latent = {"samples": tiny.latent()}
    with rows(SD15) as spent:
        saved = profiles.calibrate(SD15, Clip(), latent, name="tiny")
    assert sum(spent) == 2 * len(ordinary_prompts())
    assert [p.conditions.negative for p in saved] == ["empty", "empty"]
    assert sorted(folder.glob("*.json")) == sorted(folder / name for name in profiles.names())
    assert [p.conditions.reference for p in saved] == ["negative", "empty"]
    assert saved[0].distributions["text_noise_norm"].count == len(ordinary_prompts())
    watched, made = watch(SD15)
    found = made.report_of(tiny.sample(watched, Clip().encode_from_tokens_scheduled("a"), NEGATIVE, tiny.latent()))
    assert found.findings[0].threshold_source == f"profile of {len(ordinary_prompts())} ordinary prompts"
    assert 0 < found.findings[0].percentile < 100


def test_the_profile_is_of_the_first_step_that_the_prompts_really_have(folder):
    clip = Clip()
    texts = ordinary_prompts()[:60]
    (saved,) = profiles.calibrate(SD15, clip, {"samples": tiny.latent()}, negative=NEGATIVE, seed=40, texts=texts)
    assert saved.conditions.negative.startswith("unknown") and saved.conditions.images == 1
    rms = []
    for number, text in enumerate(texts):
        x, sigma = tiny.start(SD15, tiny.latent(), seed=40 + number)
        gap = tiny.gap(SD15, clip.encode_from_tokens_scheduled(text), NEGATIVE, x, sigma)
        rms.append(gap.pow(2).mean().sqrt())
    found = saved.distributions["text_noise_norm"].scores
    assert found == pytest.approx(sorted(float(value) for value in rms), rel=1e-3)


def test_own_prompts_take_the_place_of_the_shipped_ones(folder, rows):
    latent = {"samples": tiny.latent()}
    with rows(SD15) as spent:
        saved = profiles.calibrate(SD15, Clip(), latent, texts=[f"plain sentence {i}" for i in range(50)])
    assert sum(spent) == 100 and saved[0].distributions["text_noise_norm"].count == 50
    with pytest.raises(ProfileError, match="^49 prompts, one per line; a profile needs at least 50, or none for ours"):
        profiles.calibrate(SD15, Clip(), latent, texts=["plain"] * 49)


def test_a_lora_cannot_be_calibrated_into_the_checkpoint_s_profile(folder):
    model = SD15.clone()
    key = "diffusion_model.out.2.weight"
    model.add_patches({key: (torch.zeros_like(dict(SD15.model.named_parameters())[key]),)}, 1.0)
    with pytest.raises(ProfileError, match="^model has a LoRA or another patch; connect MemGuard Calibrate to"):
        profiles.calibrate(model, Clip(), {"samples": tiny.latent()})


def test_stop_ends_a_workflow_before_any_sampling(folder, rows):
    latent = {"samples": tiny.latent()}
    (saved,) = profiles.calibrate(SD15, Clip(), latent, negative=NEGATIVE)
    loud = [[POSITIVE[0][0] * 40, {}]]
    with rows(SD15) as spent, pytest.raises(MemorizationStop, match="^MemGuard: looks memorized"):
        preflight.check(Guard(policy="stop", profile=saved), SD15, loud, NEGATIVE, latent, [5])
    assert sum(spent) == 2


def test_a_profile_that_is_not_there_gets_one_line(folder):
    with pytest.raises(ProfileError, match="^profile 'x.json' is not below models/memguard; run MemGuard Calibrate"):
        profiles.path_of("x.json")
