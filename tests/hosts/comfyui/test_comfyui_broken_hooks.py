"""Every hook of ours is broken on purpose: the picture is the plain one, a warning says so, nothing stays behind."""

import logging

import pytest
import torch

from memguard_pack.memguard import MemorizationStop
from memguard_pack.memguard.guard import Guard
from memguard_pack.memguard.hosts.comfyui.watcher import Watcher, _running
from memguard_pack.memguard.mitigations.effect import NOTHING
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
    "predict: words": f"{HERE}.sampling.Sampling._explain",
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
AT_END = [name for name in WATCHING if name.startswith("end")] + ["predict: last step"]
MITIGATING = {
    "sampler: start": f"{HERE}.steering.Began",
    "predict: options": f"{HERE}.edits.Editor.options",
    "calc: announcement": f"{HERE}.edits.Editor.expect",
    "calc: first call": f"{HERE}.mitigating.Mitigating._keep",
    "calc: guidance": f"{HERE}.steering.Steering._guide",
    "first call": f"{HERE}.mitigating.start",
    "adopt": f"{HERE}.mitigating.Steering.adopt",
    "attention: rows": f"{HERE}.edits.Editor.parts",
    "attention: edits": f"{HERE}.following.Followed.options",
    "attention: layer": f"{HERE}.edits.Editor.layers",
    "attention: fit": "memguard_pack.memguard.mitigations.edit.Plan.fits",
}
NODES = [name for name in MITIGATING if name not in ("calc: first call", "first call")]


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


def watched(here, policy, rms=1e-7):
    known = here.watched(made("attention_scaling"), rms)[1].guard.profile
    guard = Guard(
        ("text_noise_norm", "attention_entropy"),
        policy=policy,
        mitigation="auto" if policy == "mitigate" else None,
        profile=known,
    )
    watcher = Watcher(guard, here.negative, clip=here.clip, explain="always")
    return watcher.install(here.model), watcher


def sampled(here, model, warned):
    warned.clear()
    with warned.at_level(logging.WARNING, "memguard_pack.memguard"):
        return here.sample(model)


@pytest.mark.parametrize("policy", ["observe", "warn"])
@pytest.mark.parametrize("name", WATCHING)
def test_a_broken_hook_of_watching_costs_nothing(name, policy, broken, monkeypatch, caplog):
    here = Scene(monkeypatch)
    plain = here.sample()
    model, watcher = watched(here, policy)
    before = state(here.model), state(model)
    reached = broken(WATCHING[name])
    seen = sampled(here, model, caplog)
    assert reached, "the hook was not reached, so nothing was tested"
    assert torch.equal(plain, seen)
    assert (state(here.model), state(model)) == before and _running.get() == ()
    assert "on purpose" in caplog.text
    assert watcher.guard.report is not None or name == "end: report"
    notes = " ".join(watcher.guard.report.notes) + " ".join(f.status for f in watcher.guard.report.findings)
    assert "on purpose" not in notes, "raw text is never a reason"


@pytest.mark.parametrize("name", [name for name in WATCHING if name not in AT_END])
def test_a_broken_hook_of_watching_ends_the_run_under_stop(name, broken, monkeypatch, caplog):
    here = Scene(monkeypatch)
    model, _ = watched(here, "stop", rms=10.0)  # an ordinary prompt
    plain = here.sample()
    assert torch.equal(plain, here.sample(model))
    before = state(here.model), state(model)
    broken(WATCHING[name])
    with pytest.raises(MemorizationStop, match=r"^MemGuard: no score, because an error inside MemGuard.*\. Stopped"):
        here.sample(model)
    assert (state(here.model), state(model)) == before and _running.get() == ()


@pytest.mark.parametrize("name", WATCHING)
def test_a_broken_hook_of_watching_costs_nothing_under_mitigate(name, broken, monkeypatch, caplog):
    here = Scene(monkeypatch)
    plain = here.sample()
    model, watcher = watched(here, "mitigate", rms=10.0)
    before = state(here.model), state(model)
    broken(WATCHING[name])
    assert torch.equal(plain, sampled(here, model, caplog))
    assert (state(here.model), state(model)) == before and _running.get() == ()
    assert "on purpose" in caplog.text


@pytest.mark.parametrize("mitigation", ["attention_scaling", "guidance_delay"])
@pytest.mark.parametrize("name", MITIGATING)
def test_a_broken_hook_of_mitigating_costs_no_picture(name, mitigation, broken, monkeypatch, caplog):
    here = Scene(monkeypatch)
    plain = here.sample()
    model, watcher = here.watched(made(mitigation))
    before = state(here.model), state(model)
    reached = broken(MITIGATING[name])
    seen = sampled(here, model, caplog)
    assert (state(here.model), state(model)) == before and _running.get() == ()
    if not reached:  # this mitigation has no such hook
        return
    assert torch.equal(plain, seen)
    report = watcher.guard.report
    assert report.actions == () and "on purpose" not in " ".join(report.notes)
    assert "on purpose" in caplog.text or report.attempts or report.notes


@pytest.mark.parametrize("mitigation", ["attention_scaling", "guidance_delay", "noise_adjustment"])
@pytest.mark.parametrize("name", NODES)
def test_a_broken_hook_of_a_mitigation_node_costs_no_picture(name, mitigation, broken, monkeypatch, caplog):
    here = Scene(monkeypatch)
    plain = here.sample()
    model = here.treated(made(mitigation))
    before = state(here.model), state(model)
    target = MITIGATING[name].replace("mitigating.start", "treating.start")
    reached = broken(target)
    caplog.set_level(logging.INFO, "memguard_pack.memguard")
    seen = here.sample(model)
    assert (state(here.model), state(model)) == before
    if not reached:
        return
    if mitigation == "noise_adjustment" and name in ("calc: guidance", "calc: announcement", "predict: options"):
        assert torch.isfinite(seen).all()  # the noise is another one all the same
        return
    assert torch.equal(plain, seen)
    assert "on purpose" in caplog.text or NOTHING in caplog.text or "left" in caplog.text
