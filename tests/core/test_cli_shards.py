"""``memguard scan --shard`` end to end, on a tiny diffusers folder: rows, names, faults, what is skipped."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memguard.commands import scanner, sharding
from memguard.lists import shards

pytest.importorskip("diffusers")
from tests.command import bad, run
from tests.hosts import tiny

ROOT = Path(__file__).parents[2]
PROMPTS = [f"a red fox and {i} blue houses" for i in range(41)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.sd().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(text) + "\n" for text in [*PROMPTS[:20], None, *PROMPTS[20:]]))
    return str(path)


def rows(*paths) -> list[dict]:
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def measured(row) -> tuple:
    """What is not the time of the day."""
    settings = {name: value for name, value in row["settings"].items() if name != "list"}
    return row["index"], row["prompt"], row["seeds"], row["findings"], row["notes"], settings


@pytest.mark.parametrize(("of", "own"), [(3, ("--own-seeds",)), (5, ())])
def test_shards_hold_the_rows_of_the_whole_scan_to_the_last_bit(capsys, model, prompts, tmp_path, of, own):
    whole, folder = tmp_path / "whole.jsonl", tmp_path / "shards"
    run(capsys, "scan", prompts, "--model", model, "--out", whole, *own)
    for number in range(of, 0, -1):
        code, said, _ = run(
            capsys, "scan", prompts, "--model", model, "--out", folder, "--shard", f"{number}/{of}", *own
        )
        assert code == 0 and ("prompts scanned" in said or "no rows: 42 prompts make 3 blocks of 16" in said)
    found = rows(*sorted(folder.iterdir()))
    assert [measured(row) for row in found] == [measured(row) for row in rows(whole)]
    assert [row["index"] for row in found] == list(range(42))
    assert found[20]["findings"][0]["status"] == "the prompt is no text but NoneType None"


def test_what_is_done_costs_no_model(capsys, model, prompts, tmp_path, monkeypatch):
    words = ("scan", prompts, "--model", model, "--out", tmp_path / "s", "--shard", "2/3")
    _, said, _ = run(capsys, *words, "--json")
    assert json.loads(said)["scanned"] == 16
    (path,) = (tmp_path / "s").iterdir()
    assert path.name.startswith("shard-00002-of-00003-rows-16-32-")
    before = path.read_bytes()
    monkeypatch.setattr(sharding, "Scanner", None)
    code, said, _ = run(capsys, *words)
    assert (code, said) == (0, f"{path}: is there, nothing to do\n")
    assert json.loads(run(capsys, *words, "--json")[1])["done_before"] is True
    monkeypatch.undo()
    assert run(capsys, *words, "--force", "--format", "parquet")[0] == 0
    assert [each.suffix for each in (tmp_path / "s").iterdir()] == [".parquet"]  # the shard is there once
    assert before and not path.exists()


def test_a_shard_of_another_process_costs_no_model(capsys, model, prompts, tmp_path, monkeypatch):
    words = ("scan", prompts, "--model", model, "--out", tmp_path / "s", "--shard", "1/9")
    run(capsys, *words)
    (path,) = (tmp_path / "s").iterdir()
    path.unlink()
    monkeypatch.setattr("memguard.commands.models.load_model", None)
    with shards.attempt(tmp_path / "s", shards.Shard.of_name(path.name), 3):
        assert bad(capsys, *words) == "memguard scan: shard 1/9: another process scores it now"


def test_a_damaged_shard_is_scored_again(capsys, model, prompts, tmp_path):
    words = ("scan", prompts, "--model", model, "--out", tmp_path / "s", "--shard", "2/3")
    run(capsys, *words)
    (path,) = (tmp_path / "s").iterdir()
    before = rows(path)
    path.write_bytes(path.read_bytes()[:-300])
    code, said, err = run(capsys, *words)
    assert code == 0 and "16 prompts scanned" in said
    assert err == f"memguard scan: {path}: is damaged, and is scored again\n"
    assert [measured(row) for row in rows(path)] == [measured(row) for row in before]
    assert list((tmp_path / "s").iterdir()) == [path]


def test_a_shard_says_which_prompts_were_cut(capsys, model, tmp_path):
    source = tmp_path / "long.txt"
    source.write_text("a fox\n" + "a red fox " * 60 + "\n")
    words = ("scan", source, "--model", model, "--out")
    _, _, plain = run(capsys, *words, tmp_path / "whole.jsonl")
    _, _, err = run(capsys, *words, tmp_path / "s", "--shard", "1/1")
    assert err in plain and err.startswith("memguard scan: 1 of 2 prompts were cut: ")


def test_other_settings_are_other_files(capsys, model, prompts, tmp_path):
    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(model, moved)
    tiny.sd(seed=1).save_pretrained(other)
    capsys.readouterr()
    folder = tmp_path / "s"
    words = ("scan", prompts, "--out", folder, "--shard", "1/9", "--model")  # of no rows: the name is what counts
    for more, files in {
        (model,): 1,
        (moved,): 1,  # the same files elsewhere
        (other,): 2,
        (model, "--seed", 1): 3,
        (model, "--own-seeds"): 4,
        (model, "--dtype", "bfloat16"): 5,
        (model, "--batch-size", 4): 6,
    }.items():
        assert run(capsys, *words, *more)[0] == 0
        assert len(list(folder.iterdir())) == files, more


def broken(monkeypatch, error, at=0):
    from memguard.hosts.diffusers import scans

    inner = scans.Scan._run

    def run(self, texts):
        if any(text in PROMPTS[at:] for text, _ in texts):
            raise error
        return inner(self, texts)

    monkeypatch.setattr(scans.Scan, "_run", run)


@pytest.mark.parametrize(
    ("error", "at", "says"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered\nmore"), 18, "illegal memory access"),
        (RuntimeError("sizes do not fit"), 0, "the model failed at each of its 16 prompts: RuntimeError: sizes do not"),
    ],
)
def test_a_fault_of_the_device_is_the_shard_s_and_not_its_rows(
    capsys, model, prompts, tmp_path, monkeypatch, error, at, says
):
    words = ("scan", prompts, "--model", model, "--out", tmp_path / "s", "--shard", "1/3" if at == 0 else "2/3")
    words = (*words, "--tries", 2)
    broken(monkeypatch, error, at)
    for number in (1, 2):
        said = bad(capsys, *words)
        assert says in said and f"try {number} of 2 failed" in said
        assert [path.suffix for path in (tmp_path / "s").iterdir()] == [".tries"]
    monkeypatch.undo()
    assert "is set apart after 2 tries, the last because" in bad(capsys, *words)
    assert run(capsys, *words, "--force")[0] == 0
    assert [path.suffix for path in (tmp_path / "s").iterdir()] == [".jsonl"]


def test_a_prompt_that_fails_is_a_row_and_the_shard_goes_on(capsys, model, prompts, tmp_path, monkeypatch):
    broken(monkeypatch, RuntimeError("no such fox"), 28)
    _, said, _ = run(capsys, "scan", prompts, "--model", model, "--out", tmp_path / "s", "--shard", "2/3")
    assert "16 prompts scanned" in said and "4 without a score, for example because the pipeline failed" in said
    found = rows(*(tmp_path / "s").iterdir())
    assert [row["error"] for row in found] == [None] * 13 + ["RuntimeError: no such fox"] * 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_shard_is_scored_anew_and_nothing_is_lost_or_doubled(capsys, model, tmp_path):
    source, whole, folder = tmp_path / "list.txt", tmp_path / "whole.jsonl", tmp_path / "s"
    source.write_text("".join(f"a fox and {i} houses\n" for i in range(96)))
    words = ["scan", str(source), "--model", model, "--out", str(folder), "--shard", "2/2"]
    child = subprocess.Popen([sys.executable, "-m", "memguard.cli", *words], cwd=ROOT)
    while not any(path.stat().st_size for path in folder.glob(".*.part")):
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()
    left = sorted(path.suffix for path in folder.iterdir())
    assert left == [".part", ".tries"]
    for number in (1, 2):
        assert run(capsys, *words[:-1], f"{number}/2")[0] == 0
    run(capsys, *words[:5], whole)
    found = rows(*sorted(folder.glob("*.jsonl")))
    assert [measured(row) for row in found] == [measured(row) for row in rows(whole)]
    assert len(found) == 96 and [path.suffix for path in folder.iterdir()] == [".jsonl", ".jsonl"]


def test_bad_input_is_one_line_and_2(capsys, model, prompts, tmp_path):
    words = ("--model", model, "--out", tmp_path / "s", "--shard", "1/2")
    empty, other = tmp_path / "empty.txt", tmp_path / "other.jsonl"
    empty.touch()
    other.write_text('{"url": "x"}\n')
    assert "empty.txt: holds no prompts" in bad(capsys, "scan", empty, *words)
    assert "no column prompt, caption or text; there are: url" in bad(capsys, "scan", other, *words)
    assert "stdin has no rows that others know" in bad(capsys, "scan", *words)
    assert "needs --out, a folder" in bad(capsys, "scan", prompts, "--model", model, "--shard", "1/2")
    assert "--shard 0/2: is no I/N" in bad(capsys, "scan", prompts, *words[:-1], "0/2")
    assert "memguard merge has --fail-on-found" in bad(capsys, "scan", prompts, *words, "--fail-on", "memorized")
    assert "--tries: 0 is not between" in bad(capsys, "scan", prompts, *words, "--tries", "0")
    assert "cannot be written, it is a file; give a folder" in bad(
        capsys, "scan", prompts, "--model", model, "--shard", "1/2", "--out", prompts
    )
    assert "no such folder" in bad(capsys, "scan", prompts, *words, "--model", tmp_path / "none")
    assert not [path for path in (tmp_path / "s").iterdir() if shards.NAME.fullmatch(path.name)]
    assert list((tmp_path / "s").iterdir()) == []  # none of this was a try


@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_model_is_named_by_what_its_files_hold_at_both_ends_and_in_the_middle(tmp_path, place):
    weights = bytearray(4 * scanner.PIECE)
    file = tmp_path / "model.safetensors"
    file.write_bytes(weights)
    before = scanner.named(str(file))
    weights[int(place * (len(weights) - 1))] = 1
    file.write_bytes(weights)
    assert scanner.named(str(file)) != before
