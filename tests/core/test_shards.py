"""Shards: who scores which rows, what is done, and how often a shard may fail."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from memguard.lists import BadInput, shards
from memguard.lists.shards import SILENT, Shard, ShardFailed, attempt, bounds, parse
from memguard.lists.whole import Whole

ROOT = Path(__file__).parents[2]
SHARD = Shard(2, 3, 16, 32, "0123456789ab")


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 100, 1000])
@pytest.mark.parametrize("of", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("grain", [1, 16])
def test_every_row_is_in_one_shard(count, of, grain):
    ranges = [bounds(count, number, of, grain) for number in range(1, of + 1)]
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(count))
    assert all(start % grain == 0 for start, stop in ranges if start < stop)
    sizes = [stop - start for start, stop in ranges]
    assert max(sizes) - min(sizes) <= 2 * grain


def test_i_of_n_counts_from_one():
    assert parse("3/64") == (3, 64)
    for wrong in ("0/4", "5/4", "4", "a/b", "-1/4", "1/2/3", ""):
        with pytest.raises(BadInput, match="is no I/N from 1/N to N/N"):
            parse(wrong)


def test_a_name_says_the_shard_its_rows_and_the_settings():
    name = SHARD.name("jsonl")
    assert name == "shard-00002-of-00003-rows-16-32-0123456789ab.jsonl"
    assert Shard.of_name(name) == SHARD
    for other in ("prompts.jsonl", f".{name}.host-1.part", "shard-00002-of-00003-0123456789ab.tries", f"{name}.bak"):
        assert Shard.of_name(other) is None


def test_what_is_done_is_read_from_the_names(tmp_path):
    assert shards.there(tmp_path, 2, 3, SHARD.settings) is None
    (tmp_path / SHARD.name("parquet")).touch()
    assert shards.there(tmp_path, 2, 3, SHARD.settings) == tmp_path / SHARD.name("parquet")
    assert shards.there(tmp_path, 1, 3, SHARD.settings) is None
    assert shards.there(tmp_path, 2, 4, SHARD.settings) is None
    assert shards.there(tmp_path, 2, 3, "ffffffffffff") is None


def fails(folder, error, most=3):
    with pytest.raises(type(error)) as raised, attempt(folder, SHARD, most):
        raise error
    return str(raised.value)


def test_a_shard_that_fails_three_times_is_set_apart_with_its_last_reason(tmp_path):
    assert fails(tmp_path, ShardFailed("CUDA error")) == "shard 2/3: try 1 of 3 failed, CUDA error"
    assert fails(tmp_path, ValueError("something\nelse")) == "something\nelse"
    assert "try 3 of 3 failed" in fails(tmp_path, ShardFailed("no memory"))
    assert shards.set_apart(tmp_path, 2, 3, SHARD.settings) == ("CUDA error", "ValueError: something", "no memory")
    with pytest.raises(BadInput, match="shard 2/3 is set apart after 3 tries, the last because no memory; --force"):
        attempt(tmp_path, SHARD, 3).__enter__()
    with pytest.raises(ShardFailed), attempt(tmp_path, SHARD, 4):
        raise ShardFailed("again")
    shards.forget(tmp_path, 2, 3, SHARD.settings)
    with attempt(tmp_path, SHARD, 3):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BadInput("disk full")])
def test_what_is_not_the_shard_s_fault_does_not_count(tmp_path, error):
    for _ in range(5):
        fails(tmp_path, error)
    assert list(tmp_path.iterdir()) == []
    fails(tmp_path, ShardFailed("really"))
    fails(tmp_path, error)
    assert shards.set_apart(tmp_path, 2, 3, SHARD.settings) == ("really",)


KILLED = """
import sys, time
from pathlib import Path
from memguard.lists.shards import Shard, attempt
from memguard.lists.whole import Whole
folder = Path(sys.argv[1])
shard = Shard(2, 3, 16, 32, "0123456789ab")
with attempt(folder, shard, 3), Whole(folder / shard.name("jsonl")) as file:
    file.add({"index": 16})
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_killed_try_counts_and_leaves_nothing_but_its_count(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "writing\n"
    with pytest.raises(BadInput, match="another process scores it now"):
        attempt(tmp_path, SHARD, 3).__enter__()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert shards.there(tmp_path, 2, 3, SHARD.settings) is None
    assert shards.set_apart(tmp_path, 2, 3, SHARD.settings) == (SILENT,)
    assert len(list(tmp_path.iterdir())) == 2  # the unfinished file and the count
    other = tmp_path / f".{Shard(2, 3, 16, 32, 'f' * 12).name('jsonl')}.host-1.part"
    other.touch()  # of another scan in the same folder
    with attempt(tmp_path, SHARD, 3), Whole(tmp_path / SHARD.name("jsonl")) as file:
        file.add({"index": 16})
    assert sorted(tmp_path.iterdir()) == [other, tmp_path / SHARD.name("jsonl")]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_file_is_there_whole_or_not_at_all(tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"table.{suffix}"
    columns = {"index": "int64", "prompt": "string"}
    with pytest.raises(RuntimeError), Whole(path, columns) as file:
        for index in range(1500):
            file.add({"index": index, "prompt": 'a, "b"\r', "more": 1})
        assert not path.exists()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    with Whole(path, columns) as file:
        for index in range(1500):
            file.add({"index": index, "prompt": 'a, "b"\r', "more": 1})
        assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    if suffix == "jsonl":
        assert json.loads(path.read_text().splitlines()[1499]) == {"index": 1499, "prompt": 'a, "b"\r'}
    elif suffix == "csv":
        import csv

        with path.open(newline="") as lines:
            assert list(csv.DictReader(lines))[1499] == {"index": "1499", "prompt": 'a, "b"\r'}
    else:
        import pyarrow.parquet

        assert pyarrow.parquet.read_table(path).to_pylist()[1499] == {"index": 1499, "prompt": 'a, "b"\r'}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"table.{suffix}"
    file = Whole(path, {"index": "int64"})
    file.aside.symlink_to("/dev/full")
    with pytest.raises(BadInput, match=r"cannot be written \(No space left on device\)"), file:
        for index in range(100_000):
            file.add({"index": index})
    assert list(tmp_path.iterdir()) == []


def test_one_process_has_a_shard_and_gets_ready_before_it_is_a_try(tmp_path):
    asked = []
    with attempt(tmp_path, SHARD, 3, lambda: asked.append(list(tmp_path.iterdir())[0].stat().st_size)):
        assert asked == [0]
        with (
            pytest.raises(BadInput, match="^shard 2/3: another process scores it now$"),
            attempt(tmp_path, SHARD, 3, lambda: asked.append(1)),
        ):
            pass
        assert asked == [0], "nothing is made ready for a shard of another process"

    def fails():
        raise MemoryError

    with pytest.raises(MemoryError), attempt(tmp_path, SHARD, 3, fails):
        pass
    assert list(tmp_path.iterdir()) == []
