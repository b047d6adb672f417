"""The published format of a report: the files are current, and what is written is what they say."""

import json

import jsonschema
import pytest

from memguard import findings
from memguard.records import Attempt, Attribution, Finding, Prescan, Report, TokenSpan
from tools import report_format

SCHEMA = json.loads((report_format.ROOT / "docs/report.schema.json").read_text(encoding="utf-8"))
SPANS = (TokenSpan("Kestrel", (3, 4), ids=(7, 8), place=(0, 7)), TokenSpan("", (0,), "bos"))
FULL = Report(
    run="r1",
    host="comfyui",
    prompt="Kestrel",
    seeds=(1, 2),
    cfg=7.5,
    policy="mitigate",
    findings=(
        Finding("text_noise_norm", (6.0, float("nan")), (0.06, float("nan")), ((6.0, float("nan")),), below=3, count=4),
        Finding("other", status="cfg is 1", prescan=Prescan(False, 64, 96, 1.5)),
    ),
    attribution=Attribution("attention", SPANS, (0.75, 0.25), (0.1, 0.2), layers={"down.0": (0.5, 0.5)}),
    attempts=(Attempt("Padding", ("Padded with zeros",), (2.0,), "ordinary", True, 2, 0.5),),
    curve=((14.6, 0.5), (3.0, 0.1)),
    maps=("noise_gap",),
)


@pytest.mark.parametrize("name", report_format.FILES)
def test_the_files_are_current(name):
    made = report_format.FILES[name]()
    assert (report_format.ROOT / name).read_text(encoding="utf-8") == made, "run python tools/report_format.py"


@pytest.mark.parametrize("report", [FULL, Report(run="")], ids=["full", "empty"])
def test_a_report_is_what_the_schema_says(report):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(report.to_json()), SCHEMA)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("policy",), "ignore"),
        (("schema",), 2),
        (("seeds",), [1.5]),
        (("error",), 3),
        (("curve",), [[1.0, 2.0, 3.0]]),
        (("findings", 0, "scores"), ["6"]),
        (("findings", 1, "prescan", "height"), None),
        (("attribution", "spans", 0, "group"), "noun"),
        (("attribution", "layers"), {"down.0": 1.0}),
        (("attempts", 0, "kept"), None),
    ],
)
def test_another_value_is_refused(place, value):
    values = json.loads(FULL.to_json())
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, SCHEMA)


def test_every_key_is_described_and_none_is_missing():
    values = FULL.to_dict()
    written = {
        "Report": [values],
        "Finding": values["findings"],
        "Prescan": [values["findings"][1]["prescan"]],
        "Attempt": values["attempts"],
        "Attribution": [values["attribution"]],
        "TokenSpan": values["attribution"]["spans"],
    }
    for name, records in written.items():
        part = SCHEMA if name == "Report" else SCHEMA["$defs"][name]
        for record in records:
            assert set(part["required"]) <= set(record) <= set(part["properties"])
        assert all(each["description"] for each in part["properties"].values())


def test_the_declarations_say_what_may_be_absent():
    text = (report_format.ROOT / "web/js/report.d.ts").read_text(encoding="utf-8")
    finding = text.partition("export interface Finding {")[2].partition("\n}")[0]
    assert "\n  prescan?: Prescan | null;" in finding and finding.count("?:") == 1
    assert "\n  per_step: (number | null)[][];" in finding
    assert "\n  curve: [number | null, number | null][];" in text
    assert 'export type Verdict = "ordinary" | "suspicious" | "memorized" | "unknown";' in text


def test_a_field_without_a_description_is_named(monkeypatch):
    monkeypatch.setattr(findings.Attempt, "__doc__", "One try.\n\n    Attributes:\n        kept: or not.\n")
    with pytest.raises(KeyError, match="mitigation"):
        list(report_format.keys(findings.Attempt))
