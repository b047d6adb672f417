"""Every hook of ours is broken on purpose: the picture is the plain one, a warning says so, nothing stays behind."""

from functools import cache

import pytest
import torch

from memguard_pack.memguard import MemorizationStop
from memguard_pack.memguard.guard import Guard
from memguard_pack.memguard.hosts.comfyui.watcher import Watcher, _running
from memguard_pack.tests.hosts.comfyui.scene import Scene, made
from memguard_pack.tests.hosts.comfyui.test_comfyui_mitigation_errors import state

HERE = "memguard_pack.memguard.hosts.comfyui"
# each hook by what breaks in it
WATCHING = {
    "outer: place": f"{HERE}.screen.place",
    "outer: facts": f"{HERE}.watcher._facts",
    "outer: sampling": f"{HERE}.watcher.Sampling",
    "outer: empty prompt": f"{HERE}.watcher.Watcher._lend_empty_prompt",
    "predict: step": f"{HERE}.sampling.Sampling._step",
    "predict: windows": f"{HERE}.sampling.past_windows",
    "predict: reading": f"{HERE}.reading.Reading.begin",
    "predict: evidence": f"{HERE}.predictions.Predictions.evidence",
    "predict: reading's end": f"{HERE}.reading.Reading.end",
    "predict: last step": f"{HERE}.sampling.gap_map",
    "predict: words": f"{HERE}.explanation.Explanation.take",
    "calc: announcement": f"{HERE}.reading.Reading.expect",
    "calc: predictions": f"{HERE}.predictions.Predictions.take",
    "attention: hooks": f"{HERE}.attention.AttentionReader._hook",
    "attention: rows": f"{HERE}.attention.AttentionReader._sort",
    "end: words": f"{HERE}.explanation.Explanation.words",
    "end: maps": f"{HERE}.sampling.maps",
    "end: mitigations": f"{HERE}.treating.lines",
    "end: report": f"{HERE}.sampling.Sampling.finish",
    "end: memory": f"{HERE}.known.noted",
    "end: store": f"{HERE}.latents.ReportStore.put",
    "end: store of maps": f"{HERE}.latents.ReportStore.keep_maps",
}
# the run has its score by then, so nobody is stopped
SCORED = [name for name in WATCHING if name.startswith("end")] + ["predict: last step", "predict: words"]
MITIGATING = {
    "sampler: start": f"{HERE}.steering.Began",
    "predict: options": f"{HERE}.edits.Editor.options",
    "calc: announcement": f"{HERE}.edits.Editor.expect",
    "calc: first call": f"{HERE}.mitigating.Mitigating._keep",
    "calc: guidance": f"{HERE}.steering.Steering._guide",
    "first call": "memguard_pack.memguard.sampling.Sampling.start",
    "adopt": f"{HERE}.mitigating.Steering.adopt",
    "attention: rows": f"{HERE}.edits.Editor.parts",
    "attention: edits": f"{HERE}.following.Followed.options",
    "attention: layer": f"{HERE}.edits.Editor.layers",
    "attention: fit": "memguard_pack.memguard.mitigations.edit.Plan.fits",
}
READING = [name for name, target in WATCHING.items() if "eading." in target or "attention." in target]
NODES = [name for name in MITIGATING if name != "calc: first call"]


class Broken(Exception):
    """Ours."""


@pytest.fixture
def broken(monkeypatch):
    """A function that breaks what is named, and a list that tells whether it was reached."""
    reached = []

    def put(target):
        def fail(*_, **__):
            reached.append(target)
            raise Broken("on purpose")

        owner, name = target.rsplit(".", 1)
        monkeypatch.setattr(target, property(fail) if name == "layers" else fail)
        return reached

    return put


def watched(here, policy, rms, detectors=("text_noise_norm", "attention_entropy")):
    known = here.watched(made("attention_scaling"), rms)[1].guard.profile
    guard = Guard(
        detectors,
        policy=policy,
        mitigation="auto" if policy == "mitigate" else None,
        profile=known,
    )
    watcher = Watcher(guard, here.negative, clip=here.clip, explain="always")
    return watcher.install(here.model), watcher


def sampled(here, model):
    return here.sample(model, steps=2)


@cache
def plain():
    with pytest.MonkeyPatch.context() as patch:
        here = Scene(patch)
        return sampled(here, here.model)


