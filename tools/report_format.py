"""Writes what a report looks like for other programs, and its verdicts for the page: the FILES at the end.

They are made from the records themselves, field descriptions from their docstrings. Run it after every change of a
record or a sign (`python tools/report_format.py`); tests/core/test_report_format.py fails until then.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from memguard import findings, records, wording  # noqa: E402
from tools import signs  # noqa: E402

RECORDS = (
    records.Report,
    findings.Finding,
    findings.Prescan,
    findings.Attempt,
    findings.Attribution,
    findings.TokenSpan,
)
TERMS = {
    records.Policy: "Policy",
    records.Verdict: "Verdict",
    records.Reference: "Reference",
    records.Group: "Group",
}
# what the plain values have beside the fields of a record
MADE: dict[type, dict[str, Callable[..., Any]]] = {
    records.Report: {
        "verdict": records.Report.verdict.fget,
        "verdict_after": records.Report.verdict_after.fget,
        "message": wording.message,
        "told": wording.told,
    },
    findings.Finding: {"place": wording.place, "odds": wording.odds},
}
SOMETIMES = {(findings.Finding, "prescan")}  # left out where it is None
ABOUT = "A report of MemGuard, as this version writes it. Keys may be added; numbers that are not finite are null."


@dataclass(frozen=True)
class Key:
    """One key of a record's plain values: its name, its type, what it says, whether it is always there."""

    name: str
    kind: Any
    says: str
    always: bool = True


def keys(record: type) -> Iterator[Key]:
    """Yield the keys of a record's plain values. A KeyError names a field that the docstring does not describe."""
    if record is records.Report:
        yield Key("schema", Literal[records.SCHEMA], "version of this format")  # type: ignore[valid-type]
    said, kinds = described(record), get_type_hints(record, localns={"Tensor": Any})
    for field in fields(record):
        if field.compare:
            yield Key(field.name, kinds[field.name], said[field.name], (record, field.name) not in SOMETIMES)
    for name, function in MADE.get(record, {}).items():
        yield Key(name, get_type_hints(function)["return"], first(function))


def described(record: type) -> dict[str, str]:
    """Return what the docstring says of each field."""
    _, _, text = (inspect.getdoc(record) or "").partition("Attributes:\n")
    parts = re.findall(r"^    (\w+): (.+?)(?=^    \w|\Z)", text, re.MULTILINE | re.DOTALL)
    return {name: plainly(" ".join(says.split())) for name, says in parts}


def first(thing: Any) -> str:
    """Return the first line of a docstring."""
    return plainly((inspect.getdoc(thing) or "").splitlines()[0])


def plainly(text: str) -> str:
    """Return what a docstring says in the words of JSON."""
    return re.sub(r"\b(None|NaN)\b", "null", text.removeprefix("Return ").rstrip(".").replace("``", "`"))


def schema() -> str:
    """Return the JSON schema."""
    root, *others = map(record_schema, RECORDS)
    named = {record.__name__: each for record, each in zip(RECORDS[1:], others, strict=True)}
    named |= {name: {"enum": list(get_args(term))} for term, name in TERMS.items()}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "MemGuard report"}
    text = json.dumps(head | root | {"description": ABOUT, "$defs": named}, indent=2, ensure_ascii=False)
    return re.sub(r"\[\s+([^\[\]{}]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def record_schema(record: type) -> dict[str, Any]:
    known = list(keys(record))
    return {
        "type": "object",
        "description": first(record),
        "properties": {key.name: {"description": key.says, **value_schema(key.kind)} for key in known},
        "required": [key.name for key in known if key.always],
    }


def value_schema(kind: Any) -> dict[str, Any]:
    if kind in TERMS or is_dataclass(kind):
        return {"$ref": f"#/$defs/{TERMS.get(kind) or kind.__name__}"}
    if get_origin(kind) is Literal:
        return {"const": get_args(kind)[0]}
    if get_origin(kind) in (Union, types.UnionType):
        (other,) = set(get_args(kind)) - {types.NoneType}
        inner = value_schema(other)
        if isinstance(inner.get("type"), str):
            return inner | {"type": [inner["type"], "null"]}
        return inner if "null" in inner.get("type", ()) else {"anyOf": [inner, {"type": "null"}]}
    if get_origin(kind) is tuple:
        inside = get_args(kind)
        if inside[1:] == (...,):
            return {"type": "array", "items": value_schema(inside[0])}
        count = {"minItems": len(inside), "maxItems": len(inside)}
        return {"type": "array", "prefixItems": list(map(value_schema, inside)), **count}
    if get_origin(kind) is dict:
        return {"type": "object", "additionalProperties": value_schema(get_args(kind)[1])}
    return {"type": {str: "string", bool: "boolean", int: "integer", float: ["number", "null"]}[kind]}


def declarations() -> str:
    """Return the TypeScript declarations."""
    head = f"// Made by tools/report_format.py from memguard/records.py: run that, do not edit this.\n// {ABOUT}\n"
    terms = [f"export type {name} = {' | '.join(map(json.dumps, get_args(term)))};\n" for term, name in TERMS.items()]
    return "\n".join([head, *terms, *map(interface, RECORDS)])


def interface(record: type) -> str:
    lines = [comment(first(record)), f"export interface {record.__name__} {{\n"]
    for key in keys(record):
        lines.append(comment(key.says, "  "))
        lines.append(f"  {key.name}{'' if key.always else '?'}: {written(key.kind)};\n")
    return "".join(lines) + "}\n"


def written(kind: Any) -> str:
    """Return a type in TypeScript."""
    if kind in TERMS or is_dataclass(kind):
        return TERMS.get(kind) or kind.__name__
    if get_origin(kind) is Literal:
        return json.dumps(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        (other,) = set(get_args(kind)) - {types.NoneType}
        return f"{written(other).removesuffix(' | null')} | null"
    if get_origin(kind) is tuple:
        inside = get_args(kind)
        if inside[1:] == (...,):
            item = written(inside[0])
            return f"({item})[]" if "|" in item and not item.endswith("]") else f"{item}[]"
        return f"[{', '.join(map(written, inside))}]"
    if get_origin(kind) is dict:
        return f"Record<string, {written(get_args(kind)[1])}>"
    return {str: "string", bool: "boolean", int: "number", float: "number | null"}[kind]


def comment(text: str, indent: str = "") -> str:
    lines = textwrap.wrap(text, 116 - len(indent))
    if len(lines) == 1:
        return f"{indent}/** {text} */\n"
    return "".join([f"{indent}/**\n", *(f"{indent} * {line}\n" for line in lines), f"{indent} */\n"])


FILES: dict[str, Callable[[], str]] = {
    "docs/report.schema.json": schema,
    "web/js/report.d.ts": declarations,
    "web/js/signs.js": signs.script,
    "web/signs.css": signs.colours,
}

if __name__ == "__main__":
    for name, made in FILES.items():
        (ROOT / name).write_text(made(), encoding="utf-8")
        print(name)
