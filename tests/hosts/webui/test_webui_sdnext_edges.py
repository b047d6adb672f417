"""The adapter of SD.Next over a pipeline of diffusers, with the host's modules stood in for: edges of its calls."""

import importlib

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import EulerDiscreteScheduler

from memguard import Guard
from memguard.hosts.webui.session import Session
from memguard_pack.tests.hosts.webui.stand_ins import Processing, session
from tests.hosts import tiny
from tests.hosts.contract import profile

SIZE = {"num_inference_steps": 3, "guidance_scale": 7.5, "width": 32, "height": 32, "output_type": "latent"}


@pytest.fixture(scope="module")
def pipe():
    return tiny.sd()


@pytest.fixture
def sdnext(host):
    """The adapter, over a host that makes the arguments of a call as SD.Next does."""
    host.processing_diffusers.set_pipeline_args = arguments
    return importlib.import_module("memguard.hosts.sdnext")


def arguments(p, model, prompts, negative_prompts, desc="Base", **more):
    """Return what the host calls the pipeline with: vectors, and no text."""
    cond, uncond = model.encode_prompt(prompts, "cpu", 1, True, negative_prompts)
    generator = [torch.Generator().manual_seed(seed) for seed in p.seeds]
    return SIZE | {"prompt_embeds": cond, "negative_prompt_embeds": uncond, "generator": generator} | more


def called(host, p, pipe, desc="Base", **more):
    """Do what the host does for one call of a pipeline."""
    make = host.processing_diffusers.set_pipeline_args
    given = make(p=p, model=pipe, prompts=list(p.prompts), negative_prompts=[""], desc=desc, **more)
    return pipe(**given).images


def watched(sdnext, p, made):
    watch = sdnext.Watch(made)
    watch.own(p)
    return watch


@pytest.fixture
def flagged(pipe):
    return flagging(pipe)


def flagging(pipe):
    """Return a guard's settings under which a run of the prompt looks memorized."""
    guard = Guard()
    with guard.attach(pipe):
        pipe("a fox", generator=torch.Generator().manual_seed(3), **SIZE)
    return {"profile": profile(guard)}


def settled(host, pipe):
    """Whether nothing of ours stands in the host or the pipeline."""
    hooks = [part for part in pipe.unet.modules() if part._forward_hooks or part._forward_pre_hooks]
    return (
        host.processing_diffusers.set_pipeline_args is arguments
        and type(pipe) is type(tiny.sd())
        and not hooks
        and "step" not in vars(pipe.scheduler)
    )


def test_a_call_is_scored_as_diffusers_own_and_the_picture_is_the_same(host, sdnext, pipe):
    p, made = Processing(), session()
    plain = called(host, p, pipe)
    watch = watched(sdnext, p, made)
    assert torch.equal(called(host, p, pipe), plain)
    watch.leave()
    guard = Guard()
    with guard.attach(pipe):
        pipe("a fox", generator=torch.Generator().manual_seed(3), **SIZE)
    (report,) = made.reports
    assert report.findings[0].scores == pytest.approx(guard.report.findings[0].scores, rel=1e-6)
    assert (report.host, report.prompt, report.negative_prompt, report.sampler) == ("a1111", "a fox", "", "Euler")
    assert report.model == guard.report.model and report.seeds == (3,) and settled(host, pipe)


def test_stop_ends_the_call_in_the_host_s_own_way_and_refuses_the_next(host, sdnext, pipe, flagged):
    p, stops = Processing(n_iter=2), []
    made = Session(Guard(policy="stop", **flagged), "sdnext", "", lambda: stops.append(True))
    watch = watched(sdnext, p, made)
    with pytest.raises(AssertionError, match="looks memorized"):
        called(host, p, pipe)
    assert made.stopped.startswith("MemGuard: looks memorized") and stops == [True]
    calls = []
    handle = pipe.unet.register_forward_hook(lambda *_: calls.append(True))
    with pytest.raises(AssertionError, match="looks memorized"):
        called(host, p, pipe)
    handle.remove()
    watch.leave()
    assert calls == [] and settled(host, pipe)


@pytest.mark.parametrize("name", ["_place", "attach", "denoiser"])
@pytest.mark.parametrize("policy", ["observe", "stop"])
def test_an_error_of_ours_costs_no_picture_but_under_stop(host, sdnext, pipe, monkeypatch, policy, name):
    def broken(*_, **__):
        raise KeyError("broken")

    p, made = Processing(), session(policy)
    plain = called(host, p, pipe)
    monkeypatch.setattr(sdnext.Watch if hasattr(sdnext.Watch, name) else sdnext, name, broken)
    watch = watched(sdnext, p, made)
    if policy == "stop":
        with pytest.raises(AssertionError, match="because"):
            called(host, p, pipe)
    else:
        assert torch.equal(called(host, p, pipe), plain)
    watch.finish()
    watch.leave()
    assert "broken" in made.reports[-1].error and made.reports[-1].verdict == "unknown" and settled(host, pipe)


