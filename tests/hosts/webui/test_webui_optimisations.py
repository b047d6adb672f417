"""Real A1111 and Forge: every way to compute attention, and every way to save memory, gives the same scores."""

import numpy as np
import pytest

from memguard import testbed
from memguard_pack.tests.hosts.webui.server import FLAGS, Server, missing
from memguard_pack.tests.hosts.webui.test_webui_mitigating import MEMORIZED, mitigated, scaled, written
from memguard_pack.tests.hosts.webui.test_webui_watching import expected

# names as A1111's list shows them, and what its log calls them
OPTIONS = {
    "Doggettx": "Doggettx",
    "sdp - scaled dot product": "sdp",
    "sdp-no-mem - scaled dot product without memory efficient attention": "sdp-no-mem",
    "sub-quadratic": "sub-quadratic",
    "V1 - original v1": "V1",
    "InvokeAI": "InvokeAI",
}
# flags of servers of their own, and what their log says where the flag counts
STARTS = [
    ("a1111", [*FLAGS["a1111"], "--medvram"], "Applying attention optimization"),
    ("a1111", [*FLAGS["a1111"], "--lowvram"], "Applying attention optimization"),
    ("forge", ["--always-cpu", "--attention-split"], "Using split optimization for cross attention"),
    ("forge", ["--always-cpu", "--attention-quad"], "Using sub quadratic optimization for cross attention"),
    ("forge", ["--always-cpu", "--attention-pytorch"], "Using pytorch cross attention"),
    ("neo", [*FLAGS["neo"], "--use-pytorch-cross-attention"], "Using PyTorch Cross Attention"),
]


@pytest.fixture(scope="module")
def pipe():
    return testbed.pipeline(wide=True)


def check(server, pipe):
    """Watching changes no byte; scores before and after attention_scaling are those of diffusers."""
    path = written(server)
    try:
        plain = server.generate(prompt=MEMORIZED)
        watched = server.generate({}, prompt=MEMORIZED)
        assert np.array_equal(plain.pictures[0], watched.pictures[0])
        assert watched.finding["scores"][0] == pytest.approx(expected(pipe, MEMORIZED, 3), rel=1e-3)
        made = mitigated(server, "attention_scaling")
        (report,) = made.reports
        assert report["error"] is None and report["notes"] == []
        assert report["attempts"][0]["scores"][0] == pytest.approx(scaled(pipe), rel=1e-3)
        assert np.array_equal(plain.pictures[0], made.pictures[0]) != report["attempts"][0]["kept"]
        assert np.array_equal(plain.pictures[0], server.generate(prompt=MEMORIZED).pictures[0])
    finally:
        path.unlink()


@pytest.mark.parametrize("option", [*OPTIONS, "None"])
def test_attention_optimisations_of_a1111(server, pipe, option):
    if server.host != "a1111":
        pytest.skip("Forge takes its attention from the command line")
    before = len(server.said())
    server.post("/sdapi/v1/options", {"cross_attention_optimization": option})
    try:
        said = server.said()[before:]
        line = f"Applying attention optimization: {OPTIONS[option]}..." if option in OPTIONS else "Disabling attention"
        assert line in said or option == "InvokeAI", said  # InvokeAI is what Automatic takes on a CPU
        check(server, pipe)
    finally:
        server.post("/sdapi/v1/options", {"cross_attention_optimization": "Automatic"})


@pytest.mark.parametrize(("host", "flags", "line"), STARTS, ids=[f"{host}{flags[-1]}" for host, flags, _ in STARTS])
def test_started_with_flags(tmp_path, pipe, host, flags, line):
    if missing(host):
        pytest.skip(missing(host))
    started = Server(host, tmp_path / "data", flags=flags)
    try:
        check(started, pipe)
        assert line in started.said()
    finally:
        started.close()
