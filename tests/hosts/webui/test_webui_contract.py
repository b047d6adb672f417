"""Real A1111, Forge and Forge Neo hold the host contract. The suites run in the host's process; here is what they say.

Collected here as everywhere, each test asks what became of its namesake in ``inside/suites.py``, which is run once per
host, for the tests that were chosen. What a host cannot hold is overridden there.
"""

from pathlib import Path

import pytest

from memguard_pack.tests.hosts.contract import HostContract
from memguard_pack.tests.hosts.contract_treated import TreatedContract
from memguard_pack.tests.hosts.webui.inside.outcomes import called
from memguard_pack.tests.hosts.webui.server import FLAGS, Server, missing

INSIDE = Path(__file__).parent / "inside"


@pytest.fixture(scope="module", params=list(FLAGS))
def server(request, tmp_path_factory):
    """What became of the chosen tests in a host, by their names."""
    why = missing(request.param)
    if why:
        pytest.skip(why)
    made = Server(request.param, tmp_path_factory.mktemp(f"{request.param}-inside") / "data", extension=INSIDE)
    chosen = [item for item in request.session.items if item.module is request.module]
    try:
        return made.post("/inside", {"names": sorted({called(item) for item in chosen})})
    finally:
        made.close()


@pytest.fixture
def host(server):
    if "missing" in server:
        pytest.skip(server["missing"])
    return server


class TestContract(HostContract):
    pass


class TestTreated(TreatedContract):
    pass
