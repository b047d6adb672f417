"""Passes, reports and what is said of them, without a host: the contract's edges."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from memguard import Guard
from memguard.calibration import Conditions, Profile, fit
from memguard.hosts.webui import model
from memguard.hosts.webui.finished import KEPT, Finished
from memguard.hosts.webui.places import Place, infotext, of_all, stopped_by
from memguard.hosts.webui.sampling import UNSEEN
from memguard.hosts.webui.session import Session
from memguard.hosts.webui.shown import html, warning
from memguard.passes import Passes
from memguard.records import Attempt, StepEvidence
from memguard.troubles import UNFORESEEN
from memguard.wording import SIGNS
from tests.spread import spread

MODEL = "00000000cafe0001"


def evidence(number=0, *rms):
    gap = torch.tensor(rms or (0.5,)).reshape(-1, 1, 1, 1).expand(-1, 4, 8, 8)
    return StepEvidence(number, 4, 14.6, 14.6, 999.0, gap, torch.zeros_like(gap), full_noise=True)


def profile():
    conditions = Conditions(MODEL, "sd15", (8, 8), 14.6, 999.0, 1, 4, "", "negative", "", 7.5)
    return Profile(conditions, {"text_noise_norm": fit(spread(0.01))})


@pytest.fixture
def session():
    """A function that builds a session and the list of its stops."""

    def build(passes=None, **settings):
        stops = []
        guard = Guard(profile=profile(), **settings)
        made = Session(guard, "a1111", "v1", lambda: stops.append(True), passes=passes)
        return made, stops

    return build


def test_equal_keys_are_one_pass_and_another_closes_it(session):
    made, _ = session()
    first = made.begin(("p", 0), model=MODEL)
    made.prepare(("p", 0))
    assert made.begin(("p", 0)) is first
    first.look(evidence)
    made.begin(("p", 1), model=MODEL)
    assert [report.verdict for report in made.reports] == ["memorized"]
    made.end()
    made.end()
    assert made.reports[1].findings[0].status == "the run ended before its first step was complete"


def test_stop_ends_the_generation_once_and_says_why(session):
    made, stops = session(policy="stop")
    now = made.begin(object(), model=MODEL, negative_prompt="")
    now.look(evidence)
    now.look(evidence)
    assert stops == [True]
    assert made.stopped.startswith("MemGuard: looks memorized (score 8, higher than all 320 ordinary prompts)")
    assert warning(made) == made.stopped


@pytest.mark.parametrize(("policy", "stopped"), [("observe", False), ("warn", False), ("stop", True)])
def test_an_error_of_ours_costs_no_picture_but_under_stop(session, policy, stopped):
    made, stops = session(policy=policy)

    def broken(number):
        raise KeyError("inside")

    made.begin(object(), model=MODEL).look(broken)
    made.end()
    assert bool(stops) == stopped
    assert made.reports[0].error == "KeyError: 'inside'"


@pytest.mark.parametrize(("policy", "stopped"), [("warn", False), ("stop", True)])
@pytest.mark.parametrize("begun", [True, False])
def test_an_error_outside_of_a_call_is_in_the_report(session, policy, stopped, begun):
    made, stops = session(policy=policy)
    if begun:
        made.begin(object(), model=MODEL)
    with made.careful():
        raise KeyError("inside")
    made.end()
    assert bool(stops) == stopped and bool(made.stopped) == stopped
    assert [report.error for report in made.reports] == ["KeyError: 'inside'"]
    assert made.reports[0].findings[0].status == UNFORESEEN


def test_a_reason_takes_the_place_of_a_score(session):
    made, _ = session()
    made.begin(object(), model=MODEL).look(lambda number: "cfg is 1")
    made.end()
    assert made.reports[0].findings[0].status == "cfg is 1"
    assert infotext(made.reports, 1) == {"MemGuard verdict": "no score, because cfg is 1"}


def test_each_picture_of_a_batch_gets_its_own_score(session):
    made, _ = session()
    made.begin(object(), model=MODEL).look(lambda number: evidence(number, 0.5, 0.01))
    made.end()
    told = infotext(made.reports, 2)
    assert told["MemGuard score"] == ["8", "0.16"]
    assert infotext([], 2) == {}
    assert "by image: 8, 0.16" in html(made)


@pytest.mark.parametrize(("policy", "shown"), [("observe", False), ("warn", True)])
def test_only_warn_warns(session, policy, shown):
    made, _ = session(policy=policy)
    made.begin(object(), model=MODEL).look(evidence)
    made.end()
    assert (warning(made) != "") == shown
    assert "looks memorized" in html(made)


def test_text_of_others_is_escaped(session):
    made, _ = session()
    made.begin(object(), model=MODEL, notes=("<b>note</b>",)).look(lambda number: "<script>")
    made.end()
    assert "<script>" not in html(made) and "&lt;script&gt;" in html(made) and "&lt;b&gt;note" in html(made)


def test_the_gravest_pass_is_shown_first(session):
    made, _ = session()
    for rms in (0.01, 0.5, 0.01):
        made.begin(object(), model=MODEL).look(lambda number, rms=rms: evidence(number, rms))
    made.end()
    assert made.gravest is made.reports[1]


def test_the_mark_is_that_of_the_picture_that_was_kept(session):
    made, _ = session()
    made.begin(object(), model=MODEL).look(evidence)
    made.end()
    assert SIGNS["memorized"].mark in html(made)
    kept = Attempt("Padding", scores=(0.2,), verdict="ordinary", kept=True)
    made.reports[0] = replace(made.reports[0], attempts=(kept,))
    assert SIGNS["memorized"].mark not in html(made) and SIGNS["ordinary"].mark in html(made)
    assert "mitigated by Padding: now looks ordinary" in html(made)


def test_numbers_of_prompts():
    assert model.numbers(["a", "b", "a"]) == (0, 1, 0)
    assert model.numbers(["a", "a"]) == ()


def test_weights_that_forge_has_put_a_lora_into_are_those_of_before():
    torch.manual_seed(0)
    plain, changed = (torch.nn.Sequential(torch.nn.Linear(4, 4)) for _ in range(2))
    changed.load_state_dict(plain.state_dict())
    backup = {"diffusion_model.0.weight": plain[0].weight.detach().clone()}
    changed[0].weight.data.add_(1)
    loader = SimpleNamespace(lora_loader=SimpleNamespace(backup=backup))
    of_neo = {name: SimpleNamespace(weight=weight, inplace_update=False) for name, weight in backup.items()}
    for unet in (SimpleNamespace(model=loader), SimpleNamespace(model=SimpleNamespace(), backup=of_neo)):
        engine = SimpleNamespace(forge_objects=SimpleNamespace(unet=unet))
        network = torch.nn.Sequential(changed[0])  # fingerprints are kept for each network
        assert model.name_of(network, engine) == model.name_of(plain)


def test_another_checkpoint_in_the_same_network_has_another_fingerprint():
    """A1111 loads a checkpoint of the same kind into the network that is there."""
    network = torch.nn.Linear(4, 4)
    first, second = (SimpleNamespace(sd_checkpoint_info=SimpleNamespace(filename=name)) for name in ("a", "b"))
    name = model.name_of(network, first)
    network.weight.data.add_(1)
    assert model.name_of(network, first) == name  # not computed again
    assert model.name_of(network, second) != name


def test_a_file_that_was_overwritten_and_loaded_again_has_another_fingerprint(tmp_path):
    network, file = torch.nn.Linear(4, 4), tmp_path / "a.safetensors"
    engine = SimpleNamespace(sd_checkpoint_info=SimpleNamespace(filename=str(file)))
    file.write_bytes(b"one")
    before = model.name_of(network, engine)
    network.weight.data.add_(1)
    assert model.name_of(network, engine) == before  # not computed again
    file.write_bytes(b"another")
    assert model.name_of(network, engine) != before


def test_a_lora_leaves_the_fingerprint_as_it_is():
    torch.manual_seed(0)
    plain, changed = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    changed.load_state_dict(plain.state_dict())
    changed.network_weights_backup = (plain.weight.detach().clone(), None)
    changed.weight.data.add_(1)
    assert model.name_of(changed) == model.name_of(plain)
    changed.network_weights_backup = None
    assert model.name_of(torch.nn.Sequential(changed)) != model.name_of(plain)


def test_stop_without_a_score_ends_the_generation_and_says_why(session):
    made, stops = session(policy="stop")
    made.begin(object(), model=MODEL).look(lambda number: "cfg is 1")
    assert stops and made.stopped.startswith("MemGuard: no score, because cfg is 1")


def test_model_calls_that_nobody_told_us_of_are_the_reason(session):
    for policy, stopped in (("observe", False), ("stop", True)):
        made, stops = session(policy=policy)
        made.begin(object(), model=MODEL).unseen()
        made.end()
        assert made.reports[0].findings[0].status == UNSEEN
        assert bool(stops) == stopped


def test_a_second_pass_takes_over_the_verdict_and_says_whose_it_is(session):
    made, _ = session()
    first = made.begin("first", Place(prompt="a"), model=MODEL)
    first.look(evidence)
    second = made.begin("second", Place(kind="hires", prompt="b", painted=True), model=MODEL)
    second.look(lambda number: "cfg is 1")
    made.end()
    assert [report.verdict for report in made.reports] == ["memorized", "memorized"]
    assert [each.carried for each in made.reports[1].findings if each.verdict == "memorized"] == [made.reports[0].run]
    assert "the second pass of hires starts from a picture" in made.reports[1].notes
    told = infotext(made.reports, 1, made.places)["MemGuard verdict"]
    assert "; second pass of hires: looks memorized" in told
    page = html(made)
    assert page.index("first pass: ") < page.index("second pass of hires: ")


@pytest.mark.parametrize(("prompt", "painted"), [("a house", False), ("a fox", False), ("a house", True)])
def test_another_extension_s_pass_takes_over_a_verdict_where_it_paints_the_picture_again(session, prompt, painted):
    made, _ = session()
    made.begin("first", Place(prompt="a fox"), model=MODEL).look(evidence)
    made.begin("inner", Place(kind="inner", prompt=prompt, painted=painted), model=MODEL).look(lambda n: "cfg is 1")
    made.end()
    assert [report.verdict for report in made.reports] == ["memorized", "memorized" if painted else "unknown"]


@pytest.mark.parametrize("painted", [False, True])
def test_only_what_starts_from_a_picture_takes_over_a_verdict_of_another_generation(session, painted):
    passes = Passes()
    before, _ = session(passes)
    before.begin("first", Place(prompt="a"), model=MODEL).look(evidence)
    before.end()
    made, stops = session(passes, policy="stop")
    made.begin("pass", Place(prompt="a", painted=painted), model=MODEL)
    with made.careful():
        raise KeyError("inside")
    made.end()
    (report,) = made.reports
    assert (report.verdict == "memorized") == painted and stops and UNFORESEEN in made.stopped
    told = stopped_by(infotext(made.reports, 1, made.places), made.stopped)["MemGuard verdict"]
    assert told.count(UNFORESEEN) == 1 and ("of an earlier pass" in told) == painted


def test_the_infotext_of_a_stopped_generation_says_once_what_stopped_it():
    stopped = "MemGuard: no score, because cfg is 1. Stopped before more steps were spent: change the policy."
    assert (
        stopped_by({}, "") == {} and stopped_by({"MemGuard verdict": "ordinary"}, "")["MemGuard verdict"] == "ordinary"
    )
    assert stopped_by({}, stopped) == {"MemGuard verdict": stopped.removeprefix("MemGuard: ")}
    said = {"MemGuard verdict": "no score, because cfg is 1"}
    assert stopped_by(said, stopped) == said
    told = stopped_by({"MemGuard verdict": "looks ordinary"}, stopped)["MemGuard verdict"]
    assert told == "looks ordinary; " + stopped.removeprefix("MemGuard: ")


def test_an_error_after_the_last_pass_stops_nothing(session):
    made, stops = session(policy="stop")
    made.begin(object(), model=MODEL).look(lambda number: evidence(number, 0.01))
    made.end()
    with made.careful(over=True):
        raise KeyError("inside")
    assert not stops and made.reports[0].notes == (UNFORESEEN,) and made.reports[0].verdict == "ordinary"


def test_the_verdict_of_all_batches_is_the_gravest_and_names_its_batch(session):
    made, _ = session()
    for number, rms in enumerate((0.01, 0.5)):
        place = Place(batch=number, batches=2, prompt=str(number))
        made.begin(object(), place, model=MODEL).look(lambda n, rms=rms: evidence(n, rms))
    made.end()
    assert of_all(made.reports, made.places).startswith("batch 2 of 2: looks memorized")
    assert [report.notes[0] for report in made.reports] == ["batch 1 of 2", "batch 2 of 2"]


def test_settings_that_cannot_be_used_are_a_report_a_toast_and_a_line(session):
    made, _ = session()
    made.refuse("the settings cannot be used: steps is 2.7", prompt="a fox")
    assert made.reports[0].prompt == "a fox"
    assert made.reports[0].findings[0].status == "the settings cannot be used: steps is 2.7"
    assert warning(made) == "MemGuard: off, because the settings cannot be used: steps is 2.7"
    assert "the settings cannot be used: steps is 2.7" in html(made)


@pytest.mark.parametrize(("policy", "stopped"), [("warn", False), ("stop", True)])
def test_an_error_before_the_next_batch_is_that_batch_s_and_lets_nothing_out_under_stop(session, policy, stopped):
    made, stops = session(policy=policy)
    made.begin(object(), model=MODEL).look(lambda number: evidence(number, 0.01))
    made.end()
    with made.careful():
        raise KeyError("inside")
    made.end()
    assert bool(stops) == stopped
    first, second = made.reports
    assert (first.error, first.notes, first.verdict) == (None, (), "ordinary")
    assert second.error == "KeyError: 'inside'" and second.findings[0].status == UNFORESEEN


def test_the_scores_of_an_earlier_pass_are_not_said_to_be_a_picture_s(session):
    made, _ = session()
    made.begin("first", Place(prompt="a"), model=MODEL).look(lambda number: evidence(number, 0.5, 0.5))
    made.begin("second", Place(kind="hires", prompt="a", painted=True), model=MODEL).look(lambda number: "cfg is 1")
    made.end()
    alone = made.reports[1:]
    assert alone[0].findings[-1].carried and len(alone[0].findings[-1].scores) == 2
    assert "MemGuard score" not in infotext(alone, 2, made.places[1:])
    del made.reports[0], made.places[0], made.pictures[0], made.maps[0]
    assert "by image" not in html(made)


def test_a_sampler_that_starts_once_more_leaves_no_map_of_the_first_start(session):
    made, _ = session()
    now = made.begin("pass", model=MODEL)
    now.reader = SimpleNamespace(tally="of the noise that was given up")
    now.again()
    assert now.reader.tally is None


def test_negative_prompts_of_a_second_pass_are_its_own():
    p = SimpleNamespace(negative_prompts=[""], hr_negative_prompts=["ugly"], is_hr_pass=True)
    assert model.negatives(p) == ["ugly"]
    p.is_hr_pass = False
    assert model.negatives(p) == [""]


def test_a_page_is_shown_its_own_job_where_two_began_in_one_second():
    finished = Finished()
    for begun, session in ((1.2, "stopped"), (1.7, "first cell"), (1.7, "second cell")):
        finished.keep("20260101000001", begun, session)
    assert finished.newest("20260101000001") == ["first cell", "second cell"]
    assert finished.of("20260101000001") == ["stopped", "first cell", "second cell"]
    assert finished.last() == ["second cell"] and finished.newest("gone") == finished.of("gone") == []


def test_the_last_jobs_are_kept_and_no_more():
    finished = Finished()
    assert finished.last() == []
    for number in range(KEPT + 1):
        finished.keep(str(number), number, number)
    finished.keep("1", KEPT + 1, "again")
    assert finished.of("0") == [] and finished.of("1") == [1, "again"] and finished.last() == ["again"]
