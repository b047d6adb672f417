"""Rows of results: what is in one, whether a row is memguard's, and what the rows of one file must agree in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..records import Report

FLAT = {
    "index": "int64",
    "prompt": "string",
    "verdict": "string",
    "detector": "string",
    "score": "float64",
    "rms": "float64",
    "zscore": "float64",
    "percentile": "float64",
    "threshold": "float64",
    "threshold_source": "string",
    "status": "string",
    "reference": "string",
    "sigma": "float64",
    "seed": "int64",
    "model": "string",
    "sampler": "string",
    "steps": "int64",
    "cfg": "float64",
    "width": "int64",
    "height": "int64",
    "seconds": "float64",
    "error": "string",
    "findings": "string",
    "notes": "string",
    "settings": "string",
}
LATER = ("notes", "settings")  # columns that files of the first version do not have
SOME = ("prescan", "promote")  # settings that only rows of a pre-scan keep
NONE_KEPT = "an older memguard wrote it and did not keep its settings, so it cannot be continued; choose another --out"


def flat(report: Report, index: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report as one row of plain cells; its first finding, and all of them as JSON."""
    values = report.to_dict()
    finding = values["findings"][0]
    means = {"score": report.findings[0].score, "rms": report.findings[0].mean_rms, "index": index}
    row = values | {k: v for k, v in finding.items() if k in FLAT} | means
    row |= {"verdict": report.verdict, "seed": report.seeds[0] if report.seeds else None}
    row["findings"] = json.dumps(values["findings"], ensure_ascii=False)
    row["notes"] = "; ".join(values["notes"])
    row["settings"] = json.dumps(dict(settings), ensure_ascii=False)
    return {name: row[name] for name in FLAT}


def whole(report: Report, index: int, settings: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return a report as one row of .jsonl."""
    return {"index": index, **report.to_dict(), **more, "settings": dict(settings)}


def ours(row: Any, index: int) -> bool:
    """Whether a row is what memguard writes as row ``index``, from 0, whatever its version."""
    try:
        findings = row["findings"]
        findings = json.loads(findings) if isinstance(findings, str) else findings
        return (
            # the first version of generate did not number its rows
            int(row.get("index", index if "run" in row else -1)) == index
            and (row["prompt"] is None or isinstance(row["prompt"], str))
            and isinstance(findings, list)
            and len(findings) > 0
            and all("scores" in finding and "status" in finding for finding in findings)
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError):
        return False


def settings_of(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the settings that a row was made with; None where it keeps none."""
    kept = row.get("settings")
    try:
        kept = json.loads(kept) if isinstance(kept, str) else kept
    except (ValueError, RecursionError):
        return None
    return kept if isinstance(kept, dict) else None


def difference(kept: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the first setting that differs, in words; "" where all of ``now`` are as they were."""
    for name, value in now.items():
        if name not in kept:
            return f"its rows do not say their {name}, this run has {_said(value)}"
        if kept[name] != value:
            return f"its rows were made with {name} {_said(kept[name])}, this run has {_said(value)}"
    for name in SOME:
        if name in kept and name not in now:
            return f"its rows were made with {name} {_said(kept[name])}, this run has none"
    return ""


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "the default" if value is None else str(value) if value != "" else "''"
