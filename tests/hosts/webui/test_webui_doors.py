"""What the hosts call, with their modules stood in for: an error between two passes, what is written, what is kept."""

import gc
import importlib
import sys
import weakref
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

from memguard import Guard
from memguard.hosts.webui.places import Place
from memguard.hosts.webui.session import Session
from tests.hosts.webui.test_webui_session import MODEL, evidence, profile

MODULES = (
    "call_queue devices launch_utils paths processing prompt_parser script_callbacks scripts sd_models sd_samplers "
    "sd_samplers_common sd_samplers_timesteps sd_schedulers shared"
).split()
OTHERS = (
    "gradio fastapi backend backend.args backend.memory_management backend.sampling backend.sampling.condition "
    "backend.sampling.sampling_function backend.text_processing"
).split()


@pytest.fixture
def host(monkeypatch, tmp_path):
    """The hosts' modules; what of ours is imported beside them is forgotten again."""
    made = MagicMock()
    made.scripts.Script = made.sd_samplers_timesteps.CFGDenoiserTimesteps = type("Stand", (), {})
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
        with made.careful():
            watch.before(SimpleNamespace(denoiser=denoiser))
        with made.careful():
            watch.after(SimpleNamespace(x=torch.zeros(2)))
    made.end()
    assert bool(made.stopped) == (policy == "stop")
    assert [report.error is None for report in made.reports] == [True, False]
