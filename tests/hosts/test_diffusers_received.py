"""Roles by what the scheduler receives: equal to those by text wherever both can be told, and never guessed."""

import copy
import inspect
import math
from contextlib import nullcontext

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

from memguard import Guard, MemorizationStop, mitigations
from memguard.hosts.diffusers.combination import Alike, find, parts
from memguard.hosts.diffusers.hooks import Trouble
from memguard.hosts.diffusers.layouts import Layout
from memguard.hosts.diffusers.levels import level
from memguard.hosts.diffusers.received import Received, Untold, receiving
from memguard.hosts.diffusers.rows import UNKNOWN, Prompts, Unscored
from tests.hosts import tiny
from tests.hosts.contract import profile
from tests.hosts.contract_treated import Gap, Given
from tests.hosts.test_diffusers import generate, noise_gap
from tests.hosts.test_diffusers_mitigation import NEEDS

SHAPE = (2, 4, 6, 8)
SCALE = 5.0


@pytest.fixture
def unread(monkeypatch):
    """No row tells its prompt."""

    def roles(self, text):
        raise Unscored("the rows were hidden")

    def hide():
        monkeypatch.setattr(Prompts, "roles", roles)

    return hide


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def three():
    return drawn(*SHAPE, seed=1), drawn(*SHAPE, seed=2), drawn(*SHAPE, seed=3)


def equals(found, cond, uncond, unit=1.0):
    return (
        found is not None
        and torch.equal(found.cond, cond)
        and torch.equal(found.uncond, uncond)
        and found.unit == pytest.approx(unit, rel=1e-6)
    )


