"""The WebUIs' modules, stood in for, and what they call: the extension's script and callbacks, without a host."""

import importlib
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

from memguard import Guard
from memguard.hosts.webui import model
from memguard.hosts.webui.session import Session
from memguard_pack.tests.hosts.webui.test_webui_session import MODEL, profile

MODULES = (
    "call_queue devices initialize_util launch_utils paths processing processing_diffusers prompt_parser "
    "script_callbacks scripts sd_models sd_samplers sd_samplers_common sd_samplers_timesteps sd_schedulers shared "
    "ui_common ui_components"
).split()
OTHERS = (
    "gradio fastapi backend backend.args backend.memory_management backend.sampling backend.sampling.condition "
    "backend.sampling.sampling_function backend.text_processing"
).split()
WRITTEN = VERDICT, SCORE = "MemGuard verdict", "MemGuard score"


class Script:
    """The host's base of all scripts."""

    def process_batch(self, p, *args, **kwargs):
        pass


def modules(monkeypatch, tmp_path):
    """The hosts' modules; what of ours is imported beside them is forgotten again."""
    made = MagicMock()
    made.scripts.Script = Script
    made.sd_samplers_timesteps.CFGDenoiserTimesteps = type("CFGDenoiserTimesteps", (), {})
    made.sd_samplers_common.InterruptedException = type("InterruptedException", (BaseException,), {})
    made.paths.models_path = made.paths.data_path = made.paths.script_path = str(tmp_path)
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
