"""Real SD.Next, whose pipeline of diffusers the diffusers host watches.

SDNEXT_ROOT names the folder of its source, SDNEXT_PYTHON the interpreter; see sdnext.py.
"""

import base64
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from memguard import testbed
from memguard_pack.tests.hosts.webui.sdnext import SDNext, missing

MEMORIZED, ORDINARY = "Halley breakfast at noon - press kit", "a red fox on a roof"
SECOND = {"enable_hr": True, "hr_upscaler": "Latent Nearest", "hr_scale": 1.5, "hr_resize_mode": 1, "hr_force": True}
SECOND |= {"hr_second_pass_steps": 4, "hr_denoising_strength": 0.6}
HOOKS = [  # before there is a score
    "memguard.hosts.sdnext.Watch._begin",
    "memguard.hosts.sdnext.Watch._place",
    "memguard.hosts.sdnext.attach",
    "memguard.hosts.diffusers.watch._Watch._prepare",
    "memguard.hosts.diffusers.reader.Reader._read",
    "memguard.hosts.webui.session.Session.begin",
    "extension.host.adapter",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    why = missing()
    if why:
        pytest.skip(why)
    made = SDNext(tmp_path_factory.mktemp("sdnext"))
    yield made
    made.close()


@pytest.fixture(scope="module", autouse=True)
def nothing_left(server):
    yield
    assert server.left() and set(server.left()) == {0}


@pytest.fixture(scope="module")
def pipe():
    return testbed.pipeline()


@pytest.fixture(scope="module")
def plain(server):
    return {prompt: server.generate(prompt=prompt).pictures[0] for prompt in (MEMORIZED, ORDINARY)}


def expected(pipe, prompt, seed, negative=""):
    """The noise gap's norm at the largest noise level, by plain calls of the UNet in diffusers."""
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(seed))
    last = pipe.scheduler.alphas_cumprod[-1]
    sigma = float(((1 - last) / last).sqrt())
    x = noise * math.sqrt(sigma**2 + 1) / math.sqrt(sigma**2 + 1)
    with torch.no_grad():
        cond, uncond = pipe.encode_prompt([prompt], "cpu", 1, True, [negative])
        made = [pipe.unet(x, 999, encoder_hidden_states=each).sample for each in (cond, uncond)]
    return float((made[0] - made[1]).norm())


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one.pictures, other.pictures, strict=True))


@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "DPM++ 2M", "DDIM", "UniPC"])
def test_watching_changes_no_byte_and_scores(server, sampler):
    plain, watched = server.generate(sampler_name=sampler), server.generate({}, sampler_name=sampler)
    assert same(plain, watched) and plain.reports == []
    (report,) = watched.reports
    assert (report["host"], report["sampler"], report["extra_rows"]) == ("sdnext", sampler, 0)
    assert (report["prompt"], report["negative_prompt"], report["seeds"]) == (ORDINARY, "", [3])
    assert watched.finding["status"] == "ok" and report["error"] is None
    assert f"MemGuard score: {watched.finding['scores'][0]:.4g}" in watched.info["infotexts"][0]


def test_the_score_is_that_of_diffusers(server, pipe):
    watched = server.generate({}, negative_prompt="blue")
    assert watched.finding["scores"][0] == pytest.approx(expected(pipe, ORDINARY, 3, "blue"), rel=1e-3)
    assert watched.finding["timestep"] == pytest.approx(999, abs=0.5)


def test_each_picture_is_saved_with_its_own_score(server, pipe):
    plain, watched = server.generate(batch_size=2, n_iter=2), server.generate({}, batch_size=2, n_iter=2)
    assert same(plain, watched)
    assert [report["seeds"] for report in watched.reports] == [[3, 4], [5, 6]]
    scores = [expected(pipe, ORDINARY, seed) for seed in (3, 4, 5, 6)]
    assert len(watched.info["infotexts"]) == 4
    for text, score in zip(watched.info["infotexts"], scores, strict=True):
        assert float(text.split("MemGuard score: ")[1]) == pytest.approx(score, rel=2e-3)


def test_cfg_1_has_a_reason_and_with_the_empty_prompt_a_score(server, pipe):
    alone, spent = server.generate({}, cfg_scale=1.0), server.generate({"reference": "empty"}, cfg_scale=1.0)
    assert alone.finding["status"].startswith("cfg is 1, so the pipeline predicts nothing without the prompt")
    assert spent.finding["scores"][0] == pytest.approx(expected(pipe, ORDINARY, 3), rel=1e-3)
    assert spent.reports[0]["extra_rows"] == 1 and same(alone, spent)


def test_stop_lets_no_picture_out_and_says_why(server):
    made = server.generate({"policy": "stop"}, prompt=MEMORIZED, n_iter=2)
    assert made.pictures == [] and len(made.reports) == 1
    assert "looks memorized (score" in made.info["infotexts"][0]
    ordinary = server.generate({"policy": "stop"})
    assert len(ordinary.pictures) == 1 and ordinary.reports[0]["verdict"] == "ordinary"


def test_stop_in_the_second_pass_lets_the_first_one_s_picture_out_neither(server):
    made = server.generate({"policy": "stop"}, wish=f"late {HOOKS[0]}", **SECOND)
    assert made.pictures == [] and "because" in made.info["infotexts"][0]
    assert [report["findings"][0]["status"] == "ok" for report in made.reports] == [True, False]


