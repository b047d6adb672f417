"""Two detectors are never compared with each other: each one's distance from ordinary prompts, before and after."""

import math

import pytest

from memguard.distance import distance, gravest, helped, ordinary, standing
from memguard.records import Finding

NORM, ENTROPY = "text_noise_norm", "attention_entropy"
SCALES = {NORM: (0.4, 0.7), ENTROPY: (4.0, 4.2)}  # median of ordinary prompts, threshold


def found(detector, at, **changes):
    """A finding at a distance from ordinary prompts, with the verdict that goes with it."""
    typical, threshold = SCALES[detector]
    score = typical + at * (threshold - typical)
    verdict = "ordinary" if at < 1 else "suspicious" if at < 2 else "memorized"
    known = {"scores": (score,), "rms": (score,), "typical": typical, "threshold": threshold, "verdict": verdict}
    return Finding(detector, **known | changes)


def both(norm=None, entropy=None):
    return {d: found(d, at) for d, at in ((NORM, norm), (ENTROPY, entropy)) if at is not None}


@pytest.mark.parametrize("detector", SCALES)
@pytest.mark.parametrize("at", [-0.5, 0.0, 1.0, 3.0])
def test_the_distance_is_0_at_the_median_prompt_and_1_at_the_threshold(detector, at):
    assert distance(found(detector, at)) == pytest.approx(at)


def test_without_a_median_it_is_the_share_of_the_threshold():
    assert distance(found(NORM, 1.0, typical=None)) == pytest.approx(1.0)
    assert distance(found(NORM, 2.0, typical=0.7)) == pytest.approx(1.0 / 0.7)
    assert distance(found(NORM, 1.0, threshold=None)) == math.inf
    assert distance(found(NORM, 1.0, typical=None, threshold=0.0)) == math.inf


def test_the_gravest_has_the_worse_verdict_then_the_greater_distance():
    far, near = found(ENTROPY, 1.9), found(NORM, 1.2)
    assert gravest([near, far]) is far
    assert gravest([far, found(NORM, 2.0)]).detector == NORM
    assert gravest([found(NORM, 5.0, verdict="unknown"), near]) is near
    assert gravest([]) is None


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (both(0.8, 3.0), both(9.0, 1.1), False),  # the entropy fell, the norm rose to where it is flagged
        (both(0.8, 3.0), both(0.8, 2.2), True),
        (both(0.8, 3.0), both(0.8, 2.3), False),
        (both(0.8, 3.0), both(0.3, None), None),  # only a detector that never flagged it was asked
        (both(0.8, 3.0), both(9.0, None), False),
        (both(3.0, 3.0), both(2.0, None), True),
        (both(1.1, 3.0), both(1.15, 2.2), True),  # a rise of less than a tenth of the way is none
        (both(1.1, 3.0), both(1.21, 2.2), False),
        (both(3.0, 1.1), both(2.9, 0.9), False),  # the worse of the two counts
        (both(None, 1.05), both(None, 0.99), True),  # left the flagged range
        (both(0.8, 1.05), both(0.99, 0.99), True),
        (both(0.8, 1.05), both(1.01, 0.99), False),  # but into another detector's
        (both(None, 0.9), both(None, 0.5), True),
        (both(None, 0.9), both(None, 0.8), False),
    ],
)
def test_what_helps(before, after, expected):
    flagged = [name for name, finding in before.items() if finding.verdict != "ordinary"] or [ENTROPY]
    assert helped(before, after, flagged) is expected


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (both(0.09, 0.09), True),
        (both(0.11, 0.0), True),  # the norm did not flag it: below its threshold is enough
        (both(0.0, 0.11), False),
        (both(1.0, 0.0), False),
        (both(0.0, None), False),
    ],
)
def test_what_is_ordinary_again(after, expected):
    assert ordinary(after, [ENTROPY]) is expected


def test_a_finding_without_a_verdict_has_no_standing():
    assert standing([found(NORM, 1.0), found(ENTROPY, 1.0, verdict="unknown")]).keys() == {NORM}
