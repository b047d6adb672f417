"""What is done with the noise gap of each step, against the papers' formulas."""

import math
from dataclasses import replace

import pytest
import torch

from memguard.attributions.moment import Encoded
from memguard.mitigations import get
from memguard.mitigations.base import Step, Treatment, View
from memguard.mitigations.guidance_delay import transition
from memguard.mitigations.paraphrase import ramp
from memguard.mitigations.spike_attenuation import Attenuate
from memguard.mitigations.three_rows import orthogonal

SCALE = 7.5
SHAPE = (2, 4, 6, 8)


def draw(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def step(index=0, timestep=981.0, gap=None, uncond=None, predict=None, scale=SCALE, sigma=13.0):
    uncond = draw(7) if uncond is None else uncond
    gap = draw(8) if gap is None else gap
    prompt = Encoded(torch.zeros(2, 77, 6))
    return Step(index, 50, sigma, timestep, scale, predict or (lambda view: uncond), prompt, uncond + gap, uncond)


def guidance(name, start, **settings):
    return get(name, **settings).treat(start(2), Treatment()).guidance[0]


class TestDelay:
    def test_no_guidance_before_a_static_transition_and_the_same_tensor_after_it(self, start):
        delay, gap = guidance("guidance_delay", start, until=500), draw(1)
        assert torch.equal(delay(gap, step(timestep=501.0)), torch.zeros_like(gap))
        assert delay(gap, step(timestep=500.0)) is gap

    def test_the_first_tenth_of_fifty_steps(self, start):
        delay = guidance("guidance_delay", start, until=900)
        schedule = [981 - 20 * i for i in range(50)]
        delayed = [i for i, t in enumerate(schedule) if not delay(torch.ones(1), step(timestep=float(t))).all()]
        assert delayed == [0, 1, 2, 3, 4]

    def test_opposite_guidance(self, start):
        delay, gap = guidance("guidance_delay", start, until=650, before=-2.0), draw(1)
        torch.testing.assert_close(SCALE * delay(gap, step(timestep=900.0)), -2 * gap)

    def test_strength_goes_from_the_runs_own_scale(self, start):
        delay, gap = guidance("guidance_delay", start, strength=0.5), draw(1)
        torch.testing.assert_close(SCALE * delay(gap, step()), SCALE / 2 * gap)

    def test_models_without_a_schedule_compare_their_sigma(self, start):
        delay, gap = guidance("guidance_delay", start, until=500), draw(1)
        assert not delay(gap, step(timestep=None, sigma=0.7)).any()
        assert delay(gap, step(timestep=None, sigma=0.4)) is gap

    @pytest.mark.parametrize(
        ("norms", "first"),
        [([5, 4, 3, 4], 3), ([5, 3, 4, 2, 6], 2), ([1, 2, 3], None), ([3, 2, 2, 3], None), ([3, 2], None), ([], None)],
    )
    def test_the_first_local_minimum(self, norms, first):
        assert transition(norms) == first

    @pytest.mark.parametrize(("parity", "before"), [(None, 0.0), ("official", 1.0)])
    def test_guidance_begins_at_the_step_after_the_minimum(self, start, parity, before):
        delay = guidance("guidance_delay", start, transition="dynamic", parity=parity)
        given = [draw(1) * size for size in (5, 4, 3, 3.5, 1, 9)]
        found = [delay(gap, step(index)) for index, gap in enumerate(given)]
        for gap, out in zip(given[:3], found[:3], strict=True):
            torch.testing.assert_close(SCALE * out, before * gap)
        assert all(a is b for a, b in zip(given[3:], found[3:], strict=True))


class TestThreeRows:
    def test_combination_without_orthogonalisation(self, start):
        uncond, plain, attenuated = draw(1), draw(2), draw(3)
        pull = guidance("guard", start)
        for index in (0, 20, 49):
            found = pull(plain - uncond, step(index, uncond=uncond, predict=lambda view: attenuated))
            fade = 2 * math.cos(math.pi * index / 100)
            expected = uncond + SCALE * (attenuated - uncond) - fade * (plain - uncond)
            torch.testing.assert_close(uncond + SCALE * found, expected)

    def test_the_third_row_is_predicted_under_attenuation(self, start):
        seen = []
        pull = guidance("guard", start)
        pull(draw(1), step(predict=lambda view: seen.append(view) or draw(2)))
        (view,) = seen
        assert isinstance(view.edits[0], Attenuate)
        assert not view.edits[0].official

    def test_close_directions_lose_what_they_share(self):
        away = draw(1)
        near, far = away * 1.5 + 0.01 * draw(2), draw(3)
        to = torch.stack([near[0], far[1]])
        found = orthogonal(to, away)
        shared = (to[0] * away[0]).sum() / away[0].square().sum()
        torch.testing.assert_close(found[0], to[0] - shared * away[0])
        assert torch.equal(found[1], to[1])
        torch.testing.assert_close(orthogonal(away * 3, away), away)  # the coefficient ends at 2

    @pytest.mark.parametrize(("cosine", "taken"), [(0.89, False), (0.91, True)])
    def test_directions_are_close_from_a_cosine_of_nine_tenths(self, cosine, taken):
        away = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
        to = torch.tensor([cosine, (1 - cosine**2) ** 0.5]).reshape(1, 2, 1, 1)
        assert (float(orthogonal(to, away)[0, 0]) == 0) is taken

    def test_a_scale_of_its_own_stands_in_for_the_samplers(self, start):
        uncond, plain, attenuated = draw(1), draw(2), draw(3)
        found = guidance("guard", start, scale=3.0)(
            plain - uncond, step(uncond=uncond, predict=lambda view: attenuated)
        )
        expected = uncond + 3.0 * (attenuated - uncond) - 2.0 * (plain - uncond)
        torch.testing.assert_close(uncond + SCALE * found, expected)

    def test_half_the_strength_is_half_of_the_repulsion_and_of_the_attenuation(self, start):
        seen, uncond, plain, attenuated = [], draw(1), draw(2), draw(3)
        pull = guidance("guard", start, strength=0.5)
        found = pull(plain - uncond, step(uncond=uncond, predict=lambda view: seen.append(view) or attenuated))
        expected = uncond + SCALE * (attenuated - uncond) - 1.0 * (plain - uncond)
        torch.testing.assert_close(uncond + SCALE * found, expected)
        assert seen[0].edits[0].alpha == pytest.approx(0.65)

    def test_official_orthogonalises(self, start):
        uncond, gap = torch.zeros(SHAPE), draw(1)
        pull = guidance("guard", start, parity="official", repulsion=0.0)
        found = pull(gap, step(uncond=uncond, predict=lambda view: gap.clone()))
        torch.testing.assert_close(found, torch.zeros_like(gap), atol=1e-5, rtol=0)

    def test_no_repulsion_and_no_attenuation_is_plain_guidance(self, start):
        uncond, gap = draw(1), draw(2)
        pull = guidance("guard", start, repulsion=0.0, alpha=1.0)
        found = pull(gap, step(uncond=uncond, predict=lambda view: uncond + gap))
        torch.testing.assert_close(found, gap)


class TestParaphrase:
    def anchor(self, start, **settings):
        began = start(2, encode=lambda texts, padding=None: Encoded(torch.ones(len(texts), 77, 6)))
        return get("paraphrase", text="other words", **settings).treat(began, Treatment()).guidance[0]

    @pytest.mark.parametrize(("norm", "s"), [(3.0, 1.0), (4.0, 4.25), (5.0, SCALE), (9.0, SCALE)])
    def test_the_ramp(self, norm, s):
        assert float(ramp(torch.tensor([norm]), 3.0, 5.0, SCALE)) == pytest.approx(s)

    @pytest.mark.parametrize("norm", [3.5, 6.0])
    def test_above_the_limit_of_the_second_wordings_gap_the_step_moves_away_from_the_prompt(self, start, norm):
        anchor, uncond, gap = self.anchor(start, parity="official"), draw(1), draw(2) * 1e-3
        own = draw(3)
        own = own * (norm / own.norm())  # official: one norm of the whole batch, at the paper's numbers
        other, cond, s = uncond + own, uncond + gap, float(ramp(torch.tensor([norm]), 3.0, 5.0, SCALE))
        found = anchor(gap, step(uncond=uncond, gap=gap, predict=lambda view: other))
        expected = cond + s * (other - cond) + (SCALE - s) * (other - uncond)
        torch.testing.assert_close(uncond + SCALE * found, expected, rtol=1e-4, atol=1e-4)

    def test_below_it_guidance_is_wholly_the_second_wordings_whatever_the_prompts_gap(self, start):
        uncond, gap, own = draw(1), draw(2) * 100, draw(3) * 1e-3
        found = self.anchor(start)(gap, step(uncond=uncond, gap=gap, predict=lambda view: uncond + own))
        torch.testing.assert_close(found, own, rtol=1e-3, atol=1e-6)

    def test_each_image_has_its_own_limit(self, start):
        uncond, gap, own = torch.zeros(SHAPE), draw(2), draw(3)
        own[1] *= 1e-3
        found = self.anchor(start)(gap, step(uncond=uncond, gap=gap, predict=lambda view: own))
        assert not torch.allclose(found[0], own[0])
        torch.testing.assert_close(found[1], own[1])

    @pytest.mark.parametrize("size", [(4, 6, 8), (4, 12, 16)])
    def test_the_limits_grow_with_the_root_of_the_number_of_elements(self, start, size):
        rms = 3.0 / (4 * 64 * 64) ** 0.5
        own = torch.ones(1, *size) * rms
        began = start(1, size=size, encode=lambda texts, padding=None: Encoded(torch.ones(len(texts), 77, 6)))
        anchor = get("paraphrase", text="other words").treat(began, Treatment()).guidance[0]
        for factor, moves in ((0.99, False), (1.01, True)):
            now = replace(step(), uncond=torch.zeros_like(own), predict=lambda view, f=factor: own * f)
            assert torch.allclose(anchor(-own, now), own * factor) is not moves

    def test_a_strength_goes_part_of_the_way(self, start):
        uncond, gap, own = torch.zeros(SHAPE), draw(2), draw(3) * 1e-3
        found = self.anchor(start, strength=0.25)(gap, step(uncond=uncond, gap=gap, predict=lambda view: own))
        torch.testing.assert_close(found, 0.75 * gap + 0.25 * own)

    def test_without_guidance_to_divide_by_the_second_wording_is_taken(self, start):
        uncond, gap, own = torch.zeros(SHAPE), draw(2), draw(3)
        now = replace(step(uncond=uncond, gap=gap, predict=lambda view: own), scale=1.0)
        torch.testing.assert_close(self.anchor(start)(gap, now), own)

    def test_a_wording_of_another_length_is_refused_with_both_lengths(self, start):
        began = start(1, encode=lambda texts, padding=None: Encoded(torch.ones(1, 154, 6)))
        with pytest.raises(Exception, match="takes 154 columns and the prompt 77"):
            get("paraphrase", text="many words").treat(began, Treatment())


class TestLocal:
    def test_guidance_falls_only_where_the_gap_is_high(self, start):
        gap = torch.full((1, 4, 12, 12), 0.01)
        gap[..., :6] = 1.0
        limited = get("local_guidance").treat(start(1, threshold=0.02), Treatment()).guidance[0](gap, step())
        assert torch.equal(limited[..., 8:], gap[..., 8:])
        assert float(limited[..., :4].abs().max()) < 1e-4

    def test_without_a_profile_the_lower_quarter_of_the_map_is_the_limit(self, start):
        gap = torch.full((1, 4, 12, 12), 0.5)
        gap[..., :3] = 5.0
        limited = get("local_guidance").treat(start(1), Treatment()).guidance[0](gap, step())
        torch.testing.assert_close(limited[..., 6:], gap[..., 6:])
        torch.testing.assert_close(limited[..., :2], torch.full((1, 4, 12, 2), 5.0 * 0.1**4))

    def test_the_quarter_is_the_lowest_of_the_map(self, start):
        gap = torch.full((1, 4, 12, 12), 0.5)
        gap[..., 5:] = 5.0  # more than half of the map
        limited = get("local_guidance").treat(start(1), Treatment()).guidance[0](gap, step())
        torch.testing.assert_close(limited[..., :3], gap[..., :3])
        torch.testing.assert_close(limited[..., 7:], torch.full((1, 4, 12, 5), 5.0 * 0.1**4))

    def test_the_map_keeps_seven_tenths_from_call_to_call(self, start):
        limiter = get("local_guidance", power=1.0).treat(start(1, threshold=1.0), Treatment()).guidance[0]
        limiter(torch.full((1, 4, 8, 8), 4.0), step())
        # the map is now .7 * 4 + .3 * 2, below its first median, so that the limit stays
        torch.testing.assert_close(limiter(torch.full((1, 4, 8, 8), 2.0), step(1)), torch.full((1, 4, 8, 8), 2.0 / 3.4))

    @pytest.mark.parametrize(("level", "strength", "left"), [(1.0, 1.0, 0.25), (2.0, 1.0, 0.5), (1.0, 0.5, 0.625)])
    def test_level_and_strength(self, start, level, strength, left):
        limiter = get("local_guidance", power=1.0, level=level, strength=strength)
        found = limiter.treat(start(1, threshold=1.0), Treatment()).guidance[0](torch.full((1, 4, 8, 8), 4.0), step())
        torch.testing.assert_close(found, torch.full((1, 4, 8, 8), 4.0 * left))

    def test_the_limit_grows_as_the_whole_map_does(self, start):
        limiter = get("local_guidance", decay=0.0).treat(start(1, threshold=0.02), Treatment()).guidance[0]
        limiter(torch.full((1, 4, 8, 8), 0.01), step())
        later = torch.full((1, 4, 8, 8), 0.04)
        torch.testing.assert_close(limiter(later, step(5)), later)

    def test_images_of_a_batch_do_not_share_a_map(self, start):
        gap = torch.cat([torch.full((1, 4, 8, 8), 0.01), torch.full((1, 4, 8, 8), 1.0)])
        limited = get("local_guidance").treat(start(2, threshold=0.02), Treatment()).guidance[0](gap, step())
        assert torch.equal(limited[0], gap[0])
        assert float(limited[1].abs().max()) < 1e-3

    @pytest.mark.parametrize("frames", [1, 3])
    def test_frames_are_limited_each_for_itself_and_share_their_images_limit(self, start, frames):
        gaps = [draw(seed, (2, 4, frames, 8, 6)) * (1 + seed) for seed in range(3)]
        limiter = get("local_guidance").treat(start(2, threshold=0.5), Treatment()).guidance[0]
        found = [limiter(gap, step()) for gap in gaps]
        assert all(a.shape == b.shape for a, b in zip(found, gaps, strict=True))
        if frames == 1:
            plain = get("local_guidance").treat(start(2, threshold=0.5), Treatment()).guidance[0]
            for one, gap in zip(found, gaps, strict=True):
                torch.testing.assert_close(one[:, :, 0], plain(gap[:, :, 0], step()))
        here = gaps[0].square().mean(1).sqrt()
        edge = torch.nn.functional.pad(here, (1, 1, 1, 1), mode="replicate")
        wide = sum(edge[..., y : y + 8, x : x + 6] for y in range(3) for x in range(3)) / 9
        torch.testing.assert_close(found[0], gaps[0] * (0.5 / wide).clamp(max=1)[:, None] ** 4)


def test_a_view_of_the_runs_own_noise_has_none():
    assert View(Encoded(torch.zeros(1, 77, 6))).noise is None