def test_mitigate_changes_a_memorized_picture_and_no_other(server, plain):
    ordinary, made = (server.generate({"policy": "mitigate"}, prompt=text) for text in (ORDINARY, MEMORIZED))
    assert np.array_equal(ordinary.pictures[0], plain[ORDINARY]) and ordinary.reports[0]["attempts"] == []
    (report,) = made.reports
    assert (report["verdict"], report["verdict_after"], report["error"]) == ("memorized", "ordinary", None)
    assert not np.array_equal(made.pictures[0], plain[MEMORIZED]) and "mitigated by" in made.info["infotexts"][0]
    assert np.array_equal(server.generate(prompt=MEMORIZED).pictures[0], plain[MEMORIZED])


def test_mitigations_know_the_columns_of_a_plain_prompt_and_say_so_of_another(server):
    settings = {"policy": "mitigate", "mitigation": "padding", "sensitivity": 50}
    known, weighed = (server.generate(settings, prompt=text) for text in (MEMORIZED, f"({MEMORIZED}:1.1)"))
    assert known.reports[0]["attempts"][0]["scores"]
    assert "the prompt's tokens are not known" in weighed.reports[0]["attempts"][0]["changes"][0]


def test_the_second_pass_takes_over_the_first_one_s_verdict_and_mitigation(server):
    plain = server.generate(prompt=MEMORIZED, **SECOND)
    watched = server.generate({}, prompt=MEMORIZED, **SECOND)
    made = server.generate({"policy": "mitigate", "mitigation": "guidance_delay"}, prompt=MEMORIZED, **SECOND)
    assert same(plain, watched) and not same(plain, made)
    assert [report["width"] for report in watched.reports] == [128, 192]
    assert [report["verdict"] for report in watched.reports] == ["memorized", "memorized"]
    assert [report["attempts"][0]["mitigation"] for report in made.reports] == [
        "Guidance delay",
        "Guidance delay, as in the first pass",
    ]


def test_img2img_is_scored_and_not_judged(server):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)).save(buffer, "PNG")
    more = {"kind": "img2img", "init_images": [base64.b64encode(buffer.getvalue()).decode()]}
    more |= {"denoising_strength": 0.6, "steps": 6}
    plain, watched = server.generate(**more), server.generate({}, **more)
    assert same(plain, watched) and watched.finding["scores"][0] > 0
    assert watched.finding["verdict"] == "unknown" and "not from pure noise" in str(watched.finding)


def test_words_are_not_there_and_a_flagged_run_says_so(server):
    flagged, ordinary = (server.generate({"explain": "flagged"}, prompt=text) for text in (MEMORIZED, ORDINARY))
    assert "MemGuard names no words and draws no maps in SD.Next" in flagged.reports[0]["notes"]
    assert ordinary.reports[0]["notes"] == []


def test_a_prompt_that_changes_says_that_its_later_part_is_not_scored(server):
    plain, made = (server.generate(guard, prompt="a [fox:cat:0.5] on a roof") for guard in (None, {}))
    assert same(plain, made) and made.finding["scores"][0] > 0
    assert made.reports[0]["notes"] == [
        "the prompt changes during the run, and what comes after the first step is not scored"
    ]


def test_the_grid_s_axes_are_there(server):
    scripts = server.get("/sdapi/v1/script-info")
    listed = str([each["args"] for each in scripts if each["name"].startswith("xyz grid")])
    for axis in ("policy", "sensitivity", "mitigation", "strength"):
        assert f"[MemGuard] {axis}" in listed


@pytest.mark.parametrize("name", HOOKS)
def test_an_error_of_ours_costs_no_picture_and_under_stop_lets_none_out(server, plain, name):
    made = server.generate({}, wish=f"break {name}")
    assert np.array_equal(made.pictures[0], plain[ORDINARY])
    stopped = server.generate({"policy": "stop"}, wish=f"break {name}")
    assert stopped.pictures == [] and "because" in str(stopped.info["infotexts"])
    assert "is broken" not in str(made.info) + str(stopped.info)


def test_a_generation_that_is_interrupted_has_its_report(server):
    made = server.generate({}, wish="interrupt")
    assert made.reports[0]["findings"][0]["scores"] and made.reports[0]["verdict"] == "ordinary"


def test_settings_that_cannot_be_used_are_said(server, plain):
    made = server.generate({"policy": "destroy"})
    assert np.array_equal(made.pictures[0], plain[ORDINARY])
    assert "policy is 'destroy'; use one of observe" in made.info["infotexts"][0]


def test_a_check_and_a_profile_without_a_picture(server, pipe):
    small = {"width": 128, "height": 128}
    (report,) = server.post("/memguard/v1/check", {"prompt": ORDINARY, "seed": 3, **small})["reports"]
    assert report["findings"][0]["scores"][0] == pytest.approx(expected(pipe, ORDINARY, 3), rel=1e-3)
    words = [f"{number} small houses by a river" for number in range(50)]
    made = server.post("/memguard/v1/profiles", {"prompts": words, "negative_prompt": "blue", **small})
    (profile,) = made["profiles"]
    scores = profile["distributions"]["text_noise_norm"]["scores"]
    assert profile["conditions"]["model"] == report["model"] and len(scores) == 50
    first = expected(pipe, words[0], 0, "blue") / math.sqrt(4 * 16 * 16)
    assert any(score == pytest.approx(first, rel=1e-3) for score in scores)
    assert server.generate({}, negative_prompt="blue").finding["verdict"] != "unknown"
