"""Lists as numbered rows: ranges, counts, names by contents, captions of a WebDataset."""

import io
import json
import tarfile

import pytest

from memguard.lists import BadInput, read_prompts
from memguard.lists.listing import expanded, listed


def tar(path, members):
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(params=["txt", "jsonl", "csv", "parquet", "tar"])
def rows(request, tmp_path):
    """A file of 25 prompts in each of the formats."""
    texts = [f"prompt number {i}" for i in range(25)]
    path = tmp_path / f"list.{request.param}"
    if request.param == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"prompt": texts}), path, row_group_size=7)
    elif request.param == "tar":
        tar(path, [(f"{i:03}.txt", text.encode()) for i, text in enumerate(texts)])
    elif request.param == "jsonl":
        path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    else:
        path.write_text("".join(f"{text}\n" for text in [*(["prompt"] if request.param == "csv" else []), *texts]))
    return path, texts


@pytest.mark.parametrize(("start", "stop"), [(0, 25), (0, 7), (7, 14), (6, 8), (13, 22), (24, 25), (25, 25), (0, 0)])
def test_a_range_holds_its_rows(rows, start, stop):
    path, texts = rows
    assert listed(path).count == 25
    assert list(listed(path).rows(start, stop)) == texts[start:stop]
    assert list(read_prompts(path, start=start, stop=stop)) == texts[start:stop]


def test_a_parquet_file_is_read_only_where_the_range_lies(tmp_path, monkeypatch):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "list.parquet"
    parquet.write_table(pyarrow.table({"prompt": [str(i) for i in range(40)]}), path, row_group_size=10)
    asked = []
    whole = parquet.ParquetFile.iter_batches

    def watched(self, *args, **settings):
        asked.append(settings["row_groups"])
        return whole(self, *args, **settings)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", watched)
    assert list(read_prompts(path, start=15, stop=30)) == [str(i) for i in range(15, 30)]
    assert asked == [[1, 2]]


def test_a_list_has_the_name_of_its_contents(rows, tmp_path):
    path, texts = rows
    moved = tmp_path / f"moved{path.suffix}"
    moved.write_bytes(path.read_bytes())
    assert listed(moved).digest == listed(path).digest
    other = tmp_path / "other.txt"
    other.write_text("\n".join([*texts[:24], "another"]))
    assert listed(other).digest != listed(path).digest


def test_numbered_files_are_one_list(tmp_path):
    for number, texts in ((8, ["a", "b"]), (9, []), (10, ["c", "d", "e"])):
        (tmp_path / f"part-{number:02}.txt").write_text("\n".join(texts))
    listing = listed(tmp_path / "part-{08..10}.txt")
    assert [count for _, count in listing.parts] == [2, 0, 3]
    assert list(listing.rows(0, 5)) == ["a", "b", "c", "d", "e"]
    assert list(listing.rows(1, 3)) == ["b", "c"]
    (tmp_path / "part-08.txt").unlink()
    assert list(listing.rows(2, 5)) == ["c", "d", "e"]  # files outside the range are not opened
    with pytest.raises(BadInput, match=r"part-11.txt: no such file"):
        listed(tmp_path / "part-{10..11}.txt")
    with pytest.raises(BadInput, match="is no range of files"):
        expanded(tmp_path / "part-{3..1}.txt")


def test_a_sample_has_the_caption_of_its_text_or_its_json(tmp_path):
    path = tar(
        tmp_path / "shard.tar",
        [
            ("one.jpg", b"\xff\xd8"),
            ("one.txt", b"a red fox\n"),
            ("one.json", b'{"caption": "a fox", "lang": "en"}'),
            ("a.b/two.seg.png", b""),  # a dot of a folder ends no name
            ("a.b/two.json", b'{"caption": "a blue house"}'),
            ("three.jpg", b""),
            ("four.txt", "café".encode("cp1252")),
            ("five.json", b'"a text alone"'),
            (".hidden", b"x"),
        ],
    )
    assert list(read_prompts(path)) == ["a red fox", "a blue house", None, b"caf\xe9", "a text alone"]
    assert list(read_prompts(path, column="caption"))[0] == "a fox"
    with pytest.raises(BadInput, match="sample 2: no column lang; there are: caption"):
        list(read_prompts(path, column="lang"))


def test_a_damaged_tar_file_says_where(tmp_path):
    path = tar(tmp_path / "shard.tar", [(f"{i}.txt", b"x" * 2000) for i in range(4)])
    path.write_bytes(path.read_bytes()[: 512 * 7])
    with pytest.raises(BadInput, match="cannot be read behind sample 2"):
        list(read_prompts(path))
    path.write_text("no tar file at all")
    with pytest.raises(BadInput, match="damaged, or no tar file"):
        list(read_prompts(path))


def test_a_column_that_is_missing_is_named_from_the_footer(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "list.parquet"
    parquet.write_table(pyarrow.table({"url": ["x"]}), path)
    with pytest.raises(BadInput, match="no column prompt, caption or text; there are: url"):
        listed(path)
