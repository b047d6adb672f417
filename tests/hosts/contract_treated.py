"""What a treatment must come to in every host: it reaches the sampler, and what is told of it is true.

The suite gives treatments of its own to policy "mitigate", each of one part: text, noise, guidance, edits. What the run
becomes is compared with a plain run of the same host that was given the same from the outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from ..spread import spread
from .contract import Guard, Host, profile
from .ours import MEMGUARD, ours

Mitigation = ours("mitigations.base").Mitigation
OTHER = "a blue house"


@dataclass(frozen=True)
class Given(Mitigation):
    """A treatment that a test makes; ``seen`` collects the starts that it was made from."""

    NAME: ClassVar[str] = "given"
    TITLE: ClassVar[str] = "Given"
    SOURCE: ClassVar[str] = "a test"

    make: Callable[[Any], dict[str, Any]]
    seen: tuple[list[Any], ...] = ([],)

    def _treat(self, start: Any, before: Any) -> Any:
        self.seen[0].append(start)
        return replace(before, **self.make(start)).note("as given")


class Gap:
    """Guidance by another share of the noise gap.

    Attributes:
        steps: that it was asked about.
        again: what each of them predicts for ``view``, where one is given.

    """

    def __init__(self, share: float, view: Any = None) -> None:
        self.share, self.view = share, view
        self.steps, self.again = list[Any](), list[torch.Tensor]()

    def __call__(self, gap: torch.Tensor, step: Any) -> torch.Tensor:
        self.steps.append(step)
        if self.view is not None:
            with torch.no_grad():
                self.again.append(step.predict(self.view))
        return self.share * gap


def other_text(start: Any) -> dict[str, Any]:
    """Give the run another prompt."""
    return {"prompt": start.encode([OTHER]).expand(len(start.prompt.text))}


class TreatedContract:
    """The suite. ``host`` is a fixture of the subclass."""

    STEPS = 4  # that ``host.sample`` makes
    NEAR: ClassVar[dict[str, float]] = {"rtol": 1e-3, "atol": 1e-4}  # of pictures whose rows were asked for otherwise

    @pytest.fixture(autouse=True)
    def keep(self, monkeypatch):
        """Keep every attempt, helpful or not: random weights memorize nothing."""
        monkeypatch.setattr(f"{MEMGUARD}.loop.helped", lambda *_: True)

    def under(self, host: Host, make: Callable[[Any], dict[str, Any]], detectors=("text_noise_norm",)) -> Any:
        """Sample under a treatment; return the latents, the guard, and the start that the treatment was made from."""
        known = Guard(detectors)
        host.sample(known)
        given = Given(make, ([],))
        guard = Guard(detectors, "mitigate", given, profile(known, 2e-9, *detectors[-1:]))
        made = host.sample(guard)
        assert len(guard.report.attempts) == 1 and guard.report.attempts[0].kept, guard.report.attempts
        return made, guard, given.seen[0][0]

    def test_another_text_makes_the_picture_of_that_text(self, host: Host):
        made, guard, _ = self.under(host, other_text)
        torch.testing.assert_close(made, host.sample(None, [OTHER]), **self.NEAR)
        assert guard.report.actions == ("as given",)
        assert guard.report.scores_after == (pytest.approx(host.score(OTHER), rel=1e-3),)

    def test_other_noise_makes_the_picture_of_that_noise(self, host: Host):
        made, guard, start = self.under(host, lambda start: {"noise": host.noise(1, seed=5).to(start.noise)})
        torch.testing.assert_close(start.noise, host.noise(1), **self.NEAR)
        other = Guard()
        torch.testing.assert_close(made, host.sample(other, seed=5), **self.NEAR)
        assert guard.report.scores_after == pytest.approx(other.report.findings[0].scores, rel=1e-3)
        assert guard.report.actions == ("as given",)

    def test_guidance_acts_at_every_step(self, host: Host):
        nothing = Gap(0.0)
        made, guard, _ = self.under(host, lambda start: {"guidance": (nothing,)})
        torch.testing.assert_close(made, host.sample(None, [""]), **self.NEAR)
        assert [step.index for step in nothing.steps] == list(range(self.STEPS))
        assert {step.scale for step in nothing.steps} == {7.5}
        assert guard.report.attempts[0].changes[-1].startswith("acts after the first step")

    def test_guidance_counts_the_steps_from_other_noise_on(self, host: Host):
        nothing, noise = Gap(0.0), host.noise(1, seed=5)
        made, _, _ = self.under(host, lambda start: {"noise": noise.to(start.noise), "guidance": (nothing,)})
        torch.testing.assert_close(made, host.sample(None, [""], seed=5), **self.NEAR)
        assert [step.index for step in nothing.steps] == list(range(self.STEPS))

    def test_guidance_is_asked_about_the_treated_text(self, host: Host):
        half = Gap(0.5)

        def make(start: Any) -> dict[str, Any]:
            half.view = ours("mitigations.base").View(start.prompt)
            return other_text(start) | {"guidance": (half,)}

        _, _, start = self.under(host, make)
        expected = start.encode([OTHER]).text
        assert len(half.steps) == self.STEPS
        for step in half.steps:
            torch.testing.assert_close(step.prompt.text.to(expected), expected)
        first = half.steps[0]
        assert float((first.cond - first.uncond).norm()) == pytest.approx(host.score(OTHER), rel=1e-3)
        assert float((half.again[0] - first.uncond).norm()) == pytest.approx(host.score("a red fox"), rel=1e-3)

    def test_edits_of_attention_change_the_score_and_the_picture(self, host: Host):
        plain = host.sample(None)
        made, guard, _ = self.under(host, self.scaled)
        assert not torch.allclose(made, plain, atol=1e-4)
        assert guard.report.scores_after != guard.report.scores_before
        assert guard.report.actions == ("as given",)

    @staticmethod
    def scaled(start: Any) -> dict[str, Any]:
        """Edit attention as attention scaling does."""
        before = ours("mitigations.base").Treatment()
        return {"edits": ours("mitigations").get("attention_scaling").treat(start, before).edits}

    def test_what_an_attention_detector_says_of_a_treated_step_is_of_that_step(self, host: Host):
        detectors = ("text_noise_norm", "attention_entropy")
        plain = Guard(detectors)
        host.sample(plain, [OTHER])
        _, guard, _ = self.under(host, other_text, detectors)
        assert guard.report.scores_before == guard.report.findings[1].scores
        assert guard.report.scores_after == pytest.approx(plain.report.findings[1].scores, rel=1e-3)

    def test_an_attention_detector_that_cannot_be_asked_under_edits_is_said(self, host: Host):
        _, guard, _ = self.under(host, self.scaled, ("text_noise_norm", "attention_entropy"))
        (attempt,) = guard.report.attempts
        assert not any(line.startswith("acts after the first step") for line in attempt.changes)
        assert attempt.scores != guard.report.scores_before
        assert attempt.scores or any("could not be asked again" in line for line in attempt.changes)

    def test_of_a_batch_those_that_look_memorized_are_treated_and_the_others_keep_every_bit(self, host: Host):
        prompts = ["a red fox", "a cat on the roof", "a small dog"]
        seen, elements = Guard(), host.noise(1).numel()
        plain = host.sample(seen, prompts)
        scores = [score / elements**0.5 for score in seen.report.findings[0].scores]
        low, high = sorted(scores)[1:]
        chosen = scores.index(high)
        given, middle = Given(other_text, ([],)), (low * high) ** 0.5
        narrow = ours("calibration").fit(spread(middle, math.log(high / low) / 12))
        saved = replace(profile(seen), distributions={"text_noise_norm": narrow})
        guard = Guard(policy="mitigate", mitigation=given, profile=saved)
        made = host.sample(guard, prompts)
        assert guard.report.attempts[0].kept, guard.report
        assert not torch.allclose(made[chosen], plain[chosen], atol=1e-4)
        for image in {0, 1, 2} - {chosen}:
            assert torch.equal(made[image], plain[image])
        assert given.seen[0][0].prompt.text.shape[0] == 1

    @pytest.mark.parametrize("part", ["text", "noise", "guidance", "edits"])
    def test_nothing_is_left_and_the_generators_go_on(self, host: Host, part):
        makes = {
            "text": other_text,
            "noise": lambda start: {"noise": host.noise(1, seed=5).to(start.noise)},
            "guidance": lambda start: {"guidance": (Gap(0.5),)},
            "edits": self.scaled,
        }
        plain, before = host.sample(None), host.hooks()
        torch.manual_seed(5)
        host.sample(None)
        left = torch.get_rng_state()
        torch.manual_seed(5)
        self.under(host, makes[part])
        assert torch.equal(torch.get_rng_state(), left)
        assert host.hooks() == before
        assert torch.equal(host.sample(None), plain)

    def test_an_exception_of_the_host_under_a_treatment_leaves_no_hook(self, host: Host):
        known, before = Guard(), host.hooks()
        plain = host.sample(known)

        def fails(start: Any) -> dict[str, Any]:
            made = self.scaled(start)
            host.break_model(RuntimeError("the denoiser broke"))
            return made

        guard = Guard(policy="mitigate", mitigation=Given(fails, ([],)), profile=profile(known))
        made = host.sample(guard)
        assert host.hooks() == before
        assert torch.equal(made, plain), "an evaluation of ours that fails costs the mitigation, not the picture"
        assert not guard.report.actions
        assert torch.equal(host.sample(None), plain)

    def test_rows_that_a_treatment_costs_are_counted(self, host: Host):
        before = host.rows()
        plain = host.sample(None)
        spent = host.rows() - before
        before = host.rows()
        known = Guard()
        host.sample(known)
        guard = Guard(policy="mitigate", mitigation=Given(other_text, ([],)), profile=profile(known))
        made = host.sample(guard)
        assert not torch.equal(made, plain)
        assert host.rows() - before == 2 * spent + guard.report.extra_rows
