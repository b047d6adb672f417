"""Results on disk: every row at once, broken files repaired, other settings refused."""

import csv
import json
import os

import pytest

from memguard import Finding, Report
from memguard.lists import BadInput, open_results
from memguard.lists import write as writing
from memguard.lists.rows import FLAT, LATER


def report(prompt: str | None = "a red fox", score: float | None = 1.5, **changes) -> Report:
    scores = {"scores": (score, score), "rms": (0.01, 0.01), "per_step": ((score, score),)} if score else {}
    finding = Finding("text_noise_norm", **scores, status="ok" if score else "prompt is no text")
    facts = {"model": "cafe", "seeds": (0,), "sampler": "DDIM", "steps": 50, "cfg": 7.5, "width": 64, "height": 64}
    return Report("r", **{**facts, "prompt": prompt, "findings": (finding,), **changes})


NASTY = 'two\nlines, "quoted"; café \u2028'
MADE = {"seed": 0, "detector": ["text_noise_norm"], "sensitivity": 99.0, "negative prompt": None}


def write(path, *reports, settings=MADE, **how):
    results = open_results(path, **{"resume": False, **how})
    try:
        done = list(results.done()) if how.get("resume") else []
        results.agree(settings)
        results.settings = settings
        with results:
            for one in reports:
                results.add(one)
    finally:
        results.close()
    return done


def refused(path, match, **how) -> None:
    """Nothing is changed: not the file, not the folder."""
    before = {entry: entry.read_bytes() for entry in path.parent.iterdir() if entry.is_file()}
    with pytest.raises(BadInput, match=match) as error:
        write(path, report("new"), **{"resume": True, **how})
    assert "\n" not in str(error.value)
    assert {entry: entry.read_bytes() for entry in path.parent.iterdir() if entry.is_file()} == before


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


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"seed": 3}, "with seed 0, this run has 3"),
        ({"detector": ["text_noise_norm", "attention_entropy"]}, "with detector text_noise_norm, this run has text_n"),
        ({"sensitivity": 95.0}, "with sensitivity 99, this run has 95"),
        ({"negative prompt": ""}, "with negative prompt the default, this run has ''"),
        ({"reference": "empty"}, "do not say their reference, this run has empty"),
    ],
)
def test_other_settings_are_refused_by_name(path, changed, says):
    write(path, report("first"), report(None, None))
    refused(path, says, settings=MADE | changed)
    write(path, report("second"), settings=MADE, resume=True)
    assert prompts(path) == ["first", None, "second"]


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
    results.settings = MADE
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
    [("out.txt", "memguard writes .jsonl, .csv and .parquet"), ("none/out.csv", "no folder"), (".", "is a folder")],
)
def test_a_wrong_target_is_said_before_the_scan(tmp_path, name, message):
    with pytest.raises(BadInput, match=message):
        open_results(tmp_path / name, resume=False)


FOREIGN = {
    "other.jsonl": b'{"prompt": "a"}\n',
    "index.jsonl": b'{"index": 1, "prompt": "a", "findings": [{"scores": [], "status": ""}]}\n',
    "last-line.jsonl": b'{"prompt": "a"}',
    "brace.jsonl": b"{",
    "other-index.jsonl": b'{"index": 0, "x": 1',
    "letter.csv": b"i",
    "deep.jsonl": b"[" * 20_000 + b"\n",
    "binary.jsonl": bytes(range(256)) * 36,
    "no-last-newline.csv": b"id,name\n1,a\n2,b",
    "header.csv": b"prompt,note\na,b\n",
    "header-only.csv": b"prompt,note",
    "binary.csv": bytes(range(255, -1, -1)) * 36,
    "text.parquet": b"text",
    "other.parquet.jsonl": b'{"prompt": "a"}\n',
}


@pytest.mark.parametrize("how", ["resume", "force"])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_something_else_is_left_as_it_is(tmp_path, name, how):
    if "parquet" in name:
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(FOREIGN[name])
    path = tmp_path / name.replace(".parquet.jsonl", ".parquet")
    refused(path, "was not written by memguard", **{"resume": False, how: True})


@pytest.mark.parametrize("row", [0, 1])
def test_a_row_of_something_else_is_not_continued(path, row):
    write(path, report("first"), report("second"))
    if path.suffix == ".parquet":
        pytest.skip("a Parquet file is recognised by its columns")
    lines = path.read_bytes().splitlines(keepends=True)
    head = path.suffix == ".csv"
    lines[row + head] = b"1,2\n" if head else b'{"a": 1}\n'
    path.write_bytes(b"".join(lines))
    refused(path, f"row {row + 1} was not written by memguard")


