"""What every host adapter must hold. A host's test file subclasses ``HostContract`` and fills in ``Host``.

The adapter is driven through the real host; the numbers are compared with a run of the same host without memguard.
What a treatment must come to stands in ``tests.hosts.contract_treated``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import pytest
import torch

from ..spread import spread
from .ours import MEMGUARD, ours

Guard, MemorizationStop = ours().Guard, ours().MemorizationStop
LONG = " ".join(40 * ["a red fox on the roof of a blue house"])  # three chunks and more of 75 tokens
SIDE = 8  # of the latents, unless a test says otherwise


class Host(Protocol):
    """A model in its host, ready to sample."""

    def sample(
        self,
        guard: Any,
        prompts: Sequence[str] = ("a red fox",),
        cfg: float = 7.5,
        size: tuple[int, int] = (SIDE, SIDE),
        seed: int = 3,
    ) -> torch.Tensor:
        """Sample one latent of a size [h, w] per prompt, watched by ``guard``; return them, [B, C, h, w]."""

    def noise(self, images: int, seed: int = 3) -> torch.Tensor:
        """Return the noise of unit variance that such a run starts from, [B, C, h, w]."""

    def rows(self) -> int:
        """Return the number of denoiser rows since the host was made."""

    def hooks(self) -> int:
        """Return the number of hooks, wrappers and replaced methods that stand in the model and the host now."""

    def break_model(self, error: Exception) -> None:
        """Let the denoiser raise at its next call, once."""

    def interrupt(self, call: int) -> None:
        """Press the host's stop button during a call of the denoiser, 0 for the next one, once."""

    def score(self, prompt: str, size: tuple[int, int] = (SIDE, SIDE)) -> float:
        """Return the score of the first step by a plain computation without memguard."""


def profile(of: Any, rms: float = 2e-9, *detectors: str) -> Any:
    """Return a profile under which ordinary prompts score about ``rms``, for runs as the guard's last one.

    Args:
        of: a guard that has a report.
        rms: median score of ordinary prompts; by default any run is far above them.
        detectors: that the profile is of; by default the first step's norm.

    """
    calibration, conditions = ours("calibration"), ours("calibration.conditions")
    finding = of.report.findings[0]
    size = tuple(of.report.noise_gap_map.shape[-2:])
    facts = (of.report.model, "other", size, finding.sigma or 1.0, finding.timestep, 1, 4, "")
    made = calibration.Conditions(
        *facts,
        finding.reference,
        "",
        7.5,
        negative=conditions.negative_of(of.report.negative_prompt) or conditions.EMPTY,
    )
    scores = {name: calibration.fit(spread(rms, 0.1)) for name in detectors or ("text_noise_norm",)}
    return calibration.Profile(made, scores)


def outcome(run: Any) -> torch.Tensor | str:
    """Return what a run gives, or the name of what it ends with: hosts differ in what a stop button does."""
    try:
        return run()
    except BaseException as ended:
        return type(ended).__name__


def equal(a: torch.Tensor | str, b: torch.Tensor | str) -> bool:
    """Return whether two outcomes are the same, to the last bit."""
    return a == b if isinstance(a, str) or isinstance(b, str) else torch.equal(a, b)


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

    def test_a_picture_that_is_not_square_has_the_score_of_a_plain_computation(self, host: Host):
        size = (SIDE, 2 * SIDE)
        guard = Guard()
        plain, watched = host.sample(None, size=size), host.sample(guard, size=size)
        assert torch.equal(plain, watched) and plain.shape[-2:] == size
        assert guard.report.findings[0].scores == (pytest.approx(host.score("a red fox", size), rel=1e-4),)
        assert guard.report.width == 2 * guard.report.height
        assert guard.report.noise_gap_map.shape == (1, *size)

    def test_a_prompt_of_several_chunks_has_the_score_of_a_plain_computation(self, host: Host):
        guard = Guard()
        plain, watched = host.sample(None, [LONG]), host.sample(guard, [LONG])
        assert torch.equal(plain, watched)
        assert guard.report.findings[0].scores == (pytest.approx(host.score(LONG), rel=1e-4),)

    @pytest.mark.parametrize(("reference", "cfg"), [("negative", 7.5), ("empty", 1.0)])
    def test_the_generators_go_on_as_without_it(self, host: Host, reference, cfg):
        torch.manual_seed(5)
        host.sample(None, cfg=cfg)
        left = torch.get_rng_state()
        torch.manual_seed(5)
        host.sample(Guard(("text_noise_norm", "attention_entropy"), reference=reference), cfg=cfg)
        assert torch.equal(torch.get_rng_state(), left)

    @pytest.mark.parametrize("call", [0, 2])
    def test_the_stop_button_does_what_it_does_without_it(self, host: Host, call):
        before = host.hooks()
        host.interrupt(call)
        plain = outcome(lambda: host.sample(None))
        guard = Guard()
        host.interrupt(call)
        assert equal(outcome(lambda: host.sample(guard)), plain)
        assert host.hooks() == before
        finding = guard.report.findings[0]
        # some hosts end the first call itself, others finish its step
        assert (finding.status == "ok") == bool(finding.scores) and (finding.scores or call == 0)
        host.sample(guard)
        assert guard.report.findings[0].status == "ok"

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
        monkeypatch.setattr(f"{MEMGUARD}.detectors.text_noise_norm.detect", _broken)
        guard = Guard()
        assert torch.equal(plain, host.sample(guard))
        assert guard.report.error == "ZeroDivisionError: inside"
        assert ours("troubles").UNFORESEEN in guard.report.findings[0].status

    def test_an_error_of_memguard_ends_a_run_that_it_may_stop(self, host: Host, monkeypatch):
        monkeypatch.setattr(f"{MEMGUARD}.detectors.text_noise_norm.detect", _broken)
        before = host.hooks()
        with pytest.raises(MemorizationStop, match=ours("troubles").UNFORESEEN) as ended:
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