class TestFind:
    @pytest.mark.parametrize("sign", [1, -1])
    @pytest.mark.parametrize("scale", [1.2, SCALE, 30.0])
    def test_two_predictions_in_either_order_and_negated(self, sign, scale):
        c, u, _ = three()
        received = sign * (u + scale * (c - u))
        for outputs in ([c, u], [u, c], [torch.cat([c, u])], [torch.cat([u, c])]):
            assert equals(find(parts(outputs, received), received, None, None), c, u, sign)

    @pytest.mark.parametrize("scale", [0.3, 0.7, 1.0, 0.0, 1.0001])
    @pytest.mark.parametrize("known", [True, False])
    def test_a_scale_that_does_not_tell_is_no_guess(self, scale, known):
        c, u, _ = three()
        received = u + scale * (c - u)
        assert find(parts([c, u], received), received, None, scale if known else None) is None

    def test_what_is_no_combination_is_no_guess(self):
        c, u, other = three()
        received = u + SCALE * (c - u) + 0.05 * other
        assert find(parts([c, u], received), received, None, SCALE) is None

    @pytest.mark.parametrize("known", [True, False])
    def test_predictions_that_are_nearly_alike_fit_nothing_but_their_combination(self, known):
        c, near, other = three()
        u = c + 1e-4 * near
        scale = SCALE if known else None
        received = u + SCALE * (c - u)
        assert equals(find(parts([c, u], received), received, None, scale), c, u)
        received = c - 3e-4 * near + 1e-3 * other
        assert find(parts([c, u], received), received, None, None) is None

    def test_predictions_that_are_alike_are_said(self):
        c, other, _ = three()
        for near in (c.clone(), c + 1e-7 * other):
            with pytest.raises(Alike):
                find(parts([c, near], c), c, None, SCALE)
        far = c + 1e-4 * other  # a prompt that hardly acts does act
        received = far + SCALE * (c - far)
        assert equals(find(parts([c, far], received), received, None, SCALE), c, far)

    def test_one_prediction_is_no_pair(self):
        c, _, _ = three()
        assert find(parts([c], c), c, None, SCALE) is None

    def test_a_perturbed_prediction_is_told_from_that_without_the_prompt_by_the_scale(self):
        c, u, p = three()
        received = u + SCALE * (c - u) + 3.0 * (c - p)
        for outputs in ([torch.cat([u, c, p])], [p, c, u]):
            assert equals(find(parts(outputs, received), received, None, SCALE), c, u)
            assert find(parts(outputs, received), received, None, None) is None
        received = u + SCALE * (c - u) + (SCALE - 1) * (c - p)  # both have the coefficient 1 - s
        assert find(parts([c, u, p], received), received, None, SCALE) is None

    @pytest.mark.parametrize(("scale", "told"), [(1.0, False), (0.5, False), (4.0, True), (None, True)])
    def test_without_guidance_by_the_prompt_a_perturbed_prediction_is_not_taken_for_one(self, scale, told):
        c, p, _ = three()
        received = c + 3.0 * (c - p)
        assert (find(parts([c, p], received), received, None, scale) is not None) is told

    def test_a_scale_that_is_counted_from_0(self):
        c, u, _ = three()
        received = c + 1.0 * (c - u)
        assert equals(find(parts([c, u], received), received, None, 1.0), c, u)

    def test_guidance_of_some_channels(self):
        c, u, _ = three()
        received = c.clone()
        received[:, :3] = (u + SCALE * (c - u))[:, :3]
        assert equals(find(parts([torch.cat([c, u])], received), received, None, None), c, u)

    def test_predictions_that_were_turned_into_denoised_samples(self):
        c, u, x = three()
        received = 0.4 * x - 0.6 * (u + SCALE * (c - u))
        assert equals(find(parts([c, u], received), received, x, None), c, u, -0.6)
        assert find(parts([c, u], received), received, None, SCALE) is None

    @pytest.mark.parametrize("factor", [(2, 1, 1, 1), (2, 4, 6, 1)])
    @pytest.mark.parametrize("counted_from", [0, 1])
    def test_rescaled_guidance_keeps_its_direction(self, factor, counted_from):
        c, u, _ = three()
        received = (u + (SCALE + 1 - counted_from) * (c - u)) * (0.5 + drawn(*factor, seed=4).abs())
        assert equals(find(parts([u, c], received), received, None, SCALE), c, u)
        assert find(parts([u, c], received), received, None, None) is None

    def test_half_precision_is_close_enough(self):
        c, u, _ = (each.to(torch.bfloat16) for each in three())
        received = u + SCALE * (c - u)
        assert equals(find(parts([c, u], received), received, None, SCALE), c, u)

    def test_a_second_picture_beside_the_first_is_left_out(self):
        c, u, other = three()
        received = u + SCALE * (c - u)
        outputs = [torch.cat([torch.cat([c, other], 3), torch.cat([u, other], 3)])]
        assert equals(find(parts(outputs, received), received, None, None), c, u)

    def test_a_learned_variance_is_left_out(self):
        c, u, v = three()
        received = u + SCALE * (c - u)
        outputs = [torch.cat([torch.cat([c, v], 1), torch.cat([u, v], 1)])]
        assert equals(find(parts(outputs, received), received, None, None), c, u)


class TestLayouts:
    @pytest.mark.parametrize(
        ("shape", "channels", "ratio", "made"),
        [
            ((2, 4, 6, 8), 4, None, (2, 4, 6, 8)),
            ((1, 16, 16, 4), 4, None, (1, 4, 16, 16)),
            ((1, 4, 3, 6, 8), 4, None, (1, 4, 18, 8)),
            ((1, 3, 4, 6, 8), 4, None, (1, 4, 18, 8)),
            ((1, 3, 6, 8, 4), 4, None, (1, 4, 18, 8)),
            ((1, 3, 4, 6, 8), None, None, (1, 3, 24, 8)),
            ((1, 16, 4), 4, None, (1, 4, 4, 4)),
            ((1, 32, 4), 4, 2.0, (1, 4, 8, 4)),
            ((1, 7, 4), 4, None, (1, 4, 7, 1)),
            ((1, 4, 70), 4, None, (1, 4, 1, 70)),
        ],
    )
    def test_shapes(self, shape, channels, ratio, made):
        given = drawn(*shape)
        found = Layout.like(given, channels, ratio).picture(given)
        assert tuple(found.shape) == made
        assert torch.equal(found.flatten().sort().values, given.flatten().sort().values)

    def test_channels_stay_together(self):
        given = torch.arange(24.0).reshape(1, 2, 3, 4, 1).expand(1, 2, 3, 4, 5)
        found = Layout.like(given, 3, None).picture(given)
        assert torch.equal(found[0, :, :, 0], torch.arange(24.0).reshape(2, 3, 4).transpose(0, 1).flatten(1))


