"""The short version of the measured rates: python benchmarks/false_positives.py has the long one."""

import math

import pytest

from benchmarks.false_positives import groups
from memguard import scan, testbed
from memguard.calibration import Sensitivity
from memguard.calibration.rates import cut

PART = 72  # prompts of all styles: the list is mixed


@pytest.fixture(scope="module")
def pipe():
    return testbed.pipeline()


def findings(pipe, prompts, seed):
    return [report.findings[0] for report in scan(pipe, prompts, seed=seed)]


def too_many(rate, count):
    """Return the number of flags that a rate gives in one of a thousand samples at most (binomial)."""
    chances = [math.comb(count, k) * rate**k * (1 - rate) ** (count - k) for k in range(count + 1)]
    return next(k for k in range(count + 1) if sum(chances[k:]) <= 1e-3)


@pytest.mark.slow
def test_the_shipped_profile_keeps_its_rate_on_fresh_prompts_and_flags_the_duplicates(pipe):
    fresh, _, copied = groups().values()
    ordinary, memorized = findings(pipe, fresh[:PART], 31), findings(pipe, copied, 32)
    assert {finding.threshold_source for finding in ordinary} == {"profile of 634 ordinary prompts"}
    for sensitivity in (95, 99):
        found = cut(Sensitivity(sensitivity).suspicious, 634)
        flagged = [finding.count - finding.below <= found.allowed for finding in ordinary]
        assert sum(flagged) < too_many(found.bound, PART), sensitivity
    # 28 of 32 were measured (docs/evidence/faults/verdicts.md); 24 leave room for another seed
    assert sum(finding.verdict != "ordinary" for finding in memorized) >= 24
    assert sum(finding.verdict == "memorized" for finding in ordinary) <= 1
