"""Fixtures: one server for each real WebUI that there is, and their modules, stood in for."""

import pytest

from memguard_pack.tests.hosts.webui.inside.outcomes import called
from memguard_pack.tests.hosts.webui.server import FLAGS, Server, missing
from memguard_pack.tests.hosts.webui.stand_ins import Door, modules


@pytest.fixture(scope="session", params=list(FLAGS))
def server(request, tmp_path_factory):
    """A WebUI with MemGuard, API only."""
    why = missing(request.param)
    if why:
        pytest.skip(why)
    made = Server(request.param, tmp_path_factory.mktemp(request.param) / "data")
    made.host = request.param
    yield made
    made.close()


@pytest.fixture
def host(monkeypatch, tmp_path):
    """The hosts' modules, stood in for; what of ours is imported beside them is forgotten again."""
    yield from modules(monkeypatch, tmp_path)


@pytest.fixture
def door(host, monkeypatch):
    """The extension's script and callbacks over these modules."""
    return Door(host, monkeypatch)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Let a test of the host contract tell what became of it in the host's process (test_webui_contract.py)."""
    if pyfuncitem.module.__name__.rpartition(".")[2] != "test_webui_contract":
        return None
    outcome, text = pyfuncitem.funcargs["host"].get(called(pyfuncitem), ("failed", "the host's process did not run it"))
    if outcome == "skipped":
        pytest.skip(text)
    if outcome == "failed":
        pytest.fail(text, pytrace=False)
    return True
