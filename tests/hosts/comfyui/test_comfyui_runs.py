"""Runs beside, inside and after each other; runs that end early; errors of ours; from a latent to its report."""

import copy
import threading

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from memguard_pack.memguard.calibration import Conditions, Profile, fit
from memguard_pack.memguard.detectors import text_noise_norm
from memguard_pack.memguard.guard import MemorizationStop
from memguard_pack.memguard.hosts.comfyui import latents, model, screen, watcher
from memguard_pack.memguard.troubles import UNFORESEEN
from memguard_pack.tests.hosts.comfyui import tiny

SD15 = tiny.build("sd15")
POSITIVE, NEGATIVE, OTHER = (tiny.prompt(seed=seed) for seed in (1, 2, 3))
IMAGE = tiny.latent()


def go(patcher, positive=POSITIVE, **more):
    return tiny.sample(patcher, positive, NEGATIVE, IMAGE, **more)


def profile_at(rms: float) -> Profile:
    """Return a profile in which ordinary prompts score about this much."""
    conditions = Conditions(
        model.name_of(SD15), "sd15", (8, 8), 14.6146, 999.0, 1, 1, "any", "negative", "float32", 2.0
    )
    return Profile(conditions, {"text_noise_norm": fit([rms * (1 + i / 100) for i in range(320)])})


# the score of POSITIVE is 0.2546, its RMS 0.0159
FLAGS, PASSES = profile_at(0.001), profile_at(0.1)


@pytest.fixture
def shown(monkeypatch):
    """What a person would see: the reports that go to the screen."""
    seen = []
    monkeypatch.setattr(screen, "show", lambda report, home=None, again=False: seen.append(report))
    return seen


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "lcm", "ddim"])
def test_the_map_is_that_of_the_last_step(sampler, watch):
    """Scored at every call, the last call's score is the root of the map's sum."""
    settings = {"sampler": sampler, "steps": 4, "cfg": 5.0}
    all_watched, every = watch(SD15, steps=50)
    scores = every.report_of(go(all_watched, **settings)).findings[0].per_step
    watched, made = watch(SD15)
    heat = made.report_of(go(watched, **settings)).noise_gap_map
    assert float(heat.sum() * 4) ** 0.5 == pytest.approx(scores[-1][0], rel=1e-4)
    assert scores[-1][0] != pytest.approx(scores[0][0], rel=1e-3)


# --- policies ------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows_of_model():
    counted = []
    hook = SD15.model.diffusion_model.register_forward_pre_hook(lambda module, inputs: counted.append(len(inputs[0])))
    yield counted
    hook.remove()


@pytest.mark.parametrize("policy", ["observe", "warn"])
def test_watching_and_warning_touch_nothing(policy, watch, shown):
    plain = go(SD15)
    watched, made = watch(SD15, policy=policy, profile=FLAGS)
    seen = go(watched)
    assert torch.equal(plain, seen)
    assert made.report_of(seen).verdict == "memorized"
    # once when the verdict is known, once more with the whole curve
    assert [(report.run, len(report.curve)) for report in shown] == [(shown[0].run, 0), (shown[0].run, 3)]


def test_stop_ends_the_run_after_the_first_step_with_a_message(watch, shown, rows_of_model):
    watched, _ = watch(SD15, policy="stop", profile=FLAGS)
    with pytest.raises(MemorizationStop, match="^MemGuard: looks memorized .* Stopped before more steps were spent"):
        go(watched, steps=20)
    assert sum(rows_of_model) == 2  # one pair
    assert [report.verdict for report in shown] == 2 * ["memorized"] and shown[0].run == shown[1].run
    assert torch.equal(go(watch(SD15)[0]), go(SD15))  # and the next run is a normal one


def test_stop_lets_an_ordinary_prompt_through(watch, shown):
    watched, made = watch(SD15, policy="stop", profile=PASSES)
    seen = go(watched)
    assert torch.equal(go(SD15), seen) and made.report_of(seen).verdict == "ordinary"


