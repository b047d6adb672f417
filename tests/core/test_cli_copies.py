"""``memguard copies`` end to end: table, JSON, files, exit codes, and one line for everything that is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from memguard import testbed
from tests import command

PICTURES = [each.picture for each in testbed.originals()[:4]]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMGUARD_HOME", str(tmp_path / "home"))


@pytest.fixture
def references(tmp_path):
    folder = tmp_path / "references"
    folder.mkdir()
    for number, picture in enumerate(PICTURES[:3]):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def pictures(tmp_path):
    """A mirrored crop of a reference, a picture that is none, and a broken one."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    ImageOps.mirror(Image.fromarray(PICTURES[1])).crop((5, 10, 115, 118)).save(folder / "a.jpg", quality=60)
    Image.fromarray(PICTURES[3]).save(folder / "b.png")
    (folder / "c.png").write_bytes(b"no picture")
    return folder


def run(capsys, *words) -> tuple[int, str, str]:
    return command.run(capsys, "copies", *words)


def bad(capsys, *words) -> str:
    return command.bad(capsys, "copies", *words)


def test_a_folder_is_looked_up(capsys, pictures, references):
    code, out, err = run(capsys, pictures, "--references", references)
    assert code == 2  # of the broken one
    lines = out.splitlines()
    assert lines[0].startswith("copy") and lines[0].endswith(f"{pictures / 'a.jpg'}  1.png")
    assert lines[1].startswith("-  ") and str(pictures / "b.png") in lines[1]
    assert lines[2].split() == ["no", "result", str(pictures / "c.png")]
    assert lines[3] == "1 of 2 pictures are copies of one of 3 references (similarity from 0.85)"
    broken = f"memguard copies: {pictures / 'c.png'}: cannot be read (no picture, or damaged)"
    assert err.splitlines() == [broken, "memguard copies: 1 without a result"]


def test_exit_code_1_at_fail_on(capsys, pictures, references):
    assert run(capsys, pictures, "--references", references, "--fail-on", "0.8")[0] == 1
    assert run(capsys, pictures / "b.png", "--references", references, "--fail-on", "0.8")[0] == 0
    row = json.loads(run(capsys, pictures / "a.jpg", "--references", references, "--json")[1])
    exact = row["similarity"]
    assert run(capsys, pictures / "a.jpg", "--references", references, "--fail-on", exact)[0] == 1
    assert run(capsys, pictures / "a.jpg", "--references", references, "--fail-on", exact + 1e-4)[0] == 0


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_rows_are_written_and_replaced(capsys, pictures, references, tmp_path, ending):
    out = tmp_path / f"out.{ending}"
    for _ in range(2):
        code, said, _ = run(capsys, pictures, "--references", references, "--out", out, "--top", 2)
        assert code == 2 and said.startswith(f"{out}: 1 of 2 pictures are copies")
    text = out.read_text(encoding="utf-8").splitlines()
    if ending == "csv":
        assert text[0] == "picture,nearest,similarity,copy,error" and len(text) == 4
        assert text[1].startswith(f"{pictures / 'a.jpg'},1.png,0.") and ",True," in text[1]
    else:
        rows = [json.loads(line) for line in text]
        assert [row["schema"] for row in rows] == ["memguard.copies/1"] * 3
        assert (rows[0]["nearest"], rows[0]["copy"], rows[1]["copy"], rows[2]["copy"]) == ("1.png", True, False, None)
        assert len(rows[0]["further"]) == 1 and rows[2]["error"].endswith("cannot be read (no picture, or damaged)")
    assert not list(tmp_path.glob("*.part"))


def test_json_rows_and_the_summary(capsys, pictures, references, tmp_path):
    _, out, _ = run(capsys, pictures, "--references", references, "--json")
    assert [json.loads(line)["picture"] for line in out.splitlines()] == [
        str(pictures / n) for n in ("a.jpg", "b.png", "c.png")
    ]
    _, out, _ = run(capsys, pictures, "--references", references, "--json", "--out", tmp_path / "o.jsonl")
    expected = {"pictures": 3, "copies": 1, "without_result": 1, "references": 3, "threshold": 0.85}
    assert json.loads(out) == {"out": str(tmp_path / "o.jsonl"), **expected}


