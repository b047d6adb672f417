"""Real A1111 and Forge: long prompts, different prompts in one batch, and pictures that are painted in part."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from memguard_pack.tests.hosts.webui.server import Made
from memguard_pack.tests.hosts.webui.test_webui_mitigating import MEMORIZED, ORDINARY, mitigated, written
from memguard_pack.tests.hosts.webui.test_webui_watching import calibrated

LONG = " ".join([MEMORIZED] * 12)  # two chunks of 77 tokens; the empty negative prompt has one
# what the test bed scores for it under each mitigation, in both hosts and in every layout of the rows
SCORES = {"attention_scaling": 2.8773, "padding": 2.6810, "spike_attenuation": 2.7556}
BEFORE = 2.7581
KEEP = {"neighbour": "keep"}  # these hardly lower the test bed's scores, and would be taken back
_pictures: dict[str, Made] = {}  # by mitigation: the first layout's, which the others must agree with
LAYOUTS = [{}, {"pad_cond_uncond": True}, {"batch_cond_uncond": False}]


@pytest.fixture
def memorized(server):
    """Every prompt looks memorized."""
    path = calibrated(server)
    yield
    path.unlink()


@pytest.fixture
def profile(server):
    path = written(server)
    yield
    path.unlink()


@pytest.fixture(params=LAYOUTS, ids=lambda changed: next(iter(changed), "default"))
def layout(server, request):
    """A way in which A1111 puts rows of unequal length together."""
    if server.host != "a1111" and request.param:
        pytest.skip("Forge repeats prompts to a common length, always")
    known = server.get("/sdapi/v1/options")
    server.post("/sdapi/v1/options", request.param)
    yield request.param
    server.post("/sdapi/v1/options", {name: known[name] for name in request.param})


@pytest.mark.parametrize("name", SCORES)
def test_long_prompts_beside_a_short_negative(server, memorized, layout, name):
    plain = server.generate(prompt=LONG)
    made = mitigated(server, name, prompt=LONG, **KEEP)
    (report,) = made.reports
    (attempt,) = report["attempts"]
    assert report["error"] is None and report["notes"] == [] and attempt["kept"]
    assert not [line for line in attempt["changes"] if "was left out" in line], attempt
    assert report["scores_before"] == pytest.approx([BEFORE], rel=1e-3)
    assert attempt["scores"] == pytest.approx([SCORES[name]], rel=1e-3)
    assert difference(plain, made) > 0
    assert difference(made, _pictures.setdefault(name, made)) <= 2
    assert difference(plain, server.generate(prompt=LONG)) == 0


def difference(a, b):
    """The largest difference of two pictures, in grey levels of 255."""
    return int(np.abs(a.pictures[0].astype(int) - b.pictures[0].astype(int)).max())


def test_different_prompts_in_one_batch(server, profile):
    asked = {"neighbour": f"prompts {MEMORIZED}|{ORDINARY}", "batch_size": 2}
    plain, watched = server.generate(**asked), server.generate({}, **asked)
    assert all(np.array_equal(a, b) for a, b in zip(plain.pictures, watched.pictures, strict=True))
    (report,) = watched.reports
    assert report["prompt"] == f"{MEMORIZED} | {ORDINARY}" and report["seeds"] == [3, 4]
    alone = [server.generate({}, prompt=MEMORIZED, seed=3), server.generate({}, prompt=ORDINARY, seed=4)]
    assert watched.finding["scores"] == pytest.approx([made.finding["scores"][0] for made in alone], rel=1e-3)
    for text, made in zip(watched.info["infotexts"][-2:], alone, strict=True):
        assert f"MemGuard score: {made.finding['scores'][0]:.4g}" in text
    assert report["verdict"] == "memorized"


def test_of_different_prompts_the_ordinary_one_keeps_its_picture(server, profile):
    asked = {"neighbour": f"keep; prompts {MEMORIZED}|{ORDINARY}", "batch_size": 2}
    plain, made = server.generate(**asked), mitigated(server, "attention_scaling", **asked)
    (report,) = made.reports
    assert report["notes"] == ["only images 1 look memorized; the others were left alone"]
    assert report["error"] is None and report["attempts"][0]["kept"]
    assert not np.array_equal(plain.pictures[-2], made.pictures[-2])
    assert np.array_equal(plain.pictures[-1], made.pictures[-1])


def test_a_script_that_generates_several_times_keeps_every_report(server):
    lines = f"{MEMORIZED}\n{ORDINARY}"
    args = [False, False, "start", lines, *([False] if server.host == "forge" else [])]  # Forge would join them in one
    more = {"script_name": "Prompts from file or textbox", "script_args": args, "prompt": ""}
    plain, watched = server.generate(**more), server.generate({}, **more)
    assert all(np.array_equal(a, b) for a, b in zip(plain.pictures, watched.pictures, strict=True))
    assert [report["prompt"] for report in watched.reports] == [MEMORIZED, ORDINARY]
    for text, report in zip(watched.info["infotexts"], watched.reports, strict=True):
        assert f"MemGuard score: {report['findings'][0]['scores'][0]:.4g}" in text


def coded(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(("strength", "verdict"), [(0.5, "unknown"), (1.0, "memorized")])
def test_inpaint_is_judged_only_where_it_starts_from_full_noise(server, memorized, strength, verdict):
    mask = np.zeros((128, 128, 3), np.uint8)
    mask[32:96, 32:96] = 255
    more = {"init_images": [coded(np.full((128, 128, 3), 120, np.uint8))], "mask": coded(mask), "kind": "img2img"}
    more |= {"denoising_strength": strength, "mask_blur": 4, "inpainting_fill": 1}
    plain, watched = server.generate(**more), server.generate({"policy": "warn"}, **more)
    # Forge's noise of the part that is kept has no seed, so two of its pictures differ without MemGuard, too
    assert difference(plain, watched) <= (2 if server.forge else 0)
    assert watched.finding["status"] == "ok" and watched.finding["scores"][0] > 0
    assert watched.finding["verdict"] == verdict and watched.reports[0]["error"] is None
    assert ("not from pure noise" in watched.finding["threshold_source"]) == (verdict == "unknown")
