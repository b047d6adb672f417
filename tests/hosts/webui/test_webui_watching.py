"""Real A1111 and Forge: watching changes no byte, and every run has a score or a reason."""

import base64
import io
import json
import math
import re
import urllib.error

import numpy as np
import pytest
import torch

from memguard import testbed
from memguard.calibration import Conditions, Profile, fit
from tests.spread import spread

SAMPLERS = ("Euler", "Euler a", "Heun", "DPM++ 2M", "DPM++ SDE", "DDIM", "UniPC", "PLMS", "LCM", "Restart")
PROMPT = "a red fox on a roof"


@pytest.fixture(scope="module", autouse=True)
def said_before(server):
    """Length of the server's log before this file: another breaks hooks of ours on purpose, on the same server."""
    return len(server.said())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_watching_changes_no_byte_and_scores(server, sampler):
    plain = server.generate(sampler_name=sampler)
    watched = server.generate({}, sampler_name=sampler)
    assert all(np.array_equal(a, b) for a, b in zip(plain.pictures, watched.pictures, strict=True))
    assert plain.reports == []
    (report,) = watched.reports
    assert report["host"] == server.called and report["sampler"] == sampler and report["extra_rows"] == 0
    assert watched.finding["status"] == "ok", watched.finding
    assert len(watched.finding["scores"]) == 1 and watched.finding["scores"][0] > 0
    assert report["error"] is None
    assert f"MemGuard score: {watched.finding['scores'][0]:.4g}" in watched.info["infotexts"][0]


def rows(server, *args, **changes):
    """The rows that the network was asked for in a generation, as the neighbour counts them."""
    before = len(server.said())
    server.generate(*args, **changes)
    return sum(int(found) for found in re.findall(r"neighbour: (\d+) rows", server.said()[before:]))


@pytest.mark.parametrize(
    "more", [{}, {"sampler_name": "Heun"}, {"sampler_name": "DDIM"}, {"batch_size": 2, "n_iter": 2}]
)
def test_watching_costs_no_row(server, more):
    plain = rows(server, **more)
    assert plain > 0 and rows(server, {}, **more) == plain
    assert rows(server, {"explain": "flagged"}, **more) == plain


@pytest.fixture(scope="module")
def pipe():
    return testbed.pipeline(wide=True)


def expected(pipe, prompt, seed, negative=""):
    """The noise gap's norm at the largest noise level, by plain calls of the UNet in diffusers."""
    torch.manual_seed(seed)
    noise = torch.randn(4, 16, 16)[None]
    last = pipe.scheduler.alphas_cumprod[-1]
    sigma = float(((1 - last) / last).sqrt())
    x = noise * sigma / math.sqrt(sigma**2 + 1)
    with torch.no_grad():
        cond, uncond = pipe.encode_prompt([prompt], "cpu", 1, True, [negative])
        made = [pipe.unet(x, 999, encoder_hidden_states=each).sample for each in (cond, uncond)]
    return float((made[0] - made[1]).norm())


def test_the_score_is_that_of_diffusers(server, pipe):
    watched = server.generate({}, prompt=PROMPT, negative_prompt="blue")
    assert watched.finding["scores"][0] == pytest.approx(expected(pipe, PROMPT, 3, "blue"), rel=1e-3)
    assert watched.finding["sigma"] == pytest.approx(14.6146, rel=1e-4)
    assert watched.finding["timestep"] == pytest.approx(999, abs=0.5)


def test_a_batch_has_scores_by_image_and_prompts_by_number(server, pipe):
    two = server.generate({}, batch_size=2, n_iter=2)
    assert [report["seeds"] for report in two.reports] == [[3, 4], [5, 6]]
    scores = [score for report in two.reports for score in report["findings"][0]["scores"]]
    assert scores == pytest.approx([expected(pipe, PROMPT, seed) for seed in (3, 4, 5, 6)], rel=1e-3)
    for text, score in zip(two.info["infotexts"], scores, strict=True):
        assert f"MemGuard score: {score:.4g}" in text


def test_sub_prompts_are_their_mean_by_weight(server):
    both = server.generate({}, prompt="a red fox :1 AND a blue house :1")
    same = server.generate({}, prompt="a red fox :1 AND a red fox :3")
    alone = server.generate({}, prompt="a red fox")
    other = server.generate({}, prompt="a blue house")
    assert same.finding["scores"] == pytest.approx(alone.finding["scores"], rel=1e-4)
    assert both.finding["scores"][0] < (alone.finding["scores"][0] + other.finding["scores"][0]) / 2


def test_prompts_of_unequal_length(server, pipe):
    long = " ".join([PROMPT] * 20)
    watched = server.generate({}, prompt=long)
    assert watched.finding["status"] == "ok"
    assert watched.finding["scores"][0] > 0


def test_cfg_1(server):
    watched = server.generate({}, cfg_scale=1.0)
    if server.forge:
        assert watched.finding["status"] == "cfg is 1, so the WebUI predicts nothing without the prompt"
    else:
        assert watched.finding["status"] == "ok"


def test_a_skipped_prediction_is_a_reason(server):
    """Neo never leaves it out at the first step, which is the scored one."""
    watched = server.generate({}, override_settings={"skip_early_cond": 0.5})
    reason = "ok" if server.host == "neo" else "the WebUI skipped the prediction without the prompt"
    assert watched.finding["status"].startswith(reason)