@pytest.mark.parametrize("name", WATCHING)
def test_a_broken_hook_of_watching_costs_nothing(name, broken, monkeypatch, caplog):
    """Under mitigate the prompt is an ordinary one: nothing of the treatment is to be seen in its picture."""
    here = Scene(monkeypatch)
    reached = broken(WATCHING[name])
    for policy in ("observe", "warn", "mitigate"):
        model, watcher = watched(here, policy, rms=10.0)
        before = state(here.model), state(model)
        reached.clear()
        caplog.clear()
        assert torch.equal(plain(), sampled(here, model)), policy
        assert reached, "the hook was not reached, so nothing was tested"
        assert (state(here.model), state(model)) == before and _running.get() == ()
        assert "on purpose" in caplog.text, policy
        report = watcher.guard.report
        said = " ".join((*report.notes, *(finding.status for finding in report.findings))) if report else ""
        assert "on purpose" not in said, "raw text is never a reason"


@pytest.mark.parametrize("name", [name for name in WATCHING if name not in SCORED])
def test_a_broken_hook_of_watching_ends_the_run_under_stop(name, broken, monkeypatch):
    here = Scene(monkeypatch)
    model, _ = watched(here, "stop", rms=10.0)
    before = state(here.model), state(model)
    broken(WATCHING[name])
    with pytest.raises(MemorizationStop, match=r"^MemGuard: no score, because an error inside MemGuard.*\. Stopped"):
        sampled(here, model)
    assert (state(here.model), state(model)) == before and _running.get() == ()


@pytest.mark.parametrize("name", READING)
def test_attention_that_no_detector_asks_for_ends_no_run_under_stop(name, broken, monkeypatch, caplog):
    here = Scene(monkeypatch)
    model, watcher = watched(here, "stop", 10.0, ("text_noise_norm",))
    reached = broken(WATCHING[name])
    assert torch.equal(plain(), sampled(here, model)) and reached
    assert watcher.guard.report.verdict == "ordinary" and "on purpose" in caplog.text
    with pytest.raises(MemorizationStop, match="looks memorized"):
        sampled(here, watched(here, "stop", 1e-7, ("text_noise_norm",))[0])


def test_a_flagged_run_is_stopped_whatever_breaks_before_its_words(broken, monkeypatch):
    here = Scene(monkeypatch)
    model, watcher = watched(here, "stop", 1e-7)
    reached = broken(f"{HERE}.sampling.alone")
    with pytest.raises(MemorizationStop, match="looks memorized"):
        sampled(here, model)
    assert reached and watcher.guard.report.verdict == "memorized"


@pytest.mark.parametrize(
    ("mitigation", "name"),
    [
        ("guidance_delay", "calc: guidance"),
        *(("attention_scaling", name) for name in MITIGATING if name != "calc: guidance"),
    ],
)
def test_a_broken_hook_of_mitigating_costs_no_picture(name, mitigation, broken, monkeypatch, caplog):
    here = Scene(monkeypatch)
    model, watcher = here.watched(made(mitigation))
    before = state(here.model), state(model)
    reached = broken(MITIGATING[name])
    seen = sampled(here, model)
    assert reached, "the hook was not reached, so nothing was tested"
    assert (state(here.model), state(model)) == before and _running.get() == ()
    report = watcher.guard.report
    treated = name == "calc: first call"  # what is kept of it only spares a call, so the run is treated all the same
    assert torch.equal(plain(), seen) != treated and torch.isfinite(seen).all()
    assert bool(report.actions) == treated and "on purpose" not in " ".join(report.notes)
    assert "on purpose" in caplog.text


@pytest.mark.parametrize(
    ("mitigation", "name"),
    [
        ("guidance_delay", "calc: guidance"),
        *(("attention_scaling", name) for name in NODES if name != "calc: guidance"),
    ],
)
def test_a_broken_hook_of_a_mitigation_node_costs_no_picture(name, mitigation, broken, monkeypatch, caplog):
    here = Scene(monkeypatch)
    model = here.treated(made(mitigation))
    before = state(here.model), state(model)
    reached = broken(MITIGATING[name])
    assert torch.equal(plain(), sampled(here, model))
    assert reached, "the hook was not reached, so nothing was tested"
    assert (state(here.model), state(model)) == before
    assert "on purpose" in caplog.text
