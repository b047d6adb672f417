"""``memguard scan --engine ray`` end to end, where Ray is installed: two actors, a shard set apart, a new start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memguard.cli import main
from memguard.lists.shards import Shard, attempt

pytest.importorskip("diffusers")
pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
pytest.importorskip("pandas", reason="Ray Data is not installed (extra ray)")
from tests.command import bad
from tests.hosts import tiny

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def scan(*words) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "memguard.cli", "scan", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def rows(*paths) -> list[dict]:
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_cluster_scores_what_one_process_does_and_goes_on_where_it_stopped(tmp_path, capsys):
    model, source, whole, folder = (tmp_path / name for name in ("model", "list.txt", "whole.jsonl", "s"))
    tiny.sd().save_pretrained(model)
    source.write_text("".join(f"a fox and {i} houses\n" for i in range(70)))
    words = [source, "--model", model, "--out", folder, "--engine", "ray", "--shards", 3, "--workers", 2, "--json"]
    first = scan(*words)
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["scanned"] == 70
    names = sorted(path.name for path in folder.iterdir())
    assert [name[:20] for name in names] == [f"shard-{i:05}-of-00003" for i in (1, 2, 3)]
    assert scan(source, "--model", model, "--out", whole).returncode == 0
    found, plain = rows(*sorted(folder.iterdir())), rows(whole)
    assert [(row["index"], row["prompt"], row["findings"]) for row in found] == [
        (row["index"], row["prompt"], row["findings"]) for row in plain
    ]
    # the second shard is lost and was tried three times before: it is named, and the others stay
    shard = Shard.of_name(names[1])
    (folder / names[1]).unlink()
    for _ in range(3):
        with pytest.raises(RuntimeError), attempt(folder, shard, 3):
            raise RuntimeError("no memory")
    second = scan(*words)
    assert second.returncode == 2
    assert "1 of 3 shards are not done, for example 2: shard 2/3 is set apart after 3 tries" in second.stderr
    assert json.loads(second.stdout)["done_before"] == 2
    third = scan(*words, "--tries", 4)
    assert third.returncode == 0, third.stderr
    assert json.loads(third.stdout)["scanned"] == shard.stop - shard.start
    assert sorted(path.name for path in folder.iterdir()) == names


def test_one_shard_or_all_of_them(tmp_path, capsys):
    source = tmp_path / "list.txt"
    source.write_text("a fox\n")
    code = main(
        ["scan", str(source), "--model", "testbed", "--out", str(tmp_path), "--engine", "ray", "--shard", "1/2"]
    )
    assert code == 2
    assert "--engine ray scores all parts by itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("init", Exception("traces\nThe current node timed out during startup. It was overloaded.")),
        ("cluster_resources", ConnectionError("no cluster answers")),
    ],
)
def test_a_cluster_that_fails_is_one_line(tmp_path, capsys, monkeypatch, call, error):
    import ray

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(ray, "is_initialized", lambda: call != "init")
    monkeypatch.setattr(ray, call, fails)
    source = tmp_path / "list.txt"
    source.write_text("a fox\n")
    said = bad(capsys, "scan", source, "--model", "testbed", "--out", tmp_path / "s", "--engine", "ray")
    last = str(error).splitlines()[-1].rstrip(".")
    assert said == f"memguard scan: ray: {last}; start again to go on"