def test_a_picture_is_no_copy_of_itself(capsys, references):
    Image.fromarray(PICTURES[0]).resize((90, 90)).save(references / "again.png")
    _, out, _ = run(capsys, references, "--references", references, "--json")
    rows = {Path(row["picture"]).name: row for row in map(json.loads, out.splitlines())}
    assert (rows["0.png"]["nearest"], rows["again.png"]["nearest"]) == ("again.png", "0.png")
    assert [rows[name]["copy"] for name in ("0.png", "again.png", "1.png", "2.png")] == [True, True, False, False]


def test_a_folder_with_only_the_picture_itself(capsys, references):
    for name in ("1.png", "2.png"):
        (references / name).unlink()
    code, out, err = run(capsys, references, "--references", references)
    assert code == 2 and err.splitlines()[-1] == "memguard copies: no picture could be compared"
    assert f"{references / '0.png'}: the folder holds no other picture" in err and "no result" in out


def test_broken_references_are_lines_and_the_others_are_searched(capsys, pictures, references):
    for number in range(7):
        (references / f"x{number}.png").write_bytes(b"")
    code, out, err = run(capsys, pictures / "a.jpg", "--references", references)
    assert code == 0 and "1 of 1 pictures are copies of one of 3 references" in out
    lines = err.splitlines()
    assert len(lines) == 6 and lines[5] == "memguard copies: 2 more references cannot be read"
    assert lines[0] == f"memguard copies: {references / 'x0.png'}: cannot be read (no picture, or damaged)"


def test_an_embedding_of_the_user_s(capsys, pictures, references, tmp_path):
    model = tmp_path / "model.pt"
    torch.jit.script(torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten())).save(str(model))
    words = ("--references", references, "--embedding", model, "--embedding-size", 64, "--json")
    _, out, _ = run(capsys, references / "0.png", *words)
    row = json.loads(out)
    assert row["nearest"] in ("1.png", "2.png") and -1 <= row["similarity"] <= 1
    assert len(list((tmp_path / "home" / "copies").iterdir())) == 1
    (tmp_path / "weights.pt").write_bytes(b"\x80\x02.")
    said = bad(capsys, pictures, "--references", references, "--embedding", tmp_path / "weights.pt")
    assert said.endswith("is not TorchScript, and other pickles are never loaded; give a file of torch.jit.save")


def test_what_is_wrong_is_one_line(capsys, pictures, references, tmp_path):
    both = (pictures, "--references", references)
    nowhere = tmp_path / "nowhere"
    assert bad(capsys, pictures, "--references", nowhere).endswith(f"{nowhere}: no such folder of pictures")
    (tmp_path / "empty").mkdir()
    assert bad(capsys, tmp_path / "empty", "--references", references).endswith("holds no pictures")
    assert bad(capsys, pictures, "--references", tmp_path / "empty").endswith("holds no picture that can be read")
    assert "--fail-on is '85'; give a similarity between -1 and 1" in bad(capsys, *both, "--fail-on", 85)
    assert "--threshold is 'nan'; give a similarity between -1 and 1" in bad(capsys, *both, "--threshold", "nan")
    assert "--top: 0 is not between" in bad(capsys, *both, "--top", 0)
    assert "--embedding-size is '1'; give a whole number" in bad(capsys, *both, "--embedding-size", 1)
    assert bad(capsys, *both, "--out", "x.txt").endswith("writes .jsonl and .csv")
    theirs = tmp_path / "theirs.csv"
    theirs.write_text("my,own\n")
    assert "was not written by memguard" in bad(capsys, *both, "--out", theirs)
    assert theirs.read_text() == "my,own\n"


def test_a_picture_that_is_not_there_is_a_line(capsys, pictures, references):
    code, out, err = run(capsys, pictures / "a.jpg", pictures / "gone.png", "--references", references)
    assert code == 2 and f"memguard copies: {pictures / 'gone.png'}: no such picture" in err.splitlines()
    assert out.splitlines()[0].startswith("copy") and "1 of 1 pictures are copies" in out
    assert run(capsys, pictures / "a.jpg", "--references", references)[0] == 0


def test_help_needs_no_torch():
    code = "import sys; from memguard.cli import main\ntry: main(['copies', '--help'])\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "assert 'torch' not in sys.modules"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "--references FOLDER" in done.stdout, done.stderr