def test_hires_has_a_report_for_each_pass(server):
    more = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": server.upscaler, "denoising_strength": 0.7}
    more |= {"hr_second_pass_steps": 4, "hr_additional_modules": ["Use same choices"], "hr_cfg": 7.5}
    if server.host == "a1111":
        del more["hr_additional_modules"], more["hr_cfg"]
    plain, watched = server.generate(**more), server.generate({}, **more)
    assert np.array_equal(plain.pictures[0], watched.pictures[0])
    first, second = watched.reports
    assert (first["width"], second["width"]) == (128, 192)
    assert [report["findings"][0]["status"] for report in watched.reports] == ["ok", "ok"]
    assert second["findings"][0]["verdict"] == "unknown"
    assert second["findings"][0]["sigma"] < first["findings"][0]["sigma"]


def test_img2img_is_scored_and_not_judged(server):
    buffer = io.BytesIO()
    from PIL import Image

    Image.fromarray(np.full((128, 128, 3), 120, np.uint8)).save(buffer, "PNG")
    picture = base64.b64encode(buffer.getvalue()).decode()
    more = {"init_images": [picture], "denoising_strength": 0.5}
    plain = server.generate(kind="img2img", **more)
    watched = server.generate({}, kind="img2img", **more)
    assert np.array_equal(plain.pictures[0], watched.pictures[0])
    assert watched.finding["status"] == "ok" and watched.finding["verdict"] == "unknown"
    assert "not from pure noise" in watched.finding["threshold_source"]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"policy": "destroy"}, "off, because policy is 'destroy'; use one of observe, warn, stop, mitigate"),
        ({"steps": 0}, "off, because steps is 0; give a whole number of at least 1"),
    ],
)
def test_bad_settings_are_said_and_cost_no_picture(server, settings, line):
    plain, watched = server.generate(), server.generate(settings)
    assert np.array_equal(plain.pictures[0], watched.pictures[0])
    assert line in watched.info["infotexts"][0].replace('"', "")
    assert watched.finding["status"] == line.replace("off, because", "the settings cannot be used:")
    assert watched.finding["scores"] == []


def test_stop_fails_closed(server):
    """Settings that cannot be read make no picture where a stop was asked for."""
    stopped = server.generate({"policy": "stop", "steps": 0})
    assert stopped.coded == [] or not np.array_equal(stopped.pictures[0], server.generate().pictures[0])
    assert "off, because steps is 0; give a whole number of at least 1" in stopped.info["infotexts"][0]
    assert len(server.generate().coded) == 1


def calibrated(server):
    """Let every prompt look memorized: a profile of low scores for this checkpoint, below models/memguard."""
    made = server.generate({})
    finding, report = made.finding, made.reports[0]
    profile = Profile(
        Conditions(
            report["model"], "sd15", (16, 16), finding["sigma"], finding["timestep"], 1, 4, "", "negative", "", 7.5
        ),
        {"text_noise_norm": fit(spread(finding["rms"][0] / 8))},
    )
    folder = server.folder / "models" / "memguard"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{report['model']}-test.json"
    path.write_text(profile.to_json(), encoding="utf-8")
    return path


@pytest.fixture
def memorized(server):
    path = calibrated(server)
    yield
    path.unlink()


def test_warn_marks_the_picture_and_changes_no_byte(server, memorized):
    plain, watched = server.generate(), server.generate({"policy": "warn"})
    assert np.array_equal(plain.pictures[0], watched.pictures[0])
    assert watched.reports[0]["verdict"] == "memorized"
    assert "looks memorized (score" in watched.info["infotexts"][0]


def test_stop_ends_after_the_first_step_and_the_server_lives(server, memorized):
    stopped = server.generate({"policy": "stop"}, n_iter=2, steps=8)
    (report,) = stopped.reports
    assert report["verdict"] == "memorized" and report["findings"][0]["per_step"]
    assert len(stopped.coded) <= 1
    assert "looks memorized" in json.dumps(stopped.info)
    assert not np.array_equal(server.generate(steps=8).pictures[0], (stopped.pictures or [0])[0])


def test_a_check_scores_what_a_generation_scores(server):
    made = server.generate({}, width=128, height=128)
    asked = {"prompt": PROMPT, "seed": 3, "steps": 4, "width": 128, "height": 128, "cfg_scale": 7.5}
    (report,) = server.post("/memguard/v1/check", asked)["reports"]
    assert report["findings"][0]["scores"] == pytest.approx(made.finding["scores"], rel=1e-5)
    assert report["policy"] == "observe" and report["error"] is None
    again = server.generate({})
    assert np.array_equal(made.pictures[0], again.pictures[0])


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"prompt": " "}, "prompt is empty; give a text"),
        ({"prompt": "a", "colour": 1}, "'colour' is no setting of a check; there are prompt, negative_prompt"),
    ],
)
def test_a_check_refuses_bad_input_in_one_line(server, body, line):
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.post("/memguard/v1/check", body)
    assert refused.value.code == 400
    assert json.load(refused.value)["detail"].startswith(line)


def test_runs_with_a_verdict_are_remembered(server, memorized):
    server.generate({"policy": "observe"})
    assert (server.folder / "memguard" / "prompts.sqlite3").stat().st_size > 0


def test_the_neighbour_was_there(server):
    """All of these tests ran beside an extension that takes names, patches attention and fails."""
    server.generate({})
    for line in ("process fails", "attention is patched", "callback fails"):
        assert f"neighbour: {line}" in server.said()


def test_the_server_printed_no_error(server, said_before):
    said = server.said()[said_before:]
    assert "memguard" not in "".join(line for line in said.splitlines() if "rror" in line).lower()
