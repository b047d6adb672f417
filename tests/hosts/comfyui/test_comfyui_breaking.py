"""Each function of the ComfyUI host, broken on purpose while a picture is sampled."""

import pytest

from memguard_pack.memguard.hosts.comfyui.treating import Treater
from memguard_pack.tests.hosts.breaking import BreakingContract
from memguard_pack.tests.hosts.comfyui.test_comfyui_contract import Comfy


class TestBreaking(BreakingContract):
    PACKAGE = "memguard_pack.memguard.hosts.comfyui"
    GUARDS = frozenset()

    @pytest.fixture
    def host(self):
        made = Short()
        yield made
        made.close()

    def treated(self, host, mitigation):
        return host.run(Treater(mitigation, host.clip).install(host.model))


class Short(Comfy):
    """Two steps are enough."""

    steps = 2
