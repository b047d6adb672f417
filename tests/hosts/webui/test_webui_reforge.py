"""Real reForge, which tells extensions of no prediction of its model: nothing is scored there, and that is said.

REFORGE_ROOT names the folder of its source, REFORGE_PYTHON the interpreter.
"""

import numpy as np
import pytest

from memguard_pack.tests.hosts.webui.server import Server, missing

FLAGS = "--always-cpu --no-hashing --no-download-sd-model".split()
SMALL = {"width": 64, "height": 64, "steps": 2}
REASON = "reForge tells MemGuard of none of the model's predictions, so nothing can be scored here"


@pytest.fixture(scope="module")
def reforge(tmp_path_factory):
    why = missing("reforge")
    if why:
        pytest.skip(why)
    made = Server("reforge", tmp_path_factory.mktemp("reforge") / "data", flags=FLAGS)
    made.post("/sdapi/v1/options", {"live_previews_enable": False, "show_progress_type": "Approx cheap"})
    yield made
    made.close()


@pytest.mark.parametrize("policy", ["observe", "mitigate"])
def test_the_picture_is_as_it_was_and_the_reason_is_said(reforge, policy):
    plain, watched = reforge.generate(**SMALL), reforge.generate({"policy": policy}, **SMALL)
    assert np.array_equal(plain.pictures[0], watched.pictures[0])
    (report,) = watched.reports
    assert report["host"] == "reforge" and watched.finding["status"] == REASON and not watched.finding["scores"]
    assert f"off, because {REASON}" in watched.info["infotexts"][0].replace('"', "")


def test_stop_lets_no_picture_out(reforge):
    made = reforge.generate({"policy": "stop"}, **SMALL)
    assert made.pictures == [] and f"off, because {REASON}" in made.info["infotexts"][0].replace('"', "")


def test_a_check_says_why_there_is_none(reforge):
    status, line = reforge.status("/memguard/v1/check", {"prompt": "a fox", **SMALL})
    assert (status, line) == (400, REASON)