def test_a_tail_that_no_row_begins_with_is_not_cut_off(tmp_path):
    for suffix, tail in (
        (".jsonl", b"my notes"),
        (".csv", b"my notes"),
        (".jsonl", b'{"index": 7, '),
        (".jsonl", b'{"index": 1, "x'),
    ):
        path = tmp_path / f"out{suffix}"
        write(path, report("first"), force=True)
        with path.open("ab") as file:
            file.write(tail)
        refused(path, "row 2 was not written by memguard")
        path.unlink()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_results_of_the_first_version_are_refused_with_the_reason(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    write(path, report("first"))
    if suffix == ".jsonl":
        old = json.loads(path.read_text())
        del old["settings"]
        path.write_text(json.dumps(old) + "\n")
    else:
        (row,) = csv.DictReader(path.open(newline=""))
        kept = {name: cell for name, cell in row.items() if name not in LATER}
        with path.open("w", newline="") as file:
            out = csv.DictWriter(file, kept)
            out.writeheader()
            out.writerow(kept)
    refused(path, "an older memguard wrote it and did not keep its settings")
    write(path, report("new"), force=True)
    assert prompts(path) == ["new"]


@pytest.mark.parametrize("prompt", ['5" nails', 'a "b', '"', '""', '\\"', "it's"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_quotes_of_a_prompt_end_no_row_early_or_late(tmp_path, suffix, prompt):
    path = tmp_path / f"out{suffix}"
    write(path, report(prompt), report(prompt), report("third"))
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"third")])
    assert write(path, report("third"), resume=True) == [prompt, prompt]
    assert prompts(path) == [prompt, prompt, "third"]


def test_a_last_row_without_its_line_end_is_written_again(tmp_path):
    path = tmp_path / "out.jsonl"
    write(path, report("first"), report("second"))
    path.write_bytes(path.read_bytes()[:-1])  # whole as JSON, and yet not written to its end
    assert write(path, report("second"), resume=True) == ["first"]
    assert prompts(path) == ["first", "second"]


def test_a_whole_file_is_not_cut(path):
    write(path, report("first"), report("second"))
    assert write(path, resume=True) == ["first", "second"]
    assert prompts(path) == ["first", "second"]


def test_carriage_returns_and_half_characters_stay_one_row(path):
    write(path, report("a\rb"), report("half \ud800 x"), report("\x00\x1b[31m"))
    assert write(path, report("last"), resume=True) == ["a\rb", "half \\ud800 x", "\x00\x1b[31m"]
    assert prompts(path) == ["a\rb", "half \\ud800 x", "\x00\x1b[31m", "last"]


def test_input_and_output_are_not_the_same_file(tmp_path):
    source = tmp_path / "list.csv"
    source.write_text("prompt\na\n")
    (tmp_path / "link.csv").symlink_to(source)
    os.link(source, tmp_path / "hard.csv")
    for name in ("list.csv", "link.csv", "hard.csv"):
        refused(tmp_path / name, "is the same file as .*list.csv", inputs=[None, source], resume=False, force=True)
    (tmp_path / "out.parquet.jsonl").symlink_to(source)
    refused(tmp_path / "out.parquet", "is the same file as", inputs=[source], resume=False, force=True)


def test_of_two_scans_one_writes(path):
    first, second = open_results(path, resume=False), open_results(path, resume=False)
    with first:
        first.add(report("first"))
        with pytest.raises(BadInput, match="somebody else has just made it"), second:
            pass
        for how in ("resume", "force"):
            with pytest.raises(BadInput, match="another memguard is writing it"):
                open_results(path, resume=how == "resume", force=how == "force")
    assert prompts(path) == ["first"]


def test_a_finished_scan_is_not_replaced_by_one_that_began_with_it(path):
    first, second = open_results(path, resume=False), open_results(path, resume=False)
    with first:
        first.add(report("first"))
    with pytest.raises(BadInput, match="somebody else has just made it"), second:
        pass
    assert prompts(path) == ["first"]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_file_of_no_row_is_taken_away_after_an_error(path):
    with pytest.raises(ZeroDivisionError), open_results(path, resume=False):
        raise ZeroDivisionError
    assert list(path.parent.iterdir()) == []


class Full:
    """A disk with room for some more bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        if self.room == 0:
            raise OSError(28, "No space left on device")
        part = data[: self.room]
        self.room -= len(part)
        return self.file.write(part)


@pytest.mark.parametrize("room", [0, 10, 3000])
def test_a_full_disk_is_one_line_and_the_rows_go_on_later(path, room, monkeypatch):
    made = writing.files.created
    monkeypatch.setattr(writing.files, "created", lambda path: Full(made(path), room))
    with pytest.raises(BadInput, match=r"cannot be written \(No space left on device\)"):
        write(path, *[report(str(i)) for i in range(9)])
    monkeypatch.undo()
    done = write(path, report("more"), resume=True)
    assert done == [str(i) for i in range(len(done))] and bool(done) == (room == 3000)
    assert prompts(path) == [*done, "more"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_folders_and_odd_names_are_refused(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / f"folder{suffix}").mkdir()
    for how in ({"resume": True}, {"resume": False, "force": True}):
        with pytest.raises(BadInput, match="a folder"):
            open_results(tmp_path / f"folder{suffix}", **how)
    with pytest.raises(BadInput, match="cannot be written"):
        open_results(tmp_path / ("n" * 300 + suffix), resume=False)
    with pytest.raises(BadInput, match="is no name for a file"):
        open_results(tmp_path / f"\udfff{suffix}", resume=False)


def test_a_file_that_must_not_be_written_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    write(path, report("first"))

    def denied(*_args, **_settings):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", denied)
    with pytest.raises(BadInput, match=r"out.jsonl: cannot be written \(Permission denied\)"):
        open_results(path, resume=True)
