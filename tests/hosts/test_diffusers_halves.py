"""Pipelines that predict prompt and negative prompt in two calls: treated as those that predict both in one."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memguard import Guard, mitigations
from memguard.hosts.diffusers.combination import find
from memguard.hosts.diffusers.halves import Halves
from memguard.hosts.diffusers.rows import Prompts, Unscored
from tests.hosts import tiny
from tests.hosts.contract import HostContract, profile
from tests.hosts.contract_treated import Gap, Given, TreatedContract, other_text
from tests.hosts.test_diffusers import Diffusers, generate


def plain(cond, uncond, scale):
    return uncond + scale * (cond - uncond)


def renormalised(cond, uncond, scale):
    """As Qwen-Image: each token keeps the norm of the prompt's own prediction."""
    made = plain(cond, uncond, scale)
    return made * cond.norm(dim=-1, keepdim=True) / made.norm(dim=-1, keepdim=True)


def whole(cond, uncond, scale):
    """Each image keeps the norm of the prompt's own prediction."""
    made = plain(cond, uncond, scale)
    return (
        made
        * torch.linalg.vector_norm(cond, dim=(1, 2, 3), keepdim=True)
        / torch.linalg.vector_norm(made, dim=(1, 2, 3), keepdim=True)
    )


def negated(cond, uncond, scale):
    return -plain(cond, uncond, scale)


class InTwo(StableDiffusionPipeline):
    """Stable Diffusion that predicts in two calls; ``order`` is that of the two, ``join`` what becomes of them."""

    order, join = ("prompt", "negative"), staticmethod(plain)

    @torch.no_grad()
    def __call__(
        self,
        prompt=None,
        height=None,
        width=None,
        num_inference_steps=4,
        guidance_scale=7.5,
        negative_prompt=None,
        num_images_per_prompt=1,
        generator=None,
        output_type="latent",
        callback_on_step_end=None,
    ):
        self._guidance_scale, self._interrupt = guidance_scale, False
        guided = guidance_scale > 1
        prompts = [prompt] if isinstance(prompt, str) else prompt
        negative_prompt = None if negative_prompt is None else len(prompts) * [negative_prompt]
        cond, uncond = self.encode_prompt(prompts, "cpu", num_images_per_prompt, guided, negative_prompt)
        self.scheduler.set_timesteps(num_inference_steps)
        self._num_timesteps = num_inference_steps
        x = self.prepare_latents(len(cond), 4, height or 16, width or 16, cond.dtype, "cpu", generator)
        for number, t in enumerate(self.scheduler.timesteps):
            if self.interrupt:
                continue
            given, made = {"prompt": cond, "negative": uncond}, {}
            for role in self.order if guided else ("prompt",):
                scaled = self.scheduler.scale_model_input(x, t)
                made[role] = self.unet(scaled, t, encoder_hidden_states=given[role], return_dict=False)[0]
            g = self.join(made["prompt"], made["negative"], guidance_scale) if guided else made["prompt"]
            x = self.scheduler.step(g, t, x).prev_sample
            if callback_on_step_end is not None:
                callback_on_step_end(self, number, t, {})
        return SimpleNamespace(images=x)


class Reversed(InTwo):
    order = ("negative", "prompt")


class Renormalised(InTwo):
    join = staticmethod(renormalised)


class Whole(InTwo):
    join = staticmethod(whole)


class Negated(InTwo):
    join = staticmethod(negated)


class Halved(Diffusers):
    cls = InTwo

    def __init__(self):
        super().__init__()
        self.pipe = tiny.sd(cls=self.cls)
        self.pipe.unet.register_forward_pre_hook(self._before, with_kwargs=True)

    def hooks(self):
        return super().hooks() - (type(self.pipe) is self.cls)  # the class is not that of diffusers to begin with


class HalvedTheOtherWay(Halved):
    cls = Reversed


@pytest.mark.parametrize("kind", [Halved], ids=["in two"])
class TestContract(HostContract):
    @pytest.fixture
    def host(self, kind):
        return kind()


@pytest.mark.parametrize("kind", [Halved, HalvedTheOtherWay], ids=["prompt first", "prompt second"])
class TestTreated(TreatedContract):
    @pytest.fixture
    def host(self, kind):
        return kind()


