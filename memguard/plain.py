"""Records as plain values and back: the one format that the pages, infotext, JSONL and HTML reports read."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, fields
from typing import Any

from .findings import Attempt, Attribution, Finding, Judged, Prescan, TokenSpan
from .texts import writable
from .wording import message, odds, place, told

SCHEMA = 1  # of a report's plain values


def report_dict(report: Judged) -> dict[str, Any]:
    """Return a report as numbers, strings, lists and dicts. NaN and infinity become None."""
    values = _written(report)
    values["findings"] = [_finding_dict(finding) for finding in report.findings]
    values["attempts"] = [asdict(attempt) for attempt in report.attempts]
    values["attribution"] = attribution_dict(report.attribution) if report.attribution else None
    more = {
        "verdict": report.verdict,
        "verdict_after": report.verdict_after,
        "message": message(report),
        "told": told(report),
    }
    found: dict[str, Any] = _plain({"schema": SCHEMA, **values, **more})
    return found


def report_fields(values: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return the fields of a report from ``report_dict``'s result.

    Args:
        values: of any version; what is not known is left out.
        known: names of the fields.

    Raises:
        ValueError: if the schema is not the one that this version of memguard reads.

    """
    schema = values.get("schema")
    if schema != SCHEMA:
        raise ValueError(f"report has schema {schema!r}, this memguard reads {SCHEMA}; update memguard")
    kept = {k: _frozen(v) for k, v in values.items() if k in known}
    kept["findings"] = tuple(_finding(each) for each in values.get("findings", ()))
    tried = values.get("attempts", ())
    kept["attempts"] = tuple(Attempt(**{k: _frozen(v) for k, v in each.items()}) for each in tried)
    return kept | {"attribution": _attribution(values.get("attribution"))}


def attribution_dict(attribution: Attribution) -> dict[str, Any]:
    """Return an attribution as plain values, without its maps and images."""
    found: dict[str, Any] = _plain(_written(attribution) | {"spans": [asdict(span) for span in attribution.spans]})
    return found


def _written(record: Any) -> dict[str, Any]:
    """Return the fields that are written: tensors and pictures take no part in comparison, and none here."""
    return {f.name: getattr(record, f.name) for f in fields(record) if f.compare}


def _finding_dict(finding: Finding) -> dict[str, Any]:
    values = asdict(finding) | {"place": place(finding), "odds": odds(finding)}
    if finding.prescan is None:
        del values["prescan"]  # most runs have none
    return values


def _finding(values: dict[str, Any]) -> Finding:
    known = {f.name for f in fields(Finding)}
    kept = {k: _frozen(v) for k, v in values.items() if k in known}
    for name in ("scores", "rms"):  # of an image without a score
        kept[name] = tuple(math.nan if value is None else value for value in kept.get(name, ()))
    if kept.get("prescan") is not None:
        known = {f.name for f in fields(Prescan)}
        kept["prescan"] = Prescan(**{k: v for k, v in kept["prescan"].items() if k in known})
    return Finding(**kept)


def _attribution(values: dict[str, Any] | None) -> Attribution | None:
    if values is None:
        return None
    spans = tuple(TokenSpan(**{k: _frozen(v) for k, v in span.items()}) for span in values["spans"])
    layers = {name: _frozen(weights) for name, weights in values["layers"].items()}
    return Attribution(**{k: _frozen(v) for k, v in values.items()} | {"spans": spans, "layers": layers})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return writable(value) if isinstance(value, str) else value


def _frozen(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_frozen(v) for v in value)
    return value
