"""Prompts from files: formats, columns, delimiters, encodings, and the one line that says what is wrong."""

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memguard.lists import BadInput, read_prompts


def write(path, data: bytes | str):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_text_has_a_prompt_per_line_and_blank_lines_are_none(tmp_path):
    path = write(tmp_path / "p.txt", b"\xef\xbb\xbfa red fox\r\n\r\n  a caf\xc3\xa9  \nlast")
    assert list(read_prompts(path)) == ["a red fox", "a café", "last"]


def test_unicode_line_separators_are_part_of_a_prompt(tmp_path):
    path = write(tmp_path / "p.txt", "one\u2028still one\x0band still\ntwo\n")
    assert list(read_prompts(path)) == ["one\u2028still one\x0band still", "two"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("column", ["prompt", "Caption", "caption", "text"])
def test_csv_finds_delimiter_and_column(tmp_path, delimiter, column):
    lines = [["id", column, "note"], ["1", '"a, b; c"', "x"], ["2", '"two\nlines ""quoted"""', "y"]]
    path = write(tmp_path / "p.csv", "\n".join(delimiter.join(line) for line in lines) + "\n")
    assert list(read_prompts(path)) == ["a, b; c", 'two\nlines "quoted"']


def test_csv_keeps_rows_without_a_cell(tmp_path):
    path = write(tmp_path / "p.csv", "id,prompt\n1,a\n2\n3,\n")
    assert list(read_prompts(path)) == ["a", None, ""]


def test_a_column_can_be_chosen(tmp_path):
    path = write(tmp_path / "p.csv", "prompt;other\na;b\n")
    assert list(read_prompts(path, "other")) == ["b"]


def test_jsonl_holds_strings_or_objects_and_keeps_what_is_no_text(tmp_path):
    path = write(tmp_path / "p.jsonl", '"a"\n\n{"prompt": "b", "seed": 1}\n{"caption": null}\n{"text": NaN}')
    values = list(read_prompts(path))
    assert values[:3] == ["a", "b", None]
    assert values[3] != values[3]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"id": [1, 2, 3], "Caption": ["a", None, "c"]})
    parquet.write_table(table, tmp_path / "p.parquet", row_group_size=2)
    assert list(read_prompts(tmp_path / "p.parquet")) == ["a", None, "c"]
    write(tmp_path / "no.parquet", "text")
    with pytest.raises(BadInput, match="no.parquet: not a Parquet file"):
        list(read_prompts(tmp_path / "no.parquet"))


def test_stdin_is_text(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n\nb")))
    assert list(read_prompts(None)) == ["a", "b"]


def test_a_wrong_encoding_names_file_byte_and_remedy(tmp_path):
    path = write(tmp_path / "p.txt", b"a red fox\n" + "caf\xe9\n".encode("cp1252"))
    with pytest.raises(BadInput) as error:
        list(read_prompts(path))
    assert str(error.value) == (
        f"{path}: byte 13 is not utf-8; save the file as UTF-8, or name its encoding, for example --encoding cp1252"
    )
    assert list(read_prompts(path, encoding="cp1252")) == ["a red fox", "café"]


def test_utf_16_is_recognised_by_its_mark(tmp_path):
    path = write(tmp_path / "p.txt", "a red fox\ncafé\n".encode("utf-16"))
    with pytest.raises(BadInput, match="byte 0 is not utf-8.*--encoding utf-16"):
        list(read_prompts(path))
    assert list(read_prompts(path, encoding="utf-16")) == ["a red fox", "café"]


@given(
    before=st.text(st.characters(codec="utf-8", exclude_characters="\r\n\ufeff"), max_size=30), chunk=st.integers(1, 7)
)
def test_the_byte_is_right_wherever_the_chunks_end(tmp_path_factory, before, chunk):
    path = write(tmp_path_factory.mktemp("chunks") / "p.txt", f"a{before}\n".encode() + b"x\xff")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memguard.lists.read.CHUNK", chunk)
        with pytest.raises(BadInput, match=f"byte {len(before.encode()) + 3} is not utf-8"):
            list(read_prompts(path))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.doc", "a", "memguard reads .txt, .jsonl, .csv and .parquet"),
        ("p.jsonl", '"a"\n{"prompt": ', "line 2 is not JSON"),
        ("p.jsonl", '{"promt": "a"}', "line 1: no column prompt, caption or text; there are: promt; choose one with"),
        (
            "p.csv",
            "id,promt\n1,a\n",
            "no column prompt, caption or text; there are: id, promt; choose one with --column",
        ),
        ("p.csv", 'prompt\n"a"b\n', "not a table of cells"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, name, data, message):
    path = write(tmp_path / name, data)
    with pytest.raises(BadInput) as error:
        list(read_prompts(path))
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_other_mistakes_are_said_too(tmp_path):
    with pytest.raises(BadInput, match="none.txt: no such file"):
        list(read_prompts(tmp_path / "none.txt"))
    with pytest.raises(BadInput, match="is a folder"):
        list(read_prompts(tmp_path))
    with pytest.raises(BadInput, match="--encoding klingon: no such encoding"):
        list(read_prompts(write(tmp_path / "p.txt", "a"), encoding="klingon"))
    with pytest.raises(BadInput, match="no column other; there are: prompt"):
        list(read_prompts(write(tmp_path / "p.csv", "prompt\na\n"), "other"))
