"""Each function of the diffusers host, broken on purpose while a pipeline runs."""

import pytest

from tests.hosts.breaking import BreakingContract
from tests.hosts.test_diffusers import Diffusers


class TestBreaking(BreakingContract):
    PACKAGE = "memguard.hosts.diffusers"
    # what puts the methods in their places before any run, where a run begins and ends, and the guard around the hooks
    GUARDS = frozenset(
        "attach treat methods encoding keeping_latents _build _method _Watch.__init__ _Treating.__init__"
        " denoiser Reading.guarded Editor._forward _Watch.run _Treating.run Trouble.__init__ Trouble.__call__"
        " _Step.__call__ _Step.leave".split()
    )

    @pytest.fixture
    def host(self):
        return Short()

    def treated(self, host, mitigation):
        with mitigation.attach(host.pipe):
            return host.sample(None)


class Short(Diffusers):
    """Two steps are enough."""

    steps = 2
