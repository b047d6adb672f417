"""Prompts from files: formats, columns, delimiters, encodings, and the one line that says what is wrong."""

import io
import sys
from pathlib import Path

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
        ("p.doc", "a", "memguard reads .txt, .jsonl, .csv, .parquet and .tar"),
        ("p.jsonl", '"a"\n{"prompt": ', "line 2 is not JSON"),
        ("p.jsonl", '{"promt": "a"}', "line 1: no column prompt, caption or text; there are: promt; choose one with"),
        (
            "p.csv",
            "id,promt\n1,a\n",
            "no column prompt, caption or text; there are: id, promt; choose one with --column",
        ),
        ("p.csv", 'id,prompt\n1,"a"b\n2\n', "not a table of cells (line 2: "),
        ("p.csv", "id,prompt\n1,a, b\n", "line 2 has 3 cells, and the header has 2; quote cells that hold commas"),
        ("p.csv", "id\tprompt\n\n1\ta\tb\n", "line 3 has 3 cells, and the header has 2; quote cells that hold tabs"),
        ("p.csv", 'sep="\nid"prompt\n', "no column prompt, caption or text; there are: sep="),
        ("p.jsonl", '"a"\n{"prompt": "b", "id": ' + 5000 * "9" + "}", "line 2 holds a number of too many digits"),
        ("p.jsonl", 20_000 * "[", "line 1 is nested too deeply"),
        ("p.jsonl", 20_000 * '{"prompt":', "line 1 is nested too deeply"),
        ("p.txt", (1 << 24) * "a" + "b\n", "a line has more than 16,777,216 characters"),
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
    with pytest.raises(BadInput, match="^a{60}...: no such file"):
        list(read_prompts(Path(300 * "a")))  # a prompt where a file belongs
    with pytest.raises(BadInput, match="no such file"):
        list(read_prompts(Path("a\0b")))
    with pytest.raises(BadInput, match="no regular file"):
        list(read_prompts(Path("/dev/null")))
    with pytest.raises(BadInput, match="no column other; there are: prompt"):
        list(read_prompts(write(tmp_path / "p.csv", "prompt\na\n"), "other"))


@pytest.mark.parametrize("encoding", ["rot13", "hex", "zlib", "base64", "undefined", "klingon", "a\0b", "mbcs2"])
def test_what_is_no_text_encoding_is_refused(tmp_path, encoding):
    for data in (b"", b"a\n"):
        with pytest.raises(BadInput, match="no such encoding; for example utf-8"):
            list(read_prompts(write(tmp_path / "p.txt", data), encoding=encoding))


@pytest.mark.parametrize("encoding", ["idna", "punycode", "utf-7", "utf-32"])
def test_encodings_with_errors_of_their_own_are_one_line(tmp_path, encoding):
    with pytest.raises(BadInput, match=f"is not {encoding}"):
        list(read_prompts(write(tmp_path / "p.txt", b"xn--\xff\xfe" + 300 * b"+"), encoding=encoding))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 1 << 20])
def test_every_line_end_is_one(tmp_path, end, chunk, monkeypatch):
    monkeypatch.setattr("memguard.lists.read.CHUNK", chunk)
    lines = ["id,prompt", "1,a red fox", '2,"in\nside"', "3,last"]
    for text in (end.join(lines), end.join(lines) + end):
        assert list(read_prompts(write(tmp_path / "p.csv", text))) == ["a red fox", "in\nside", "last"]
    assert list(read_prompts(write(tmp_path / "p.txt", end.join(["a", "b", "", "c"])))) == ["a", "b", "c"]
    assert list(read_prompts(write(tmp_path / "p.jsonl", end.join(['"a"', '{"prompt": "b"}'])))) == ["a", "b"]


def test_a_carriage_return_inside_a_cell_is_no_row(tmp_path):
    assert list(read_prompts(write(tmp_path / "p.csv", 'id,prompt\n1,"a\rb"\n2,c\n'))) == ["a\rb", "c"]
    with pytest.raises(BadInput, match="not a table of cells .line 2"):
        list(read_prompts(write(tmp_path / "p.csv", "id,prompt\n1,a\rb\n2,c\n")))


