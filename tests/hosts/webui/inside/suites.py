"""The suites of the host contract over the WebUI of this process. ``test_webui_contract.py`` has them run."""

from typing import ClassVar

import pytest
import torch

pytest.register_assert_rewrite("memguard_webui_pack.tests.hosts")

from memguard_webui_pack.extension import host as ours  # noqa: E402
from memguard_webui_pack.tests.hosts.contract import Guard, HostContract  # noqa: E402
from memguard_webui_pack.tests.hosts.contract_treated import TreatedContract  # noqa: E402
from memguard_webui_pack.tests.hosts.webui.inside.host import WebUI  # noqa: E402


@pytest.fixture
def host():
    made = WebUI()
    yield made
    made.close()


class TestContract(HostContract):
    def test_cfg_1_is_a_reason_and_not_a_score(self, host):
        """A1111 predicts without the prompt at every cfg, so that there is a score."""
        if ours.FORGE:
            super().test_cfg_1_is_a_reason_and_not_a_score(host)
            return
        guard = Guard()
        plain, watched = host.sample(None, cfg=1.0), host.sample(guard, cfg=1.0)
        assert torch.equal(plain, watched)
        assert guard.report.findings[0].scores == (pytest.approx(host.score("a red fox"), rel=1e-4),)

    def test_the_empty_reference_costs_a_row_per_image_and_changes_no_bit(self, host):
        """In A1111, where the negative prompt is not empty: it is predicted at every cfg."""
        if ours.FORGE:
            super().test_the_empty_reference_costs_a_row_per_image_and_changes_no_bit(host)
            return
        score, before = host.score("a red fox"), host.rows()
        host.negative = "ugly"
        plain = host.sample(None)
        spent = host.rows() - before
        guard = Guard(reference="empty")
        watched = host.sample(guard)
        assert host.rows() - before == 2 * spent + 1
        assert torch.equal(plain, watched)
        assert guard.report.extra_rows == 1
        assert guard.report.findings[0].reference == "empty"
        assert guard.report.findings[0].scores == (pytest.approx(score, rel=1e-4),)


class TestTreated(TreatedContract):
    # a first step that is made again asks for its rows one by one, and A1111's own "batch cond/uncond" moves as much
    NEAR: ClassVar = {"rtol": 1e-3, "atol": 5e-3}
