"""What every host adapter must hold. A host's test file subclasses ``HostContract`` and fills in ``Host``.

The adapter is driven through the real host; the numbers are compared with a run of the same host without memguard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pytest
import torch

from memguard import Guard, MemorizationStop
from memguard.calibration import Conditions, Profile, fit
from memguard.calibration.conditions import EMPTY, negative_of
from memguard.troubles import UNFORESEEN
from tests.spread import spread


class Host(Protocol):
    """A model in its host, ready to sample."""

    def sample(self, guard: Guard | None, prompts: Sequence[str] = ("a red fox",), cfg: float = 7.5) -> torch.Tensor:
        """Sample one latent per prompt from a fixed seed, watched by ``guard``; return them, [B, C, h, w]."""

    def rows(self) -> int:
        """Return the number of denoiser rows since the host was made."""

    def hooks(self) -> int:
        """Return the number of hooks, wrappers and replaced methods that stand in the model and the host now."""

    def break_model(self, error: Exception) -> None:
        """Let the denoiser raise at its next call, once."""

    def score(self, prompt: str) -> float:
        """Return the score of the first step by a plain computation without memguard."""


def profile(of: Guard) -> Profile:
    """Return a profile under which the last report's run is far above ordinary prompts."""
    assert of.report is not None
    finding = of.report.findings[0]
    facts = (of.report.model, "other", (8, 8), finding.sigma or 1.0, finding.timestep, 1, 4, "", finding.reference, "")
    conditions = Conditions(*facts, 7.5, negative=negative_of(of.report.negative_prompt) or EMPTY)
    return Profile(conditions, {"text_noise_norm": fit(spread(2e-9, 0.1))})


class HostContract:
    """The suite. ``host`` is a fixture of the subclass."""

    def test_watching_costs_no_row_and_changes_no_bit(self, host: Host):
        before = host.rows()
        plain = host.sample(None)
        spent = host.rows() - before
        guard = Guard()
        watched = host.sample(guard)
        assert host.rows() - before == 2 * spent
        assert torch.equal(plain, watched)
        assert guard.report.extra_rows == 0

    def test_the_score_is_that_of_a_plain_computation(self, host: Host):
        guard = Guard()
        host.sample(guard)
        finding = guard.report.findings[0]
        assert finding.status == "ok"
        assert finding.scores == (pytest.approx(host.score("a red fox"), rel=1e-4),)

    def test_a_batch_of_three_has_a_score_for_each(self, host: Host):
        prompts = ("a red fox", "a blue house", "a cat on the roof")
        guard = Guard()
        plain, watched = host.sample(None, prompts), host.sample(guard, prompts)
        assert torch.equal(plain, watched)
        assert len(guard.report.findings[0].scores) == 3
        assert len(set(guard.report.findings[0].scores)) == 3

    def test_cfg_1_is_a_reason_and_not_a_score(self, host: Host):
        guard = Guard()
        plain, watched = host.sample(None, cfg=1.0), host.sample(guard, cfg=1.0)
        assert torch.equal(plain, watched)
        finding = guard.report.findings[0]
        assert finding.scores == () and finding.verdict == "unknown"
        assert finding.status.startswith("cfg is 1")

    def test_the_empty_reference_costs_a_row_per_image_and_changes_no_bit(self, host: Host):
        before = host.rows()
        plain = host.sample(None, cfg=1.0)
        spent = host.rows() - before
        guard = Guard(reference="empty")
        watched = host.sample(guard, cfg=1.0)
        assert host.rows() - before == 2 * spent + 1
        assert torch.equal(plain, watched)
        assert guard.report.extra_rows == 1
        finding = guard.report.findings[0]
        assert finding.reference == "empty"
        assert finding.scores == (pytest.approx(host.score("a red fox"), rel=1e-4),)

    def test_each_run_has_a_report_of_its_own(self, host: Host):
        seen = []
        guard = Guard(sink=seen.append)
        host.sample(guard)
        first = guard.report.run
        host.sample(guard)
        assert guard.report.run != first
        assert len({report.run for report in seen}) == 2

    def test_no_hook_is_left(self, host: Host):
        before = host.hooks()
        host.sample(Guard())
        assert host.hooks() == before

    def test_an_exception_of_the_host_leaves_no_hook_and_a_reason(self, host: Host):
        before = host.hooks()
        guard = Guard()
        host.break_model(RuntimeError("the denoiser broke"))
        with pytest.raises(RuntimeError, match="the denoiser broke"):
            host.sample(guard)
        assert host.hooks() == before
        assert guard.report.findings[0].status == "the run ended before its first step was complete"
        host.sample(guard)
        assert guard.report.findings[0].status == "ok"

    def test_an_error_of_memguard_does_not_cost_the_picture(self, host: Host, monkeypatch):
        plain = host.sample(None)
        monkeypatch.setattr("memguard.detectors.text_noise_norm.detect", _broken)
        guard = Guard()
        assert torch.equal(plain, host.sample(guard))
        assert guard.report.error == "ZeroDivisionError: inside"
        assert UNFORESEEN in guard.report.findings[0].status

    def test_an_error_of_memguard_ends_a_run_that_it_may_stop(self, host: Host, monkeypatch):
        monkeypatch.setattr("memguard.detectors.text_noise_norm.detect", _broken)
        before = host.hooks()
        with pytest.raises(MemorizationStop, match=UNFORESEEN) as ended:
            host.sample(Guard(policy="stop"))
        assert isinstance(ended.value.__cause__, ZeroDivisionError)
        assert host.hooks() == before

    def test_stop_ends_the_run_at_the_first_step(self, host: Host):
        before = host.rows()
        guard = Guard()
        host.sample(guard)
        spent, hooks = host.rows() - before, host.hooks()
        stop = Guard(policy="stop", profile=profile(guard))
        with pytest.raises(MemorizationStop, match="looks memorized"):
            host.sample(stop)
        assert host.rows() - before < 2 * spent
        assert host.hooks() == hooks
        assert stop.report.verdict == "memorized"


def _broken(_):
    raise ZeroDivisionError("inside")
