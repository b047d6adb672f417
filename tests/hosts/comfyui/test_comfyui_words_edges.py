"""Words and maps of unusual runs: batches, pictures that are not square, long prompts, fp16, errors."""

import pytest
import torch

from memguard_pack.memguard.hosts.comfyui import maps
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.test_comfyui_explain import PROMPT, encode, parts  # noqa: F401
from memguard_pack.tests.hosts.comfyui.test_comfyui_words import run, texts  # noqa: F401

LONG = "fox " * 160
WIDE = torch.zeros((3, 4, 8, 14))


def go(patcher, clip, negative, watch, text=PROMPT, image=WIDE, **more):
    """Sample without and with a guard that explains; return both latents and the report."""
    with torch.inference_mode():
        positive = encode(clip, text)
        plain = tiny.sample(patcher, positive, negative, image, **more)
        watched, watcher = watch(patcher, detectors=["text_noise_norm", "attention_entropy"])
        watcher.clip, watcher.explain = clip, "always"
        seen = tiny.sample(watched, positive, negative, image, **more)
    return plain, seen, watcher.report_of(seen)


def clean(network):
    return not any(part._forward_hooks or "forward" in part.__dict__ for part in network.modules())


def test_three_pictures_that_are_not_square(parts, texts, watch):  # noqa: F811
    patcher, clip, negative = parts()
    plain, seen, report = go(patcher, clip, negative, watch)
    assert torch.equal(plain, seen) and report.error is None and report.extra_rows == 3
    assert [len(finding.scores) for finding in report.findings] == [3, 3]
    for show in ("noise_gap", "bright_ending", "word"):
        assert maps.chosen(report, show)[0].shape == (3, 8, 14)
    alone = go(patcher, clip, negative, watch, image=WIDE[:1])[2]
    assert report.findings[1].scores[0] == pytest.approx(alone.findings[1].scores[0], rel=1e-4)


def test_three_chunks(parts, texts, watch):  # noqa: F811
    texts(LONG)
    patcher, clip, negative = parts()
    plain, seen, report = go(patcher, clip, negative, watch, LONG)
    assert torch.equal(plain, seen) and report.error is None
    found = report.attribution
    assert len(found.words) == 160 and min(weight for _, weight in found.words) > 0 and len(found.token_scores) == 231
    assert {"word 0", "word 159", "bright_ending"} <= set(report.maps)
    assert report.findings[1].status == "ok"


def test_cfg_1_has_a_reason_and_no_words(parts, texts, watch):  # noqa: F811
    plain, seen, report = go(*parts(), watch, cfg=1.0)
    assert torch.equal(plain, seen) and report.attribution is None and report.maps == () and report.curve == ()
    assert all(finding.status.startswith("cfg is 1") for finding in report.findings)


def test_half_precision_is_within_two_percent(parts, texts, watch):  # noqa: F811
    patcher, clip, negative = parts()
    full = go(patcher, clip, negative, watch)[2].attribution
    patcher, clip, negative = parts()
    network = patcher.model
    with torch.inference_mode():
        network.diffusion_model.half()
        network.diffusion_model.dtype = torch.float16
        network.manual_cast_dtype = None
        plain, seen, report = go(patcher, clip, negative, watch)
    assert torch.equal(plain, seen) and report.error is None
    assert report.attribution.weights == pytest.approx(full.weights, rel=0.02)


@pytest.fixture
def failing(parts):  # noqa: F811
    """A function that makes one call of a network fail: failing(0) -> patcher, clip, negative, handle of the hook."""

    def build(call):
        patcher, clip, negative = parts()
        calls = []

        def fail(*_):
            calls.append(1)
            if len(calls) == call + 1:
                raise ValueError("boom")

        return patcher, clip, negative, patcher.model.diffusion_model.register_forward_pre_hook(fail)

    return build


def test_an_error_of_the_sampler_s_call_leaves_nothing_behind(failing, texts, watch):  # noqa: F811
    patcher, clip, negative, handle = failing(2)  # the call after the gradient's
    network = patcher.model.diffusion_model
    with torch.inference_mode():
        watched, watcher = watch(patcher)
        watcher.clip, watcher.explain = clip, "always"
        with pytest.raises(ValueError, match="boom"):
            tiny.sample(watched, encode(clip), negative, WIDE)
        handle.remove()
        assert clean(network) and all(weight.is_inference() for weight in network.parameters())
        plain, seen = (tiny.sample(each, encode(clip), negative, WIDE) for each in (patcher, watched))
    assert torch.equal(plain, seen)


def test_an_error_of_the_gradient_s_call_costs_no_picture(failing, texts, watch):  # noqa: F811
    patcher, clip, negative, handle = failing(1)  # the second call is the gradient's
    network = patcher.model.diffusion_model
    with torch.inference_mode():
        watched, watcher = watch(patcher)
        watcher.clip, watcher.explain = clip, "always"
        seen = tiny.sample(watched, encode(clip), negative, WIDE)
        handle.remove()
        assert clean(network) and all(weight.is_inference() for weight in network.parameters())
        assert torch.equal(tiny.sample(patcher, encode(clip), negative, WIDE), seen)
    report = watcher.report_of(seen)
    assert report.findings[0].scores and report.attribution.method == "attention"
    assert report.attribution.notes == ("the gradient failed (an error inside MemGuard); attention stood in",)


def test_an_error_while_words_are_weighed_costs_no_picture(parts, texts, watch, monkeypatch):  # noqa: F811
    from memguard_pack.memguard.hosts.comfyui import explanation

    def broken(*_, **__):
        raise KeyError("nose")

    monkeypatch.setattr(explanation.Weighing, "take", broken)
    plain, seen, report = go(*parts(), watch)
    assert torch.equal(plain, seen) and report.error == "KeyError: 'nose'" and report.findings[0].scores
