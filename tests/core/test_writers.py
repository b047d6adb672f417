"""Results on disk: every row at once, broken files repaired, other settings refused."""

import csv
import json

import pytest

from memguard import Finding, Report
from memguard.lists import BadInput, open_results
from memguard.lists.write import FLAT


def report(prompt: str | None = "a red fox", score: float | None = 1.5, **changes) -> Report:
    scores = {"scores": (score, score), "rms": (0.01, 0.01), "per_step": ((score, score),)} if score else {}
    finding = Finding("text_noise_norm", **scores, status="ok" if score else "prompt is no text")
    facts = {"model": "cafe", "seeds": (0,), "sampler": "DDIM", "steps": 50, "cfg": 7.5, "width": 64, "height": 64}
    return Report("r", **{**facts, "prompt": prompt, "findings": (finding,), **changes})


NASTY = 'two\nlines, "quoted"; café \u2028'


def write(path, *reports, **how):
    results = open_results(path, **{"resume": False, **how})
    done = list(results.done()) if how.get("resume") else []
    with results:
        for one in reports:
            results.add(one)
    return done


def prompts(path) -> list[str | None]:
    if path.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(path).column("prompt").to_pylist()
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            return [row["prompt"] or None for row in csv.DictReader(file)]
        return [json.loads(line)["prompt"] for line in file]


@pytest.fixture(params=[".jsonl", ".csv", ".parquet"])
def path(request, tmp_path):
    if request.param == ".parquet":
        pytest.importorskip("pyarrow")
    return tmp_path / f"out{request.param}"


def test_a_file_is_written_and_continued(path):
    write(path, report(NASTY), report(None, None))
    assert prompts(path) == [NASTY, None]
    done = write(path, report("third"), resume=True)
    assert [value or None for value in done] == [NASTY, None]
    assert prompts(path) == [NASTY, None, "third"]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_file_that_is_there_is_not_lost_by_accident(path):
    write(path, report("first"))
    with pytest.raises(BadInput, match="is there already; continue it with --resume or replace it with --force"):
        open_results(path, resume=False)
    write(path, report("new"), force=True)
    assert prompts(path) == ["new"]


def test_other_settings_are_refused(path):
    write(path, report("first"), report(None, None))
    for name, changes in {
        "seed 0, this scan has 3": {"seeds": (3,)},
        "cfg 7.5, this scan has 2": {"cfg": 2.0},
        "model cafe, this scan has beef": {"model": "beef"},
        "width 64, this scan has 32": {"width": 32},
    }.items():
        with pytest.raises(BadInput, match=name):
            write(path, report("second", **changes), resume=True)
    assert prompts(path) == ["first", None]


def test_resume_begins_a_file_that_is_not_there(path):
    assert write(path, report("first"), resume=True) == []
    assert prompts(path) == ["first"]


@pytest.mark.parametrize("cut", [1, 5, 40])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_truncated_last_row_is_cut_off(tmp_path, suffix, cut):
    path = tmp_path / f"out{suffix}"
    write(path, report(NASTY), report(NASTY))
    path.write_bytes(path.read_bytes()[:-cut])
    assert write(path, report("again"), resume=True) == [NASTY]
    assert prompts(path) == [NASTY, "again"]


def test_a_csv_whose_header_was_cut_begins_again(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("index,prom")
    assert write(path, report("first"), resume=True) == []
    assert prompts(path) == ["first"]


def test_rows_are_on_disk_as_they_come(tmp_path):
    path = tmp_path / "out.jsonl"
    with open_results(path, resume=False) as results:
        results.add(report("first"))
        assert prompts(path) == ["first"]


def test_parquet_after_a_crash_goes_on_from_its_journal(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "out.parquet"
    results = open_results(path, resume=False)
    results.__enter__()
    results.add(report("first"))
    results._file.write(b'{"index": 1, "prom')  # and the power went out
    results._file.close()
    assert write(path, report("second"), resume=True) == ["first"]
    assert prompts(path) == ["first", "second"]


def test_parquet_has_row_groups(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("memguard.lists.parquet.ROW_GROUP", 2)
    write(tmp_path / "out.parquet", *[report(str(i)) for i in range(5)])
    file = parquet.ParquetFile(tmp_path / "out.parquet")
    assert (file.num_row_groups, file.metadata.num_rows) == (3, 5)
    assert file.schema_arrow.names == list(FLAT)


def test_jsonl_holds_whole_reports(tmp_path):
    write(tmp_path / "out.jsonl", report("first"))
    values = json.loads((tmp_path / "out.jsonl").read_text())
    assert values["index"] == 0
    assert Report.from_dict(values) == report("first")


@pytest.mark.parametrize(
    ("name", "message"),
    [("out.txt", "memguard writes .jsonl, .csv and .parquet"), ("none/out.csv", "no folder")],
)
def test_a_wrong_target_is_said_before_the_scan(tmp_path, name, message):
    with pytest.raises(BadInput, match=message):
        open_results(tmp_path / name, resume=False)


def test_a_file_of_something_else_is_not_continued(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(BadInput, match="row 1 was not written by memguard scan"):
        list(open_results(path, resume=True).done())