@pytest.mark.parametrize("above", ["sep=;\n", "\nSEP=;\r\n\n", '"sep=;"\n', "\ufeffsep=;\n", "sep=;\n\ufeff"])
@pytest.mark.parametrize("column", ["Prompts", "PROMPT", " Captions ", "texts"])
def test_what_spreadsheets_write_above_and_into_the_header(tmp_path, above, column):
    path = write(tmp_path / "p.csv", f"{above}id;{column};a,b,c,d\n1;a, red fox;x\n\n2;b;y\n")
    assert list(read_prompts(path)) == ["a, red fox", "b"]
    path = write(tmp_path / "p.csv", f"\n \n;;\n\nid;{column}\n1;a, red fox\n2;b\n")
    assert list(read_prompts(path)) == ["a, red fox", "b"]


def test_a_tab_as_the_hint(tmp_path):
    for hint in ("sep=\t", "sep=\\t"):
        path = write(tmp_path / "p.csv", f"{hint}\nid\tprompt, of; all\n1\ta\n")
        assert list(read_prompts(path, "prompt, of; all")) == ["a"]


def test_exact_names_of_columns_come_first(tmp_path):
    path = write(tmp_path / "p.csv", "TEXT,Prompts,Prompt,prompt\na,b,c,d\n")
    assert list(read_prompts(path)) == ["d"]
    assert list(read_prompts(path, "Prompt")) == ["c"]
    assert list(read_prompts(path, "text")) == ["a"]
    assert list(read_prompts(write(tmp_path / "p.jsonl", '{"PROMPTS": "a"}'))) == ["a"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_separated_by_tabs_have_quotes_as_text(tmp_path, end):
    cells = ['"Hello" on a wall', 'a 5" nail', '"no end', 'one more "word"', '"begins', "plain, with; all", '""', '"']
    lines = ["Prompt\tCategory\tNote", *(f"{cell}\tx\ty" for cell in cells)]
    assert list(read_prompts(write(tmp_path / "p.tsv", end.join(lines) + end))) == cells
    # two that would swallow what is between them and be a table all the same
    lines = ["Prompt\tCategory", '"one\ta', 'two"\tb']
    assert list(read_prompts(write(tmp_path / "p.tsv", end.join(lines)))) == ['"one', 'two"']


def test_tables_separated_by_tabs_may_quote_all_the_same(tmp_path):
    path = write(tmp_path / "p.tsv", 'id\tprompt\n1\t"a\tb"\n2\t"two\nlines ""quoted"""\n3\n')
    assert list(read_prompts(path)) == ["a\tb", 'two\nlines "quoted"', None]


def test_quotes_of_other_tables_are_text_where_every_line_is_a_row(tmp_path):
    assert list(read_prompts(write(tmp_path / "p.csv", 'id;prompt\n1;"a" b\n2;c\n'))) == ['"a" b', "c"]
    assert list(read_prompts(write(tmp_path / "p.csv", 'prompt\n"a"b\nc, d\n'))) == ['"a"b', "c, d"]


def test_a_table_of_one_column_keeps_its_commas(tmp_path):
    path = write(tmp_path / "p.csv", 'prompt\na red fox, in snow; cold\n"quoted, too"\n')
    assert list(read_prompts(path)) == ["a red fox, in snow; cold", "quoted, too"]


def test_a_damaged_page_of_parquet_is_one_line(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.table({"prompt": [f"prompt {i}" for i in range(500)]}), path, compression="snappy")
    data = bytearray(path.read_bytes())
    data[40:400] = bytes(360)
    path.write_bytes(data)
    with pytest.raises(BadInput, match="column prompt is damaged behind row 0"):
        list(read_prompts(path))


def test_a_closed_stdin_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(BadInput, match="stdin: is closed"):
        list(read_prompts(None))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n\xff\n")))
    with pytest.raises(BadInput, match="stdin: byte 2 is not utf-8"):
        list(read_prompts(None))
