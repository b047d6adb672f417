"""Layouts: there and back, scores that need none, maps and local guidance that do."""

import math

import pytest
import torch

from memguard.attributions.moment import Encoded
from memguard.detectors.text_noise_norm import detect, gap_map
from memguard.layout import FRAMES, Layout
from memguard.mitigations.base import Step
from memguard.mitigations.local_guidance import Limiter, LocalGuidance
from memguard.records import StepEvidence

VIDEO, SOUND = (4, 3, 6, 8), (5, 7)  # C, T, h, w and C, n
BOTH = Layout(streams=(VIDEO, SOUND))
TOKENS = Layout("b (h w) (c p q)", "b c (h p) (w q)", (("h", 3), ("w", 4), ("p", 2), ("q", 2)))
LAYOUTS = {
    "picture": (Layout(), (2, 4, 6, 8), [(2, 4, 6, 8)], (2, 4, 6, 8)),
    "frames": (Layout(), (2, 4, 3, 6, 8), [(2, 4, 3, 6, 8)], (2, 4, 18, 8)),
    "frames first": (Layout("b t c h w", FRAMES), (2, 3, 4, 6, 8), [(2, 4, 3, 6, 8)], (2, 4, 18, 8)),
    "tokens": (TOKENS, (2, 12, 16), [(2, 4, 6, 8)], (2, 4, 6, 8)),
    "sound": (Layout(), (2, 5, 7), [(2, 5, 7)], (2, 5, 1, 7)),
    "both": (BOTH, (2, 1, math.prod(VIDEO) + math.prod(SOUND)), [(2, *VIDEO), (2, *SOUND)], (2, 4, 18, 8)),
}


def pair(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def evidence(cond, uncond, **more):
    facts = {"step": 0, "num_steps": 20, "sigma": 14.6, "sigma_max": 14.6, "timestep": 981.0}
    return StepEvidence(**facts, noise_cond=cond, noise_uncond=uncond, **more)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_leads_there_and_back(name):
    layout, own, shapes, picture = LAYOUTS[name]
    tensor = torch.arange(float(math.prod(own))).reshape(own)
    parts = layout.parts(tensor)
    assert [tuple(part.shape) for part in parts] == shapes
    assert torch.equal(layout.whole(parts), tensor)
    assert tuple(layout.picture(tensor).shape) == picture


def test_streams_lie_one_after_the_other_as_a_host_packs_them():
    video, sound = torch.randn(2, *VIDEO), torch.randn(2, *SOUND)
    packed = torch.cat([video.reshape(2, 1, -1), sound.reshape(2, 1, -1)], -1)
    assert torch.equal(BOTH.whole([video, sound]), packed)
    assert torch.equal(BOTH.parts(packed)[1], sound)


def test_frames_lie_below_each_other_in_a_picture():
    frames = torch.arange(24.0).reshape(1, 2, 3, 2, 2)
    assert torch.equal(Layout().picture(frames)[:, :, 2:4], frames[:, :, 1])
    assert torch.equal(Layout().picture(frames[:, :, 0]), frames[:, :, 0])


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_score_is_the_same_however_values_lie(name):
    layout, own, _, picture = LAYOUTS[name]
    cond, uncond = pair(own)
    finding = detect([evidence(cond, uncond, layout=layout)])
    gap = (cond - uncond).double()
    assert finding.scores == pytest.approx([float(each.norm()) for each in gap], rel=1e-6)
    assert finding.rms == pytest.approx([float(each.square().mean().sqrt()) for each in gap], rel=1e-6)
    step = evidence(cond, uncond, layout=layout)
    assert torch.allclose(gap_map(step), layout.picture(cond - uncond).square().mean(1))
    assert step.size == picture[-2:] == tuple(gap_map(step).shape[1:])


@pytest.mark.parametrize("name", ["frames", "sound", "both"])
def test_only_what_is_covered_counts(name):
    layout, own, _, _ = LAYOUTS[name]
    cond, uncond = pair(own)
    covered = torch.zeros((1, 1, *own[2:]), dtype=torch.bool)
    covered[..., :3] = True
    finding = detect([evidence(cond, uncond, coverage=covered, layout=layout)])
    gap = (cond - uncond)[..., :3].double()
    assert finding.scores == pytest.approx([float(each.norm()) for each in gap], rel=1e-6)
    assert finding.rms == pytest.approx([float(each.square().mean().sqrt()) for each in gap], rel=1e-6)


def test_a_video_and_its_sound_are_limited_each_by_a_map_of_its_own():
    def step(gap, layout):
        zero = torch.zeros_like(gap)
        return Step(0, 10, 1.0, 999.0, 7.5, lambda view: zero, Encoded(torch.zeros(2, 7, 6)), gap, zero, layout)

    alone, both = ([Limiter(LocalGuidance(), None) for _ in range(n)] for n in (2, 1))
    for seed in (1, 2):  # the second call has a running map
        parts = pair((2, *VIDEO), seed)[0], 10 * pair((2, *SOUND), seed)[1]
        expected = [limit(part, step(part, Layout())) for limit, part in zip(alone, parts, strict=True)]
        packed = BOTH.whole(parts)
        assert torch.allclose(both[0](packed, step(packed, BOTH)), BOTH.whole(expected))
        assert not torch.allclose(BOTH.whole(expected), packed)
