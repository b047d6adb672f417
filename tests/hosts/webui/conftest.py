"""Fixtures for tests against real WebUIs: one server for each host that there is."""

import pytest

from memguard_pack.tests.hosts.webui.server import FLAGS, Server, missing


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