@pytest.mark.parametrize(
    "plan",
    [
        tiny.scheduler(DDIMScheduler),
        tiny.scheduler(DDIMScheduler, prediction_type="v_prediction"),
        tiny.scheduler(EulerDiscreteScheduler),
        tiny.scheduler(EulerDiscreteScheduler, prediction_type="v_prediction"),
        tiny.scheduler(DPMSolverMultistepScheduler),
        tiny.scheduler(HeunDiscreteScheduler),
    ],
    ids=lambda plan: f"{type(plan).__name__}-{plan.config.prediction_type}",
)
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_the_score_is_that_of_the_text(plan, rescale, unread):
    pipe, prompts = tiny.sd(plan), ["a red fox", "a blue house", "a cat"]
    by_text, by_step = Guard(steps=2), Guard(steps=2)
    plain = generate(pipe, by_text, prompt=prompts, guidance_rescale=rescale)
    unread()
    assert torch.equal(generate(pipe, by_step, prompt=prompts, guidance_rescale=rescale), plain)
    one, other = by_text.report.findings[0], by_step.report.findings[0]
    assert other.scores == pytest.approx(one.scores, rel=1e-4)
    assert other.rms == pytest.approx(one.rms, rel=1e-4)
    assert (other.sigma, other.timestep, other.prompts) == (one.sigma, one.timestep, one.prompts)
    assert torch.allclose(by_step.report.noise_gap_map, by_text.report.noise_gap_map, rtol=1e-3)
    assert by_step.report.extra_rows == 0


@pytest.mark.parametrize("kind", ["sdxl", "sd3"])
def test_the_score_is_that_of_the_text_in_other_families(kind, unread):
    pipe = getattr(tiny, kind)()
    by_text, by_step = Guard(), Guard()
    generate(pipe, by_text, prompt="a red fox")
    unread()
    generate(pipe, by_step, prompt="a red fox")
    assert by_step.report.findings[0].scores == pytest.approx(by_text.report.findings[0].scores, rel=1e-4)
    assert by_step.report.family == by_text.report.family


def test_a_packed_pipeline_in_two_calls(unread):
    pipe, settings = tiny.flux(), {"prompt": "a red fox", "negative_prompt": "a house", "true_cfg_scale": 4.0}
    by_text, by_step = Guard(), Guard()
    generate(pipe, by_text, **settings)
    unread()
    generate(pipe, by_step, **settings)
    assert by_step.report.findings[0].scores == pytest.approx(by_text.report.findings[0].scores, rel=1e-4)


def test_tokens_lie_as_the_picture_is_wide_and_high(unread):
    pipe, guard = tiny.flux(), Guard()
    unread()
    settings = {"negative_prompt": "a house", "true_cfg_scale": 4.0, "height": 32, "width": 16}
    generate(pipe, guard, prompt="a red fox", **settings)
    _, height, width = guard.report.noise_gap_map.shape
    assert height == 2 * width


def test_where_the_text_tells_the_scheduler_is_not_asked(monkeypatch):
    def evidence(*_):
        raise AssertionError("asked")

    monkeypatch.setattr(Received, "evidence", evidence)
    pipe, guard = tiny.sd(), Guard(steps=3)
    generate(pipe, guard, prompt="a red fox")
    assert guard.report.error is None and len(guard.report.findings[0].per_step) == 3


def test_rows_of_a_perturbed_prediction_are_told_apart():
    pipe = tiny.sd(cls=diffusers.StableDiffusionPAGPipeline)
    guard = Guard()
    plain = generate(pipe, prompt="a red fox", pag_scale=3.0)
    assert torch.equal(plain, generate(pipe, guard, prompt="a red fox", pag_scale=3.0))
    found = guard.report.findings[0]
    assert found.scores == (pytest.approx(float(noise_gap(pipe, "a red fox").norm()), rel=1e-4),)


