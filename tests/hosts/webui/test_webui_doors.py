"""What the hosts call, with their modules stood in for: an error between two passes, what is written, what is kept."""

import gc
import importlib
import sys
import weakref
from contextlib import suppress
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

from memguard import Guard
from memguard.hosts.webui import model
from memguard.hosts.webui.places import Place
from memguard.hosts.webui.session import Session
from tests.hosts.webui.test_webui_session import MODEL, evidence, profile

MODULES = (
    "call_queue devices initialize_util launch_utils paths processing prompt_parser script_callbacks scripts sd_models "
    "sd_samplers sd_samplers_common sd_samplers_timesteps sd_schedulers shared ui_common ui_components"
).split()
OTHERS = (
    "gradio fastapi backend backend.args backend.memory_management backend.sampling backend.sampling.condition "
    "backend.sampling.sampling_function backend.text_processing"
).split()


class Script:
    """The host's base of all scripts."""

    def process_batch(self, p, *args, **kwargs):
        pass


@pytest.fixture
def host(monkeypatch, tmp_path):
    """The hosts' modules; what of ours is imported beside them is forgotten again."""
    made = MagicMock()
    made.scripts.Script = Script
    made.sd_samplers_timesteps.CFGDenoiserTimesteps = type("CFGDenoiserTimesteps", (), {})
    made.sd_samplers_common.InterruptedException = type("InterruptedException", (BaseException,), {})
    made.paths.models_path = made.paths.data_path = str(tmp_path)
    made.prompt_parser.get_multicond_prompt_list.return_value = [], [], None
    made.shared.state = SimpleNamespace(interrupted=False, skipped=False, time_start=1.0)
    monkeypatch.setitem(sys.modules, "modules", made)
    for name in MODULES:
        monkeypatch.setitem(sys.modules, f"modules.{name}", getattr(made, name))
    for name in OTHERS:
        monkeypatch.setitem(sys.modules, name, MagicMock())
    before = set(sys.modules)
    yield made
    for name in set(sys.modules) - before:
        if name.startswith("memguard"):
            del sys.modules[name]


def session(policy="observe", explain="never"):
    return Session(Guard(policy=policy, profile=profile()), "a1111", "v1", lambda: None, explain=explain)


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


class Processing:
    """What the host tells of a generation, as far as ours asks for it."""

    is_hr_pass, prompts, job_timestamp = False, ["a fox"], "20260101000001"
    negative_prompts, seeds, sampler_name, steps, cfg_scale, width, height = [""], [3], "Euler", 4, 7.5, 64, 64

    def __init__(self, n_iter=1):
        self.n_iter, self.iteration, self.extra_generation_params, self.said = n_iter, 0, {}, []
        self.all_prompts, self.comment = n_iter * self.prompts, self.said.append


class Door:
    """The script and the callbacks of the extension, over watches of these sessions."""

    def __init__(self, host, monkeypatch):
        self.webui = importlib.import_module("memguard_pack.extension.webui")
        self.script, self.jobs = self.webui.MemGuardScript(), self.webui.jobs
        self.webui.register()
        callbacks = host.script_callbacks
        self.before, self.after, self.grid = (
            getattr(callbacks, name).call_args.args[0]
            for name in ("on_cfg_denoiser", "on_cfg_denoised", "on_image_grid")
        )
        self.adapter = importlib.import_module("memguard.hosts.a1111")
        self.monkeypatch = monkeypatch

    def begin(self, p, made):
        waiting = [made]
        self.monkeypatch.setattr(self.webui.host, "watch", lambda settings: self.adapter.Watch(waiting.pop()))
        self.script.process(p, True)

    def batch(self, p, made, number, *calls):
        """Sample a batch of passes with these first calls; return the text that it began with, and that it got."""
        p.iteration = number
        self.script.process_batch(p, batch_number=number)
        begun = dict(p.extra_generation_params)
        for call in calls:
            made.begin(object(), model.place(p), model=MODEL).look(call)
        self.script.postprocess_batch(p, batch_number=number)
        return [
            {key: text for key, text in told.items() if key in WRITTEN} for told in (begun, p.extra_generation_params)
        ]


WRITTEN = VERDICT, SCORE = "MemGuard verdict", "MemGuard score"


