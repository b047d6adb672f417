"""Reports, words and colours as the server makes them, for the tests of the page.

``python -m tests.web.cases`` prints them.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

from memguard.overlay import ink, ramp
from memguard.plain import attribution_dict
from memguard.records import Attempt, Attribution, Finding, Report, TokenSpan

VERDICTS = ("ordinary", "suspicious", "memorized", "unknown")
SPANS = (
    TokenSpan("Halley", (1, 2), ids=(5, 6), emphasis=1.3),
    TokenSpan("gone", ()),
    TokenSpan("", tuple(range(3, 77)), "padding", ids=(9,) * 74),
)
KNOWN = {"below": 320, "count": 320, "rate": 1 / 321, "rate_bound": 0.0093, "caveat": "this run's is not known"}
TRIED = Attempt("Padding", ("padded with zeros",), (2.0, math.nan, 3.0), "memorized", kept=False)
HELPED = Attempt("Noise", ("moved",), (0.5123,), "ordinary", kept=True)
KEPT = (Attempt("Padding", ("padded",), (0.5,), "ordinary", kept=True),)
UNSCORED = (Attempt("Padding", ("padded",), kept=True),)
FAILED = (Attempt("Padding", ("left out",)),)
SAID = {"memorized": 3.0, "suspicious": 2.0, "ordinary": 1.0, "unknown": 0.5}


def words(weights: tuple[float, ...], spans: tuple[TokenSpan, ...] = SPANS, **more: Any) -> dict[str, Any]:
    return attribution_dict(Attribution("gradient", spans, weights, unit="slope", **more))


def scored(
    verdict: Any = "memorized",
    percentile: float | None = 99.2,
    policy: Any = "warn",
    source: str = "profile of 60 ordinary prompts",
    scores: tuple[float, ...] = (5.0, 6.0),
    others: tuple[Finding, ...] = (),
    **more: Any,
) -> dict[str, Any]:
    finding = Finding("x", scores, scores, verdict=verdict, percentile=percentile, threshold_source=source, **more)
    report = Report(run="r", policy=policy, findings=(finding, *others))
    return report.to_dict() | {"flagged": report.flagged}


def explained(run: str = "r", created: str = "2026-01-02T00:00:00", **more: Any) -> dict[str, Any]:
    finding = Finding("x", (5.0,), (0.1,), per_step=((5.0,),), verdict="memorized", percentile=99.2)
    own = Attribution("gradient", (TokenSpan("cup", (1,)),), (1.0,), token_scores=(1.0,), layers={"down": (1.0,)})
    return Report(run=run, findings=(finding,), attribution=own, created=created, **more).to_dict()


def mitigated(*attempts: Attempt) -> dict[str, Any]:
    return explained(attempts=attempts, policy="mitigate")


def passed(
    run: str, verdict: Any = "memorized", attempts: tuple[Attempt, ...] = (), carried: str = "", **more: Any
) -> dict[str, Any]:
    finding = Finding("x", (SAID[verdict],), (0.1,), verdict=verdict, percentile=99.2, carried=carried)
    return Report(run=run, findings=(finding,), attempts=attempts, **more).to_dict()


def cases() -> dict[str, Any]:
    """Return them all by name."""
    four = tuple(TokenSpan(f"w{i}", (i,)) for i in range(4))
    parts = (TokenSpan("cup", (1,)), TokenSpan("", (2,), "eos"), TokenSpan("tree", (1,), part=1))
    grave = Finding("other", (9.0,), (9.0,), verdict="suspicious", percentile=99.5)
    return {
        "ramp": ramp().tolist(),
        "inks": [ink(colour) for colour in ramp()],
        "words": {
            "usual": words((3.0, 0.0, 1.0)),
            "negative": words((1.23456, 0.0, -0.5)),
            "parts": words((1.0, 3.0, 7.0), parts),
            "noted": words((1.0, 0.0, 0.0), notes=("a note",)),
            "blank": words((3.0, math.nan, 1.0)),
            "none": attribution_dict(Attribution("attention", status="no cross-attention")),
            "four": words((0.0, 1.0, 2.0, 4.0), four),
        },
        "asked": [scored(verdict, policy=policy) for policy in ("observe", "warn", "stop") for verdict in VERDICTS],
        "scored": scored(),
        "known": {
            "memorized": scored(**KNOWN),
            "suspicious": scored("suspicious", **KNOWN | {"below": 318}),
            "ordinary": scored("ordinary", **KNOWN | {"below": 3, "rate": 0.0094}),
        },
        "blank": scored(scores=(math.nan, math.nan)),
        "partly": scored(scores=(math.nan, 5.0, 6.0)),
        "percentiles": {str(each): scored(percentile=each) for each in (99.9999, 99.989, 0.0)},
        "uncalibrated": scored("unknown", None, source="uncalibrated: no profile for this model; run calibrate"),
        "unscored": {
            "status": Report(run="r", findings=(Finding("text_noise_norm", status="cfg is 1"),)).to_dict(),
            "error": Report(run="", error="KeyError: 3").to_dict(),
            "nothing": Report(run="r").to_dict(),
        },
        "two": scored("ordinary", 10.0, others=(grave,)),
        "alike": scored("suspicious", threshold=1.0, others=(replace(grave, threshold=1.0),)),
        "mitigated": {
            "helped": mitigated(TRIED, HELPED),
            "failed": mitigated(TRIED),
            "unscored": mitigated(Attempt("Delay", kept=True)),
            "still": mitigated(Attempt("Padding", (), (2.0,), "suspicious", kept=True)),
            "untried": mitigated(),
        },
        "explained": explained(),
        "passes": {
            **{verdict: passed("", verdict) for verdict in VERDICTS},
            "mitigated": passed("", attempts=KEPT),
            "again": passed("", attempts=UNSCORED, carried="4"),
            "untreated": passed("", attempts=FAILED, carried="4"),
            "carried": passed("", carried="1"),
        },
    }


if __name__ == "__main__":
    print(json.dumps(cases(), allow_nan=False))
