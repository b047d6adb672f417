"""Each function of the ComfyUI host, broken on purpose while a picture is sampled."""

import pytest

from memguard_pack.memguard.hosts.comfyui.treating import Treater
from memguard_pack.tests.hosts.breaking import BreakingContract
from memguard_pack.tests.hosts.comfyui.test_comfyui_contract import Comfy

# nodes make these before any run; what breaks there is an error of the node, which says so
MADE = "Watcher.__init__ _Screen.__init__ Watcher.install unwatched Treater.__init__ Treater.install"
# the wrappers: the host's own call is made inside them, and each of their steps has a guard of its own
WRAPPERS = (
    "Watcher._outer Watcher._sample Watcher._predict Watcher._calc Sampling.sample Sampling.predict Sampling._predict"
    " Sampling.evaluate Mitigating.evaluate Treater._outer Treater._sample Treater._predict Treater._calc"
    " Steering.sample Steering.predict AttentionReader._apply _apply Followed._override Followed._attend"
)
# the guards, and what is nothing but one
HELD = (
    "Sampling._careful Sampling._attentive Mitigating.careful _Treated.careful AttentionReader._guarded"
    " Followed._careful Sampling.capture Steering.capture AttentionReader._take Followed._mark Followed._past"
    " Watcher._close"
)


class TestBreaking(BreakingContract):
    PACKAGE = "memguard_pack.memguard.hosts.comfyui"
    GUARDS = frozenset(f"{MADE} {WRAPPERS} {HELD}".split())

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