# --- errors of ours ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["detector", "roles", "facts"])
def broken(request, monkeypatch):
    """An error in one part of memguard."""

    def fail(*args, **kwargs):
        raise ZeroDivisionError("broken on purpose")

    if request.param == "detector":
        monkeypatch.setattr(text_noise_norm, "detect", fail)
    else:
        target = {"roles": "sampling.roles.role_of", "facts": "watcher._facts"}[request.param]
        monkeypatch.setattr(f"memguard_pack.memguard.hosts.comfyui.{target}", fail)


@pytest.mark.parametrize("policy", ["observe", "warn"])
def test_an_error_of_ours_never_costs_the_picture(policy, broken, watch):
    watched, made = watch(SD15, policy=policy)
    seen = go(watched)
    assert torch.equal(go(SD15), seen)
    report = made.report_of(seen)
    assert report.error == "ZeroDivisionError: broken on purpose"
    assert report.findings[0].status == UNFORESEEN


def test_an_error_of_ours_ends_the_run_under_stop(broken, watch):
    watched, _ = watch(SD15, policy="stop")
    with pytest.raises(MemorizationStop, match=UNFORESEEN) as ended:
        go(watched)
    assert isinstance(ended.value.__cause__, ZeroDivisionError)
    assert watcher._running.get() == ()


def test_a_screen_that_cannot_be_reached_does_not_cost_the_picture(watch, monkeypatch):
    def fail(report):
        raise OSError("no page")

    monkeypatch.setattr(screen, "show", fail)
    watched, made = watch(SD15)
    assert made.report_of(go(watched)).findings[0].status == "ok"


# --- runs that end early -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at, status", [(0, "the run ended before its first step was complete"), (1, "ok")])
def test_an_interrupted_run_keeps_what_it_has(at, status, watch, shown):
    watched, _ = watch(SD15)
    calls = []

    def interrupt(state):
        calls.append(1)
        if len(calls) > at:
            raise comfy.model_management.InterruptProcessingException
        return state["denoised"]

    watched.set_model_sampler_post_cfg_function(interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        go(watched)
    assert shown[-1].findings[0].status == status
    assert watcher._running.get() == ()


def test_a_run_without_a_model_call_has_a_reason(watch, shown):
    watched, _ = watch(SD15)
    guider = comfy.samplers.CFGGuider(watched)
    guider.set_conds(POSITIVE, NEGATIVE)
    tiny.guide(guider, IMAGE, sigmas=torch.tensor([14.6]))
    assert shown[-1].findings[0].status == "the sampler made no step, so there was nothing to score"


# --- clones, several samplers, several models ----------------------------------------------------------------------


def test_a_clone_keeps_the_guard_and_later_options_do_not_copy_it(watch):
    watched, made = watch(SD15)
    later = watched.clone()
    later.set_model_sampler_post_cfg_function(lambda state: state["denoised"] * 1.0)
    seen = go(later.clone())
    assert made.report_of(seen).findings[0].status == "ok"
    assert copy.deepcopy(made) is made
    assert not any(callable(value) for value in watched.model_options.values())


def test_a_second_guard_replaces_the_first_and_the_model_below_stays_free(watch, rows):
    first, one = watch(SD15, steps=1)
    second, two = watch(first, steps=2)
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.PREDICT_NOISE, WrappersMP.CALC_COND_BATCH):
        assert [len(patcher.get_wrappers(kind, watcher.KEY)) for patcher in (SD15, first, second)] == [0, 1, 1]
    seen = go(second)
    assert len(two.report_of(seen).findings[0].per_step) == 2
    assert one.report_of(seen).findings[0].status.startswith("another MemGuard node watched the run")


def test_two_samplers_on_one_model_have_a_report_each(watch):
    watched, made = watch(SD15)
    a, b = go(watched, seed=1), go(watched, seed=2)
    reports = [made.report_of(a), made.report_of(b)]
    assert [report.seeds for report in reports] == [(1,), (2,)]
    assert reports[0].findings[0].scores != reports[1].findings[0].scores