def test_arguments_of_a_call_that_is_never_made_leave_nothing(host, sdnext, pipe):
    p, made = Processing(), session()
    watch = watched(sdnext, p, made)
    make = host.processing_diffusers.set_pipeline_args
    for _ in range(2):
        make(p=p, model=pipe, prompts=["a fox"], negative_prompts=[""])
    called(host, p, pipe)
    make(p=p, model=pipe, prompts=["a fox"], negative_prompts=[""])
    watch.finish()
    watch.leave()
    assert [bool(report.findings[0].scores) for report in made.reports] == [False, False, True, False]
    assert settled(host, pipe)


def test_an_interrupt_of_the_host_closes_the_pass_with_its_score(host, sdnext, pipe):
    def interrupt(pipe, step, timestep, given):
        raise AssertionError("Interrupted...")

    p, made = Processing(), session()
    watch = watched(sdnext, p, made)
    with pytest.raises(AssertionError, match=r"Interrupted\.\.\."):
        called(host, p, pipe, callback_on_step_end=interrupt)
    watch.leave()
    assert made.reports[0].findings[0].scores and not made.stopped and settled(host, pipe)


def test_who_stands_on_the_host_s_function_stays_there_and_ours_is_silent(host, sdnext, pipe):
    p, made = Processing(), session()
    watch = watched(sdnext, p, made)
    below = host.processing_diffusers.set_pipeline_args

    def other(*args, **given):
        return below(*args, **given)

    host.processing_diffusers.set_pipeline_args = other
    watch.leave()
    assert host.processing_diffusers.set_pipeline_args is other
    called(host, p, pipe)
    assert made.reports == [] and made.now is None


def test_each_pass_says_which_it_is(host, sdnext, pipe):
    p, made = Processing(n_iter=2), session()
    p.iteration, detail = 1, Processing()
    watch = watched(sdnext, p, made)
    for each, desc in ((p, "Base"), (p, "Hires"), (p, "Refiner"), (detail, "Detail")):
        called(host, each, pipe, desc)
    watch.leave()
    assert [place.kind for place in made.places] == ["", "hires", "refiner", "inner"]
    assert [place.painted for place in made.places] == [False, True, True, True]
    assert {place.batch for place in made.places} == {1}
    assert made.places[2].name == "batch 2 of 2, pass of the refiner"


def test_a_second_pass_below_full_noise_repeats_what_the_first_went_on_with(host, sdnext):
    p, pipe = Processing(), tiny.sd()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    guard = Guard(policy="mitigate", mitigation="guidance_delay", **flagging(pipe))
    made = Session(guard, "sdnext", "", lambda: None)
    plain = called(host, p, pipe, timesteps=[801, 401, 1])
    watch = watched(sdnext, p, made)
    called(host, p, pipe)
    second = called(host, p, pipe, "Hires", timesteps=[801, 401, 1])
    watch.leave()
    names = [report.attempts[0].mitigation for report in made.reports]
    assert names == ["Guidance delay", "Guidance delay, as in the first pass"]
    assert made.reports[1].findings[-1].carried == made.reports[0].run
    assert not torch.equal(second, plain) and settled(host, pipe)


def test_a_check_ends_when_the_score_is_there(host, sdnext, pipe):
    class Checked(BaseException):
        pass

    def enough():
        raise Checked

    p, made = Processing(), Session(Guard(), "sdnext", "", lambda: None, enough=enough)
    watch, calls = watched(sdnext, p, made), []
    handle = pipe.unet.register_forward_hook(lambda *_: calls.append(True), prepend=True)
    with pytest.raises(Checked):
        called(host, p, pipe)
    handle.remove()
    watch.leave()
    assert len(calls) == 1 and made.reports[0].findings[0].scores and settled(host, pipe)


def test_prompts_are_counted_in_chunks(host, sdnext, pipe):
    tokens = sdnext.text_engine(pipe)
    assert [len(tokens.tokenize_line(text)[0]) for text in ("", "a fox", 75 * "fox ", 76 * "fox ")] == [1, 1, 1, 2]


@pytest.mark.parametrize("name", ["a1111", "forge", "sdnext"])
def test_every_adapter_has_what_calibration_asks_it_for(host, name):
    adapter = importlib.import_module(f"memguard.hosts.{name}")
    assert callable(adapter.network) and callable(adapter.text_engine) and callable(adapter.Watch)
