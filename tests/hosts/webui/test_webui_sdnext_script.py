"""The script as SD.Next gets it, with the host's modules stood in for: its own hooks, and the end of a generation."""

import importlib
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from memguard_pack.tests.hosts.webui.stand_ins import SCORE, VERDICT, Processing, session


@pytest.fixture
def script(host, monkeypatch, tmp_path):
    """The extension's script as SD.Next gets it, and what it calls at the end of each generation."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "processing_diffusers.py").touch()
    monkeypatch.setitem(sys.modules, "installer", MagicMock(version={"updated": "2026-07-23", "commit": "unknown"}))
    host.processing.processed = None
    webui = importlib.import_module("memguard_pack.extension.webui")
    assert webui.host.SDNEXT and webui.host.version() == "2026-07-23"
    made = webui.script()()
    webui.register()
    made.ended = host.script_callbacks.on_after_process.call_args.args[0]
    made.watch_with = lambda watch: monkeypatch.setattr(webui.host, "watch", lambda settings: watch)
    made.api, made.jobs = webui.api, webui.jobs
    return made


class Still:
    """A watch of a session that is over."""

    def __init__(self, made):
        self.session, self.left = made, 0

    def own(self, p):
        self.owner = lambda: p

    def finish(self):
        self.session.end()

    def leave(self):
        self.left += 1


def test_a_stopped_generation_makes_no_batch_and_lets_no_picture_out(script):
    p, made = Processing(n_iter=2), session("stop")
    watch = Still(made)
    script.watch_with(watch)
    script.process(p, True)
    script.before_process_batch(p)
    assert p.prompts == ["a fox"]
    made.stop("MemGuard: stopped")
    images = SimpleNamespace(images=["picture"])
    script.postprocess_batch_list(p, images)
    script.before_process_batch(p)
    assert images.images == [] and p.prompts == []
    done = SimpleNamespace(images=[], infotexts=[], comments="", job_timestamp="20260101000001")
    script.postprocess_batch(p)
    script.postprocess(p, done)
    assert done.comments == "MemGuard: stopped" and watch.left > 0 and not script.jobs.open_of(p)


def test_pictures_are_saved_with_their_own_scores(script):
    p, made = Processing(), session()
    script.watch_with(Still(made))
    script.process(p, True)
    p.extra_generation_params |= {VERDICT: "looks ordinary", SCORE: ["0.1", "0.2"]}
    saved = []
    for p.batch_index in range(2):
        script.postprocess_image(p, None)
        saved.append(p.extra_generation_params[SCORE])
    assert saved == ["0.1", "0.2"]


def test_the_end_of_an_interrupted_generation_closes_it(script, host):
    p, made = Processing(), session()
    watch = Still(made)
    script.watch_with(watch)
    script.process(p, True)
    host.processing.processed = SimpleNamespace(job_timestamp="20260101000009")
    assert script.jobs.open_of(p)
    script.ended(p)
    script.ended(p)
    assert not script.jobs.open_of(p) and watch.left == 1
    assert script.api.sessions_of('{"job_timestamp": "20260101000001"}') == [made]


def test_the_page_s_controls_in_a_check_s_terms(script, host):
    sdnext = importlib.import_module("memguard_pack.extension.sdnext")
    host.processing.get_sampler_name.return_value = "Euler a"
    assert sdnext.asked({"sampler_name": 2, "cfg_scale": -1, "seed": 3}) == {"sampler_name": "Euler a", "seed": 3}
    assert sdnext.asked({"sampler_name": "DDIM", "cfg_scale": 5}) == {"sampler_name": "DDIM", "cfg_scale": 5}
    assert [sdnext.reads(text) for text in ("-- > <", "(a:1.2)", "\u732b")] == [False, True, True]
