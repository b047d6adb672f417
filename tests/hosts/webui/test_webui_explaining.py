"""Real A1111 and Forge: words, curve and maps of explained runs; detectors and references; nothing changes a byte."""

import numpy as np
import pytest
import torch

from memguard import Guard, explain
from memguard_pack.tests.hosts.webui.test_webui_mitigating import MEMORIZED, pipe, profile  # noqa: F401 fixtures
from memguard_pack.tests.hosts.webui.test_webui_watching import expected

PROMPT = "a red fox on a roof"


def words(report):
    found = report["attribution"]
    assert found["status"] == "ok", found
    return [span["text"] for span in found["spans"] if span["group"] == "word"], found["weights"]


def test_words_curve_and_maps_change_no_byte(server, pipe):  # noqa: F811
    plain, told = server.generate(), server.generate({"explain": "always"})
    assert np.array_equal(plain.pictures[0], told.pictures[0])
    (report,) = told.reports
    texts, weights = words(report)
    assert texts == PROMPT.split()
    assert len(report["curve"]) == 4 and all(rms > 0 for _, rms in report["curve"])
    old = [note for note in report["notes"] if "older than 1.10 and tells no script that a sampler starts" in note]
    assert ({"noise_gap", "bright_ending", "word 0"} <= set(report["maps"])) == (not old)
    assert report["attribution"]["notes"] == [] and report["notes"] == old
    # the words of the same model in diffusers, from other noise: the order of the heaviest words is that of the prompt
    other = explain(pipe, PROMPT, height=128, width=128, seed=3, num_images=4)
    ours = weights[: len(texts)]
    theirs = [weight for _, weight in other.words]
    assert np.corrcoef(ours, theirs)[0, 1] > 0.8


@pytest.mark.parametrize("more", [{"batch_size": 2}, {"sampler_name": "DDIM"}, {"sampler_name": "Heun"}])
def test_explained_runs_of_other_kinds(server, more):
    plain, told = server.generate(**more), server.generate({"explain": "always"}, **more)
    assert all(np.array_equal(a, b) for a, b in zip(plain.pictures, told.pictures, strict=True))
    texts, _ = words(told.reports[0])
    assert texts == PROMPT.split() and "bright_ending" in told.reports[0]["maps"]


def test_three_pictures_that_are_not_square_of_a_prompt_of_three_chunks(server):
    long = " ".join([PROMPT] * 30)  # 180 tokens
    more = {"batch_size": 3, "width": 192, "height": 128, "prompt": long}
    plain, told = server.generate(**more), server.generate({"explain": "always"}, **more)
    pairs = zip(plain.pictures[-3:], told.pictures[-3:], strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    (report,) = told.reports
    texts, weights = words(report)
    assert texts == long.split() and len(report["findings"][0]["scores"]) == 3
    assert report["attribution"]["notes"] == [] and report["notes"] == [] and report["error"] is None
    assert sum(span["group"] == "bos" for span in report["attribution"]["spans"]) == 1
    assert len(next(s for s in report["attribution"]["spans"] if s["group"] == "bos")["columns"]) == 3
    assert "bright_ending" in report["maps"] and min(weights) >= 0


def test_sub_prompts_have_rows_of_their_own(server):
    told = server.generate({"explain": "always"}, prompt="a red fox :1 AND a [blue:green:0.5] house :2")
    (report,) = told.reports
    found = report["attribution"]
    assert [(s["part"], s["text"]) for s in found["spans"] if s["group"] == "word"] == [
        *((0, word) for word in ("a", "red", "fox")),
        *((1, word) for word in ("a", "blue", "house")),
    ]
    assert max(found["weights"]) > 0


def test_a_flagged_run_is_explained_and_another_is_not(server):
    told = server.generate({"policy": "warn", "explain": "flagged"}, prompt=MEMORIZED, cfg_scale=5)
    assert told.reports[0]["verdict"] == "memorized"
    assert words(told.reports[0])[0]
    other = server.generate({"policy": "warn", "explain": "flagged"}, cfg_scale=5)
    assert other.reports[0]["attribution"] is None and other.reports[0]["extra_rows"] == 0
    assert len(other.reports[0]["curve"]) == 4


def test_a_check_explains(server):
    asked = {"prompt": PROMPT, "seed": 3, "steps": 4, "width": 128, "height": 128, "cfg_scale": 7.5}
    (report,) = server.post("/memguard/v1/check", asked | {"explain": "always"})["reports"]
    assert words(report)[0] == PROMPT.split()


@pytest.fixture
def trailing(pipe):  # noqa: F811
    """The pipeline with a schedule that begins where the WebUIs' does."""
    before = pipe.scheduler
    pipe.scheduler = type(before).from_config(before.config, timestep_spacing="trailing")
    yield pipe
    pipe.scheduler = before


@pytest.mark.parametrize(("name", "close"), [("attention_entropy", 1e-3), ("attention_entropy_late", 2e-2)])
def test_detectors_of_attention(server, trailing, name, close):
    plain, watched = server.generate(steps=6), server.generate({"detector": name}, steps=6)
    assert np.array_equal(plain.pictures[0], watched.pictures[0])
    assert watched.finding["detector"] == name and watched.finding["status"] == "ok", watched.finding
    guard = Guard([name])
    noise = torch.randn(4, 16, 16, generator=torch.Generator("cpu").manual_seed(3))[None]
    more = {"num_inference_steps": 6, "guidance_scale": 7.5, "height": 128, "width": 128, "output_type": "latent"}
    with guard.attach(trailing):
        trailing(PROMPT, latents=noise * 14.6146 / (1 + 14.6146**2) ** 0.5, **more)
    # the first step is the same; the samplers part ways before the last
    theirs = guard.report.findings[0].scores[0]
    assert watched.finding["scores"][0] == pytest.approx(theirs, rel=close)
    assert watched.reports[0]["extra_rows"] == 0


def test_the_empty_prompt_as_reference(server, pipe):  # noqa: F811
    plain = server.generate(negative_prompt="blue")
    watched = server.generate({"reference": "empty"}, negative_prompt="blue")
    assert np.array_equal(plain.pictures[0], watched.pictures[0])
    assert watched.finding["reference"] == "empty" and watched.reports[0]["extra_rows"] == 1
    assert watched.finding["scores"][0] == pytest.approx(expected(pipe, PROMPT, 3), rel=1e-3)


def test_a_score_at_cfg_1(server, pipe):  # noqa: F811
    plain, watched = server.generate(cfg_scale=1.0), server.generate({"reference": "empty"}, cfg_scale=1.0)
    assert np.array_equal(plain.pictures[0], watched.pictures[0])
    assert watched.finding["scores"][0] == pytest.approx(expected(pipe, PROMPT, 3), rel=1e-3)


def test_an_overlay_in_the_gallery(server):
    chosen = {"memguard_overlay": "end of prompt"}
    server.post("/sdapi/v1/options", chosen)
    try:
        plain, told = server.generate(), server.generate({"explain": "always"})
    finally:
        server.post("/sdapi/v1/options", {"memguard_overlay": "none"})
    assert len(plain.pictures) == 1 and len(told.pictures) == 2
    assert np.array_equal(plain.pictures[0], told.pictures[0])
    assert told.pictures[1].shape == (128 + 24, 128, 3)
    assert told.info["infotexts"][1] == "MemGuard overlay: end of prompt, last step"