class TestTheScheduler:
    def test_is_left_as_it_was(self):
        pipe, guards = tiny.sd(), (Guard(), Guard())
        with guards[0].attach(pipe), guards[1].attach(pipe):
            pipe("a red fox", num_inference_steps=2, output_type="latent")
        assert type(pipe.scheduler) is DDIMScheduler and "step" not in vars(pipe.scheduler)

    @staticmethod
    def watched(scheduler):
        seen = []
        return receiving(scheduler, lambda *given: seen.append(given), Trouble()), seen

    def test_hears_every_one_and_each_what_the_one_before_made_of_it(self):
        scheduler, seen = tiny.scheduler(EulerDiscreteScheduler), []

        def taker(times):
            def take(output, timestep, sample):
                seen.append(float(output.max()))
                return times and times * output  # None leaves it

            return receiving(scheduler, take, Trouble())

        plain = self.step(tiny.scheduler(EulerDiscreteScheduler))
        with taker(2), taker(3), taker(None):
            made = self.step(scheduler)
        assert seen == [1.0, 2.0, 6.0]
        torch.testing.assert_close(made, 6 * plain)

    @staticmethod
    def step(scheduler):
        scheduler.set_timesteps(4)
        return scheduler.step(
            torch.ones(1, 4, 2, 2), scheduler.timesteps[0], sample=torch.zeros(1, 4, 2, 2)
        ).prev_sample

    def test_is_of_the_same_class_and_signature_and_gives_the_same(self):
        scheduler = tiny.scheduler(EulerDiscreteScheduler)
        signature, expected = inspect.signature(scheduler.step), self.step(tiny.scheduler(EulerDiscreteScheduler))
        block, seen = self.watched(scheduler)
        with block:
            assert type(scheduler) is EulerDiscreteScheduler
            assert inspect.signature(scheduler.step) == signature
            assert torch.equal(self.step(scheduler), expected)
        (output, timestep, sample) = seen[0]
        assert output.sum() == 16 and float(timestep) == scheduler.timesteps[0] and sample.sum() == 0

    def test_several_may_leave_in_the_order_in_which_they_came(self):
        scheduler = tiny.scheduler()
        (one, first), (two, second) = self.watched(scheduler), self.watched(scheduler)
        one.__enter__()
        two.__enter__()
        one.__exit__(None, None, None)
        self.step(scheduler)
        two.__exit__(None, None, None)
        assert len(first) == 0 and len(second) == 1 and "step" not in vars(scheduler)

    def test_a_copy_steps_by_itself(self):
        scheduler = tiny.scheduler(EulerDiscreteScheduler)
        block, seen = self.watched(scheduler)
        with block:
            copied = copy.deepcopy(scheduler)
            self.step(copied)
        assert not seen and scheduler.step_index is None and copied.step_index == 1

    def test_what_others_put_there_stays(self):
        scheduler = tiny.scheduler()
        before = scheduler.step = scheduler.step
        block, _ = self.watched(scheduler)
        with block:
            pass
        assert vars(scheduler)["step"] is before
        block, _ = self.watched(scheduler)
        with block:
            after = scheduler.step = lambda *args, **kwargs: None
        assert scheduler.step is after


def test_predictions_that_were_turned_into_something_else_are_scored_in_its_units():
    pipe = tiny.sd()
    pipe.scheduler.set_timesteps(4)
    c, u, x = (drawn(1, 4, 8, 8, seed=seed) for seed in range(3))
    received = Received(pipe, pipe.unet, {"prompt": "a fox"}, None, False)
    received.add((torch.cat([u, c]),))
    given = 0.4 * x - 0.6 * (u + SCALE * (c - u)), pipe.scheduler.timesteps[0], x
    made = received.evidence(0, *given)
    assert float((made.noise_cond - made.noise_uncond).norm()) == pytest.approx(0.6 * float((c - u).norm()), rel=1e-4)
    received.step()
    with pytest.raises(Untold):
        received.evidence(1, *given)


def test_an_embedding_that_is_denoised_is_no_picture():
    pipe = tiny.sd()
    pipe.scheduler.set_timesteps(4)
    received = Received(pipe, pipe.unet, {"prompt": "a fox"}, 5.0, False)
    cond, uncond = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(0))
    received.add((torch.cat([uncond, cond]),))
    with pytest.raises(Unscored, match="no picture"):
        received.evidence(0, uncond + 5 * (cond - uncond), pipe.scheduler.timesteps[0], torch.zeros(1, 32))