@pytest.fixture
def door(host, monkeypatch):
    return Door(host, monkeypatch)


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


class Denoiser(nn.Module):
    """The host's, which tells of a call before and after it; ``breaks`` says where the memory is out."""

    def __init__(self, door, network, breaks):
        super().__init__()
        self.door, self.inner_model, self.breaks, self.p, self.sampler = door, network, breaks, None, None

    def forward(self, x):
        text = torch.zeros(1, 77, 8)
        self.door.before(
            SimpleNamespace(
                denoiser=self, x=x, sigma=torch.full((2,), 14.6), text_cond=text, text_uncond=text, image_cond=x
            )
        )
        if self.breaks == "model":
            raise torch.OutOfMemoryError
        self.door.after(SimpleNamespace(x=self.inner_model(x)))
        return x


class Network(nn.Conv2d):
    def sigma_to_t(self, sigma):
        return 999.0 + 0 * sigma


class Sampler:
    def __init__(self, denoiser):
        self.model_wrap_cfg = denoiser
        parts = [[SimpleNamespace(weight=1.0)]]
        self.sampler_extra_args = {"cond": SimpleNamespace(batch=parts)}

    def sample(self, p, x):
        return self.model_wrap_cfg(x)


class Engine:
    """The host's model around the network."""

    def __init__(self, network):
        self.model = SimpleNamespace(diffusion_model=network)
        self.alphas_cumprod = torch.linspace(0.99, 0.005, 1000)


def ended_by_an_error(door, breaks, told=True):
    """A generation that runs out of memory in the model's call or when it is decoded; the host calls no more of ours.

    Returns:
        the processing, and weak references to network and watch.

    """
    network, p, made = Network(4, 4, 1), Processing(), session(explain="always")
    denoiser = Denoiser(door, network, breaks)
    p.sd_model, p.sampler = Engine(network), Sampler(denoiser)
    denoiser.p, denoiser.sampler = p, p.sampler
    door.begin(p, made)
    door.script.process_batch(p, batch_number=0)
    if told:
        door.script.process_before_every_sampling(p)
    with suppress(torch.OutOfMemoryError):
        p.sampler.sample(p, torch.ones(2, 4, 8, 8))
        raise torch.OutOfMemoryError
    assert made.now is not None and made.now.reader is not None and made.now.run.report.error is None
    assert made.now.calls == (breaks == "decoding")
    return p, weakref.ref(network), weakref.ref(getattr(p, door.webui.HELD))


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("breaks", ["model", "decoding"])
def test_a_generation_that_an_error_has_ended_keeps_no_network(door, breaks, told):
    """The host loads the next checkpoint before it tells of the next generation."""
    p, *gone = ended_by_an_error(door, breaks, told)
    del p
    gc.collect()
    assert [each() for each in gone] == [None, None]
    assert door.jobs.owner() is None
    door.jobs.clear()
    assert not door.jobs._open


def test_what_a_pass_that_nobody_announced_left_in_the_network_goes_with_the_next_job(door, host):
    p, network, _ = ended_by_an_error(door, "model", told=False)
    kept = network()
    door.jobs.clear()
    assert kept._forward_hooks  # the job goes on
    host.shared.state.time_start += 1
    door.begin(Processing(), session())
    assert not kept._forward_hooks and not kept._forward_pre_hooks


def test_a_watch_whose_processing_is_gone_is_left(door):
    p, left = Processing(), []
    door.begin(p, session())
    watch = getattr(p, door.webui.HELD)
    watch.leave = lambda: left.append(True)
    del p
    gc.collect()
    door.jobs.clear()
    assert left and not door.jobs._open


def test_a_pass_inside_of_a_generation_is_its_own_after_the_inner_one_has_failed(door):
    p, made = Processing(), session()
    door.begin(p, made)
    inner, *_ = ended_by_an_error(door, "decoding")
    assert door.jobs.of(Processing()) is getattr(inner, door.webui.HELD)
    del inner
    gc.collect()
    assert door.jobs.of(Processing()) is getattr(p, door.webui.HELD) and door.jobs.owner() is p
    door.script.postprocess(p, SimpleNamespace(images=[], infotexts=[]))
    assert door.jobs.of(Processing()) is None and not door.jobs._open