@pytest.fixture(autouse=True)
def keep(monkeypatch):
    monkeypatch.setattr("memguard.loop.helped", lambda *_: True)


KINDS = [InTwo, Reversed, Renormalised, Whole, Negated]


def treated(pipe, make, **more):
    """Return the picture under a treatment by policy, the report, and the same by attach."""
    known = Guard()
    generate(pipe, known, prompt="a red fox", **more)
    guard = Guard(policy="mitigate", mitigation=Given(make, ([],)), profile=profile(known, 2e-9))
    made = generate(pipe, guard, prompt="a red fox", **more)
    assert guard.report.error is None and [attempt.kept for attempt in guard.report.attempts] == [True]
    with Given(make, ([],)).attach(pipe):
        attached = generate(pipe, prompt="a red fox", **more)
    return made, guard.report, attached


@pytest.mark.parametrize("cls", KINDS)
@pytest.mark.parametrize("share", [2.0, 0.4])
def test_another_share_of_the_gap_is_another_scale(cls, share):
    """Where the number that the pipeline multiplies by follows the predictions, it follows the other ones."""
    pipe = tiny.sd(cls=cls)
    made, report, attached = treated(pipe, lambda start: {"guidance": (Gap(share),)}, guidance_scale=5.0)
    pipe.join = lambda cond, uncond, scale: cls.join(uncond + share * (cond - uncond), uncond, scale)
    torch.testing.assert_close(made, generate(pipe, prompt="a red fox", guidance_scale=5.0), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(made, attached, rtol=1e-4, atol=1e-4)
    assert report.actions == ("as given",)


@pytest.mark.parametrize("cls", KINDS)
def test_the_first_step_is_put_in_the_place_of_the_pipeline_s_own(cls):
    pipe = tiny.sd(cls=cls)
    made, report, attached = treated(pipe, other_text)
    expected = generate(pipe, prompt="a blue house")
    torch.testing.assert_close(made, expected, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(attached, expected, rtol=1e-4, atol=1e-4)


def test_packed_latents_of_flux():
    pipe = tiny.flux()
    given = {"true_cfg_scale": 4.0, "negative_prompt": "a house", "max_sequence_length": 16, "height": 32, "width": 16}
    made, report, attached = treated(pipe, lambda start: {"guidance": (Gap(2.0),)}, **given)
    torch.testing.assert_close(
        made, generate(pipe, prompt="a red fox", **given | {"true_cfg_scale": 8.0}), rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(made, attached, rtol=1e-4, atol=1e-4)
    made, report, _ = treated(pipe, lambda start: {"noise": start.noise.flip(-1)}, **given)
    assert report.actions == ("as given",) and report.scores_after != report.scores_before


@pytest.mark.parametrize("name", ["guidance_delay", "local_guidance", "noise_adjustment", "prompt_optimization"])
def test_mitigations_act_on_flux(name, caplog):
    settings = {"noise_adjustment": {"rounds": 1}, "prompt_optimization": {"iterations": 2}}.get(name, {})
    pipe = tiny.flux()
    given = {"true_cfg_scale": 4.0, "negative_prompt": "a house", "max_sequence_length": 16, "height": 16, "width": 16}
    before = generate(pipe, prompt="a red fox", **given)
    with mitigations.get(name, **settings).attach(pipe):
        changed = generate(pipe, prompt="a red fox", **given)
    assert not caplog.messages and not torch.equal(before, changed) and bool(changed.isfinite().all())


def test_what_the_pipeline_makes_of_its_predictions_must_be_known():
    """As adaptive projected guidance; the picture is the plain one, and the report says why."""
    pipe = tiny.sd(cls=InTwo)
    pipe.join = lambda cond, uncond, scale: (uncond + scale * (cond - uncond)).tanh()
    known = Guard()
    before = generate(pipe, known, prompt="a red fox")
    for make in (lambda start: {"guidance": (Gap(0.5),)}, other_text, lambda start: {"noise": start.noise.flip(-1)}):
        guard = Guard(policy="mitigate", mitigation=Given(make, ([],)), profile=profile(known, 2e-9))
        assert torch.equal(generate(pipe, guard, prompt="a red fox"), before)
        (attempt,) = guard.report.attempts
        assert not attempt.kept and "what the pipeline makes of its two predictions" in " ".join(guard.report.notes)


def test_a_treatment_that_ends_says_after_how_many_calls(monkeypatch):
    pipe, put, calls = tiny.sd(cls=InTwo), Halves.put, []

    def broken(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyError("inside")
        return put(*args)

    known = Guard()
    generate(pipe, known, prompt="a red fox")
    monkeypatch.setattr(Halves, "put", broken)
    given = Given(lambda start: other_text(start) | {"guidance": (Gap(0.4),)}, ([],))
    guard = Guard(policy="mitigate", mitigation=given, profile=profile(known, 2e-9))
    generate(pipe, guard, prompt="a red fox")
    assert "after 6 model calls" in guard.report.notes[-1]  # two steps, and both calls of the third


@pytest.mark.parametrize("hidden", [False, True])
def test_a_step_that_predicts_alike_is_left_as_it_is(monkeypatch, hidden):
    pipe, given = tiny.sd(cls=InTwo), {"prompt": "a red fox", "guidance_scale": 5.0}
    if hidden:
        monkeypatch.setattr(
            Prompts, "roles", lambda self, text: (_ for _ in ()).throw(Unscored("the rows were hidden"))
        )
    forward, calls = pipe.unet.forward, []

    def alike(*args, **kwargs):
        made = forward(*args, **kwargs)
        calls.append(made[0])
        return (calls[4],) if len(calls) == 6 else made  # the third step's second prediction is its first

    known, gap = Guard(), Gap(0.4)
    generate(pipe, known, **given)
    pipe.unet.forward = alike
    guard = Guard(policy="mitigate", mitigation=Given(lambda start: {"guidance": (gap,)}), profile=profile(known, 2e-9))
    made = generate(pipe, guard, **given)
    assert guard.report.error is None and guard.report.actions == ("as given",)
    assert [step.index for step in gap.steps] == [0, 1, 3]
    del calls[:]
    pipe.join = lambda cond, uncond, scale: plain(uncond + 0.4 * (cond - uncond), uncond, scale)
    torch.testing.assert_close(made, generate(pipe, **given), rtol=2e-3, atol=2e-3)


def test_compared_with_the_empty_prompt_it_is_judged_too_early():
    pipe, given = tiny.sd(cls=InTwo), {"prompt": "a red fox", "negative_prompt": "ugly"}
    known = Guard(reference="empty")
    before = generate(pipe, known, **given)
    guard = Guard(policy="mitigate", profile=profile(known, 2e-9), reference="empty")
    assert torch.equal(generate(pipe, guard, **given), before)
    assert "use the negative prompt as reference" in guard.report.attempts[0].changes[0]


@pytest.mark.parametrize("at", ["find", "shaped"])
def test_an_error_of_ours_at_the_scheduler_s_step_costs_the_mitigation_and_no_picture(monkeypatch, at):
    pipe = tiny.sd(cls=InTwo)
    known = Guard()
    before = generate(pipe, known, prompt="a red fox")

    def broken(*_):
        raise KeyError("inside")

    monkeypatch.setattr(f"memguard.hosts.diffusers.halves.{at}", broken)
    guard = Guard(policy="mitigate", mitigation=Given(other_text, ([],)), profile=profile(known, 2e-9))
    assert torch.equal(generate(pipe, guard, prompt="a red fox"), before)
    assert guard.report.error == "KeyError: 'inside'" and not guard.report.attempts[0].kept
    assert "step" not in vars(pipe.scheduler)
    monkeypatch.undo()
    assert torch.equal(generate(pipe, prompt="a red fox"), before)


@pytest.mark.parametrize("join", [plain, renormalised, whole, negated])
def test_what_is_put_is_what_the_pipeline_would_have_made(join):
    drawn = torch.Generator().manual_seed(0)
    cond, uncond, other, another = torch.randn(4, 3, 4, 8, 8, generator=drawn)
    received = join(cond, uncond, 5.0)
    found = find([cond, uncond], received, None, 5.0)
    torch.testing.assert_close(found.put(received, other, another), join(other, another, 5.0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.put(received, cond, uncond), received, rtol=1e-4, atol=1e-4)