def test_a_schedule_that_counts_the_share_of_the_picture_begins_at_full_noise():
    plan = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    plan.set_timesteps(4)
    first, last = level(plan, plan.timesteps[0]), level(plan, plan.timesteps[-1])
    assert first.full_noise and first.sigma == pytest.approx(1, abs=0.01)
    assert not last.full_noise and last.sigma < first.sigma


def test_the_schedule_of_wuerstchen():
    plan = diffusers.DDPMWuerstchenScheduler()
    plan.set_timesteps(4)
    first, second = level(plan, plan.timesteps[0]), level(plan, plan.timesteps[1])
    alpha = math.cos((0.75 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert second.sigma == pytest.approx(math.sqrt(1 / alpha - 1), rel=1e-3)
    assert (first.full_noise, second.full_noise) == (True, False)
    assert first.sigma == first.sigma_max and (first.timestep, second.timestep) == (1000, 750)


def test_what_is_encoded_in_a_way_that_is_not_known_is_scored_all_the_same(monkeypatch):
    def split(result):
        raise Unscored("not known")

    monkeypatch.setattr("memguard.hosts.diffusers.rows._split", split)
    pipe, guard, other = tiny.sd(), Guard(), Guard(reference="empty")
    generate(pipe, guard, prompt="a red fox")
    expected = float(noise_gap(pipe, "a red fox").norm())
    assert guard.report.findings[0].scores == (pytest.approx(expected, rel=1e-4),)
    generate(pipe, other, prompt="a red fox")
    assert other.report.findings[0].status == UNKNOWN


def test_stop_acts_on_such_a_score(unread):
    pipe, seen = tiny.sd(), Guard()
    unread()
    generate(pipe, seen, prompt="a red fox")
    stop = Guard(policy="stop", profile=profile(seen))
    with pytest.raises(MemorizationStop, match="looks memorized"):
        generate(pipe, stop, prompt="a red fox")
    assert type(pipe.scheduler) is DDIMScheduler


def test_what_needs_the_rows_is_left_out_with_the_reason(unread):
    pipe, seen = tiny.sd(), Guard()
    unread()
    plain = generate(pipe, seen, prompt="a red fox")
    names = [name for name in mitigations.available() if name not in ("guidance_delay", "local_guidance")]
    for name in names:
        mitigation = mitigations.get(name, **NEEDS.get(name, {}))
        guard = Guard(policy="mitigate", mitigation=mitigation, profile=profile(seen))
        assert torch.equal(generate(pipe, guard, prompt="a red fox"), plain)
        assert guard.report.flagged and guard.report.error is None
        (attempt,) = guard.report.attempts
        said = f"{mitigation.TITLE} was left out: only guidance can be changed here: the rows were hidden"
        assert attempt.changes == (said,) and not attempt.kept


def test_latents_laid_out_in_another_way_are_the_reason(monkeypatch):
    monkeypatch.setattr(Layout, "of", lambda *_: None)
    pipe, seen = tiny.sd(), Guard()
    plain = generate(pipe, seen, prompt="a red fox")
    guard = Guard(policy="mitigate", mitigation="padding", profile=profile(seen))
    assert torch.equal(generate(pipe, guard, prompt="a red fox"), plain)
    assert guard.report.error is None
    assert guard.report.attempts[0].changes[0].endswith("are not laid out in a way that MemGuard knows")


@pytest.mark.parametrize("more", [{}, {"guidance_rescale": 0.7}, {"num_images_per_prompt": 2}])
@pytest.mark.parametrize("target", ["epsilon", "v_prediction", "sample"])
def test_guidance_by_the_scheduler_is_that_by_the_rows(unread, monkeypatch, target, more):
    monkeypatch.setattr("memguard.loop.helped", lambda *_: True)
    pipe, seen = tiny.sd(tiny.scheduler(prediction_type=target)), Guard()
    given = {"prompt": "a red fox"} | more
    plain = generate(pipe, seen, **given)
    share, made = Gap(0.4), []
    for _ in range(2):
        guard = Guard(policy="mitigate", mitigation=Given(lambda start: {"guidance": (share,)}), profile=profile(seen))
        made.append(generate(pipe, guard, **given))
        assert guard.report.error is None and guard.report.actions == ("as given",)
        unread()
    one, other = share.steps[:4], share.steps[4:]
    assert [step.index for step in other] == [step.index for step in one] == [0, 1, 2, 3]
    near = {"rtol": 2e-3, "atol": 2e-3}
    for mine, theirs in zip(other, one, strict=True):
        torch.testing.assert_close(mine.cond, theirs.cond, **near)
        assert (mine.count, mine.sigma, mine.timestep) == (theirs.count, theirs.sigma, theirs.timestep)
        assert mine.scale == pytest.approx(theirs.scale, rel=0.01)
    torch.testing.assert_close(made[1], made[0], **near)
    assert not torch.allclose(made[1], plain, atol=1e-2)
    assert torch.equal(generate(pipe, **given), plain) and "step" not in vars(pipe.scheduler)


def test_guidance_by_the_scheduler_leaves_a_picture_that_it_cannot_follow(unread, monkeypatch):
    """The second step is joined in another way: the mitigation ends there, and the report says when."""
    monkeypatch.setattr("memguard.loop.helped", lambda *_: True)
    pipe, seen = tiny.sd(), Guard()
    plain = generate(pipe, seen, prompt="a red fox")
    unread()
    inner, calls = Received.joined, []

    def joined(self, *args):
        calls.append(1)
        if len(calls) == 4:  # the score, guidance at the first step, at the second
            raise KeyError("inside")
        return inner(self, *args)

    monkeypatch.setattr(Received, "joined", joined)
    guard = Guard(policy="mitigate", mitigation=Given(lambda start: {"guidance": (Gap(0.4),)}), profile=profile(seen))
    made = generate(pipe, guard, prompt="a red fox")
    assert not torch.equal(made, plain) and guard.report.error == "KeyError: 'inside'"
    assert "after 2 model calls" in guard.report.notes[-1]


def test_of_several_prompts_guidance_by_the_scheduler_is_not_that_of_one(unread, monkeypatch):
    monkeypatch.setattr("memguard.loop._memorized", lambda run: [1])
    pipe, seen = tiny.sd(), Guard()
    unread()
    plain = generate(pipe, seen, prompt=["a red fox", "a blue house"])
    guard = Guard(policy="mitigate", mitigation="guidance_delay", profile=profile(seen))
    assert torch.equal(generate(pipe, guard, prompt=["a red fox", "a blue house"]), plain)
    assert guard.report.error is None and "only guidance can be changed here" in guard.report.attempts[0].changes[0]


def test_a_pipeline_that_asks_no_scheduler_has_the_first_reason(unread, monkeypatch):
    pipe, guard = tiny.sd(), Guard()
    unread()
    monkeypatch.setattr("memguard.hosts.diffusers.watch.receiving", lambda *_: nullcontext())
    generate(pipe, guard, prompt="a red fox")
    assert guard.report.findings[0].status == "the rows were hidden"


def test_attention_says_why_it_was_not_read(unread, monkeypatch):
    pipe, guard = tiny.sd(), Guard(("text_noise_norm", "attention_entropy"))
    unread()
    monkeypatch.setattr("memguard.hosts.diffusers.received.where", lambda *_: None)
    generate(pipe, guard, prompt="a red fox")
    assert guard.report.findings[0].scores and not guard.report.findings[1].scores
    assert "that carry the prompt are not told" in guard.report.findings[1].status


def test_prompts_that_predict_alike_are_said(unread):
    pipe, guard = tiny.sd(), Guard()
    unread()
    generate(pipe, guard, prompt="a red fox", negative_prompt="a red fox")
    assert guard.report.findings[0].status.startswith("the model predicts the same with and without the prompt")


def test_one_prediction_is_said(unread):
    pipe, guard = tiny.sd(), Guard()
    unread()
    generate(pipe, guard, prompt="a red fox", guidance_scale=1.0)
    assert (
        guard.report.findings[0].status == "the pipeline predicts each step once, so nothing is predicted without"
        " the prompt"
    )
