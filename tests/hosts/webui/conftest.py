"""Fixtures: one server for each real WebUI that there is, and their modules, stood in for."""

import pytest

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
