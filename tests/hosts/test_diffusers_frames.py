"""Models of videos, whose latents are frames: scored, treated and explained as pictures are."""

import diffusers
import pytest
import torch

from memguard import Guard, mitigations
from memguard.hosts.diffusers.layouts import Layout
from memguard.mitigations.base import Treatment
from tests.hosts import tiny
from tests.hosts.contract import profile
from tests.hosts.contract_treated import OTHER, Gap, Given, other_text
from tests.hosts.test_diffusers import seeded

pytestmark = pytest.mark.skipif(not hasattr(diffusers, "CogVideoXPipeline"), reason="this diffusers has no CogVideoX")
NEAR = {"rtol": 1e-3, "atol": 1e-4}
SHAPE = (1, 4, 3, 2, 4)  # B, C, T, h, w; the model's own tensors are [B, T, C, h, w]
PLACES = torch.cartesian_prod(torch.zeros(1), torch.arange(3.0), torch.arange(4.0))


@pytest.fixture(scope="module")
def pipe():
    return tiny.cogvideox()


@pytest.fixture(autouse=True)
def keep(monkeypatch):
    monkeypatch.setattr("memguard.loop.helped", lambda *_: True)


def generate(pipe, guard=None, prompt="a red fox", seed=3, **more):
    settings = {"num_inference_steps": 3, "guidance_scale": 6.0, "num_frames": 9, "height": 16, "width": 32} | more
    settings |= {"generator": seeded(seed), "output_type": "latent", "max_sequence_length": 16, "prompt": prompt}
    if guard is None:
        return pipe(**settings).frames
    with guard.attach(pipe):
        return pipe(**settings).frames


def gap(pipe, prompt="a red fox"):
    """The noise gap of the first step by plain calls, [1, T, C, h, w]."""
    pipe.scheduler.set_timesteps(3)
    t, (b, c, frames, h, w) = pipe.scheduler.timesteps[:1], SHAPE
    x = torch.randn(b, frames, c, h, w, generator=seeded())
    with torch.no_grad():
        texts = pipe.encode_prompt(prompt, "", True, 1, None, None, 16, "cpu")
        made = [pipe.transformer(x, encoder_hidden_states=text, timestep=t).sample for text in texts]
    return made[0] - made[1]


def under(pipe, make):
    known = Guard()
    generate(pipe, known)
    given = Given(make, ([],))
    guard = Guard(policy="mitigate", mitigation=given, profile=profile(known))
    made = generate(pipe, guard)
    assert guard.report.attempts[0].kept, guard.report.attempts
    return made, guard, given.seen[0][0]


def test_watching(pipe):
    guard = Guard()
    assert torch.equal(generate(pipe), generate(pipe, guard))
    expected = gap(pipe)
    finding = guard.report.findings[0]
    assert finding.scores == (pytest.approx(float(expected.norm()), rel=1e-4),)
    frames = expected.transpose(1, 2)[0].flatten(1, 2).pow(2).mean(0)
    assert torch.allclose(guard.report.noise_gap_map[0], frames, rtol=1e-3)
    assert (guard.report.height, guard.report.width) == (16, 32)


def test_the_empty_reference(pipe):
    guard = Guard(reference="empty")
    assert torch.equal(generate(pipe, guard, guidance_scale=1.0), generate(pipe, guidance_scale=1.0))
    assert guard.report.findings[0].scores == (pytest.approx(float(gap(pipe).norm()), rel=1e-4),)
    assert guard.report.extra_rows == 1


def test_another_text_makes_the_video_of_that_text(pipe):
    made, guard, start = under(pipe, other_text)
    assert start.size == SHAPE[1:]
    torch.testing.assert_close(made, generate(pipe, prompt=OTHER), **NEAR)
    assert guard.report.scores_after == (pytest.approx(float(gap(pipe, OTHER).norm()), rel=1e-3),)


def test_other_noise_makes_the_video_of_that_noise(pipe):
    def noise(seed):
        return torch.randn(1, 3, 4, 2, 4, generator=seeded(seed)).transpose(1, 2)

    made, _, start = under(pipe, lambda start: {"noise": noise(5)})
    torch.testing.assert_close(start.noise, noise(3), **NEAR)
    torch.testing.assert_close(made, generate(pipe, seed=5), **NEAR)


def test_guidance_acts_at_every_step(pipe):
    nothing = Gap(0.0)
    made, _, _ = under(pipe, lambda start: {"guidance": (nothing,)})
    torch.testing.assert_close(made, generate(pipe, prompt=""), **NEAR)
    assert [tuple(step.cond.shape) for step in nothing.steps] == 3 * [SHAPE]


@pytest.mark.parametrize("name", ["guidance_delay", "local_guidance", "noise_adjustment", "prompt_optimization"])
def test_mitigations_of_pictures_act_on_frames(pipe, name, caplog):
    settings = {"noise_adjustment": {"rounds": 1, "until": 0.0}, "prompt_optimization": {"iterations": 2}}.get(name, {})
    plain = generate(pipe)
    with mitigations.get(name, **settings).attach(pipe):
        changed = generate(pipe)
    assert not caplog.messages and not torch.equal(plain, changed) and bool(changed.isfinite().all())


def test_a_gradient_by_noise_is_that_of_finite_differences(pipe):
    def make(start):
        noise = start.noise.clone().requires_grad_()
        with start.gradients():
            start.gap(Treatment(), noise=noise).square().sum().backward()
        step, at = 1e-2, (0, 2, 1, 1, 3)
        ends = []
        for sign in (1, -1):
            moved = start.noise.clone()
            moved[at] += sign * step
            with torch.no_grad():
                ends.append(float(start.gap(Treatment(), noise=moved).square().sum()))
        assert float(noise.grad[at]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.02, abs=1e-6)
        return {"guidance": (Gap(0.5),)}

    under(pipe, make)


@pytest.mark.parametrize(
    ("shape", "arguments", "plain"),
    [
        ((2, 4, 6, 8), {}, (2, 4, 6, 8)),
        ((2, 4, 3, 6, 8), {}, (2, 4, 3, 6, 8)),
        ((2, 3, 4, 6, 8), {}, (2, 4, 3, 6, 8)),
        ((2, 3, 6, 8, 4), {}, (2, 4, 3, 6, 8)),
        ((2, 144, 5), {"num_frames": 3, "height": 6, "width": 8}, (2, 5, 3, 6, 8)),
        ((2, 12, 16), {"img_ids": PLACES}, (2, 4, 6, 8)),
    ],
)
def test_a_layout_leads_there_and_back(shape, arguments, plain):
    given = torch.randn(shape)
    layout = Layout.of(given, arguments, 4)
    assert tuple(layout.latents(given).shape) == plain
    assert torch.equal(layout.back(layout.latents(given)), given)
    assert layout.picture(given).ndim == 4


@pytest.mark.parametrize(
    ("shape", "arguments", "channels"),
    [
        ((2, 12, 16), {}, 4),
        ((2, 12, 16), {"num_frames": 3, "height": 3, "width": 3}, 4),
        ((2, 5, 5, 5, 5), {}, 4),
        ((2, 4, 3, 6, 8), {}, None),
        ((2, 4), {}, 4),
    ],
)
def test_a_layout_that_is_not_known_is_not_guessed(shape, arguments, channels):
    assert Layout.of(torch.randn(shape), arguments, channels) is None
