"""What the hosts call, with their modules stood in for: an error between two passes, and what is written of batches."""

import importlib
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from memguard.hosts.webui.places import Place
from memguard_pack.tests.hosts.webui.stand_ins import SCORE, VERDICT, WRITTEN, Processing, session
from memguard_pack.tests.hosts.webui.test_webui_session import MODEL, evidence


def broken(*_, **__):
    raise KeyError("a hook of ours is broken")


@pytest.mark.parametrize("policy", ["observe", "stop"])
def test_an_error_before_a_second_pass_of_forge_is_not_taken_for_one_of_the_first(host, policy):
    """The first pass has its score, and stays open until the second begins."""
    made = session(policy)
    watch = importlib.import_module("memguard.hosts.forge").Watch(made)
    first = made.begin(("sampler", 0, False), Place(prompt="a"), model=MODEL)
    first.look(lambda number: evidence(number, 0.01))
    p = MagicMock(is_hr_pass=True, iteration=0)
    p.sd_model.forge_objects.unet.clone.side_effect = broken
    for _ in range(3):  # before the pass, and at each call of its denoiser
        with made.careful():
            watch.before_pass(p)
    made.end()
    assert bool(made.stopped) == (policy == "stop")
    assert [report.error is None for report in made.reports] == [True, False]
    assert [report.verdict for report in made.reports] == ["ordinary", "unknown"]


@pytest.mark.parametrize("policy", ["observe", "stop"])
def test_an_error_before_another_extension_s_pass_of_a1111_is_not_taken_for_one_of_the_first(host, policy, monkeypatch):
    made = session(policy)
    a1111 = importlib.import_module("memguard.hosts.a1111")
    watch = a1111.Watch(made)
    made.begin("the first pass's denoiser", Place(prompt="a"), model=MODEL).look(lambda n: evidence(n, 0.01))
    monkeypatch.setattr(a1111, "Call", broken)
    denoiser = MagicMock()
    for _ in range(3):
        watch._call = "one that the model's error has ended"
        with made.careful():
            watch.before(SimpleNamespace(denoiser=denoiser))
        with made.careful():
            watch.after(SimpleNamespace(x=torch.zeros(2)))
    made.end()
    assert bool(made.stopped) == (policy == "stop")
    first, second = made.reports
    assert first.error is None and "a hook of ours is broken" in second.error


def ordinary(number):
    return evidence(number, 0.01)


def test_the_text_of_all_batches_says_what_stopped_the_second(door):
    p, made = Processing(n_iter=2), session("stop")
    door.begin(p, made)
    door.batch(p, made, 0, ordinary)
    _, second = door.batch(p, made, 1, lambda number: "cfg is 1")
    assert second[VERDICT].startswith("no score, because cfg is 1")
    door.grid(None)
    of_grid = p.extra_generation_params[VERDICT]
    door.script.postprocess(p, SimpleNamespace(images=[], infotexts=[]))
    for told in (of_grid, p.extra_generation_params[VERDICT]):
        assert told.startswith("batch 1 of 2: looks ordinary") and "; no score, because cfg is 1. Stopped" in told
    assert SCORE not in p.extra_generation_params


def test_a_batch_without_a_report_is_not_given_the_text_of_the_one_before(door):
    """The second is skipped before its first prediction; hires saves pictures in the midst of a batch, too."""
    p, made = Processing(n_iter=3), session()
    door.begin(p, made)
    begun, first = door.batch(p, made, 0, ordinary)
    assert begun == {} and set(first) == set(WRITTEN)
    assert door.batch(p, made, 1) == [{}, {}]
    begun, third = door.batch(p, made, 2, evidence)
    assert begun == {} and third[VERDICT].startswith("looks memorized")
    door.grid(None)
    assert p.extra_generation_params[VERDICT].startswith("batch 3 of 3: looks memorized")
    assert SCORE not in p.extra_generation_params
    door.batch(p, made, 2, evidence)
    door.script.process(p, False)  # the same processing once more, and the box is not ticked
    assert not set(WRITTEN) & set(p.extra_generation_params)


def test_the_text_of_all_batches_is_there_where_the_last_has_no_report(door):
    p, made = Processing(n_iter=2), session()
    door.begin(p, made)
    door.batch(p, made, 0, ordinary)
    door.batch(p, made, 1)
    door.grid(None)
    assert p.extra_generation_params[VERDICT].startswith("looks ordinary")


def test_an_error_before_the_second_batch_begins_is_that_batch_s(door):
    p, made = Processing(n_iter=2), session()
    door.begin(p, made)
    door.batch(p, made, 0, evidence)
    door.monkeypatch.setattr(door.adapter.Watch, "before_pass", broken)
    p.iteration = 1
    door.script.process_batch(p, batch_number=1)
    door.script.process_before_every_sampling(p)
    door.script.postprocess_batch(p, batch_number=1)
    assert p.extra_generation_params[VERDICT].startswith("no score, because an error inside MemGuard")
    assert [report.notes[0] for report in made.reports] == ["batch 1 of 2", "batch 2 of 2"]
    door.grid(None)
    assert p.extra_generation_params[VERDICT].startswith("batch 1 of 2: looks memorized")


def test_without_any_report_nothing_is_said(door):
    p, made = Processing(), session()
    door.begin(p, made)
    assert door.batch(p, made, 0) == [{}, {}]
    door.grid(None)
    assert not set(WRITTEN) & set(p.extra_generation_params)


def test_a_copy_of_a_generation_in_progress_forgets_nothing(door):
    p, made = Processing(), session()
    door.begin(p, made)
    door.batch(p, made, 0, ordinary)
    copy = Processing()
    copy.__dict__.update(vars(p))
    door.script.process_batch(copy, batch_number=0)
    assert set(WRITTEN) < set(p.extra_generation_params)


def test_settings_that_cannot_be_used_are_said_in_every_batch(door):
    p = Processing(n_iter=2)
    door.script.process(p, True, "destroy")
    (made,) = [getattr(p, door.webui.HELD).session]
    for number in range(2):
        _, told = door.batch(p, made, number)
        assert told[VERDICT].startswith("off, because")