def test_a_second_pass_over_the_first_one_s_latent_has_its_own_report(watch):
    watched, made = watch(SD15)
    first = go(watched)
    second = tiny.sample(watched, POSITIVE, NEGATIVE, first, denoise=0.5, steps=6)
    assert made.report_of(first).findings[0].sigma == pytest.approx(14.6146, abs=1e-3)
    assert made.report_of(second).findings[0].sigma < 10


def test_a_run_inside_a_run(watch):
    inner, inside = watch(SD15, steps=2)
    results = []

    def nested(state):
        if not results:
            results.append(go(inner, positive=OTHER, seed=9))
        return state["denoised"]

    outer, outside = watch(tiny.build("sd15", seed=3))
    outer.set_model_sampler_post_cfg_function(nested)
    seen = go(outer)
    assert outside.report_of(seen).seeds == (5,) and outside.report_of(seen).findings[0].status == "ok"
    alone, made = watch(SD15, steps=2)
    expected = made.report_of(go(alone, positive=OTHER, seed=9)).findings[0].per_step
    assert inside.report_of(results[0]).findings[0].per_step == expected
    assert watcher._running.get() == ()


def test_runs_in_two_threads_do_not_mix(watch):
    models = [tiny.build("sd15", seed=seed) for seed in (0, 3)]
    watched, made = zip(*(watch(each) for each in models), strict=True)
    noise = [comfy.sample.prepare_noise(IMAGE, seed) for seed in (0, 1)]  # drawn from a generator that threads share

    def score(i):
        seen = comfy.sample.sample(
            watched[i], noise[i], 3, 7.5, "euler", "normal", POSITIVE, NEGATIVE, IMAGE, seed=i, disable_pbar=True
        )
        return made[i].report_of(seen).findings[0].scores

    alone = [score(0), score(1)]
    together = {}

    def work(i):
        with torch.inference_mode():
            together[i] = [score(i) for _ in range(4)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == {0: [alone[0]] * 4, 1: [alone[1]] * 4}


# --- from a latent to its report -----------------------------------------------------------------------------------


def test_a_latent_nobody_guarded_has_a_reason(watch):
    _, made = watch(SD15)
    report = made.report_of(go(SD15, seed=77))
    assert (
        report.findings[0].status
        == "no guarded run made this latent: the sampler made no step (denoise 0), or MemGuard does "
        "not stand between the model and the sampler"
    )


def test_a_handle_made_again_finds_the_run_of_the_one_before(watch):
    watched, _ = watch(SD15, steps=2)
    seen = go(watched, seed=31)
    _, again = watch(SD15, steps=2)
    assert again.report_of(seen).seeds == (31,)


def test_a_changed_latent_is_found_within_its_prompt_only(watch, monkeypatch):
    place = ["prompt-a", "6"]
    monkeypatch.setattr(screen, "place", lambda: tuple(place))
    watched, made = watch(SD15, sensitivity=98.5)
    seen = go(watched)
    report = made.report_of(seen * 2)
    assert report.seeds == (5,) and report.notes[-1].startswith(
        "the latent was changed after sampling; this is the only"
    )
    go(watched, seed=6)
    assert "several guarded runs" in made.report_of(seen * 2).findings[0].status
    place[0] = "prompt-b"
    assert made.report_of(seen * 2).findings[0].status.startswith("no guarded run made this latent")


def test_the_store_forgets_the_oldest():
    store = latents.ReportStore()
    for i in range(latents.KEPT + 1):
        report = latents.missing(f"run {i}")
        store.put("s", torch.full((1,), float(i)), None, report.__class__(run=str(i)))
    assert store.find("s", torch.full((1,), 0.0), None).run == ""
    assert store.find("s", torch.full((1,), 1.0), None).run == "1"
