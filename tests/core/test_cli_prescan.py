"""``memguard scan --prescan`` end to end, on a tiny diffusers folder: rows, shards, going on, merging, refusals."""

import csv
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
from memguard.calibration import ordinary_prompts
from memguard.cli import main
from tests.command import bad, run
from tests.hosts import tiny

ROOT = Path(__file__).parents[2]
PROMPTS = [*(f"{text} {i}" for i, text in enumerate(ordinary_prompts()[100:140])), None]
WAY = ("--batch-size", 4, "--own-seeds", "--num-inference-steps", 6)  # of 16 pixels: blocks of 16 prompts at 8 pixels


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.sd().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def profiles(model, tmp_path_factory):
    """Files of profiles by their height and first seed; made once, by the command itself."""
    folder = tmp_path_factory.mktemp("profiles")
    texts = folder / "texts.txt"
    texts.write_text("\n".join(ordinary_prompts()[:50]))
    made = {}
    for side, seed in ((8, 0), (8, 1000), (16, 0)):
        out = folder / f"{side}-{seed}"
        words = ["calibrate", texts, "--model", model, "--num-inference-steps", 6, "--out", out, "--seed", seed]
        words += ["--height", side, "--width", side]
        assert main([str(word) for word in words]) == 0
        (made[side, seed],) = map(str, out.iterdir())
    return made


@pytest.fixture
def small(profiles):
    return profiles[8, 0]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(text) + "\n" for text in PROMPTS))
    return str(path)


@pytest.fixture
def scan(capsys, model, prompts, small):
    """Scan with a pre-scan; returns what ``run`` does."""

    def done(*words, promote=0.3):
        return run(capsys, "scan", prompts, "--model", model, "--prescan", small, "--promote", promote, *WAY, *words)

    return done


def rows(*paths) -> list[dict]:
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def measured(row) -> tuple:
    """What is not the time of the day."""
    return row["index"], row["prompt"], row["seeds"], row["findings"], row["notes"], row["settings"]


def test_the_rows_say_who_was_promoted_and_why_not(capsys, model, prompts, scan, profiles, tmp_path):
    out, plain = tmp_path / "out.jsonl", tmp_path / "plain.jsonl"
    full = ("--profile", profiles[16, 0])
    code, said, err = scan("--out", out, *full)
    found = rows(out)
    promoted = [row["findings"][0]["prescan"]["promoted"] for row in found]
    count = sum(promoted)
    assert 5 < count < 25 and promoted[-1]
    assert code == 0 and said.startswith(f"{out}: 41 prompts scanned, {count} promoted: ")
    assert "unknown" not in said.replace("1 unknown", "")  # the one that is no text
    assert err == "memguard scan: 1 without a score, for example because the prompt is no text but NoneType None\n"
    run(capsys, "scan", prompts, "--model", model, *WAY, "--out", plain, *full)
    for row, other in zip(found, rows(plain), strict=True):
        finding, theirs = row["findings"][0], other["findings"][0]
        assert row["seeds"] == other["seeds"] == [row["index"]]
        if finding["prescan"]["promoted"]:
            assert finding["scores"] == pytest.approx(theirs["scores"], rel=1e-4)
            assert (row["verdict"], finding["below"]) == (other["verdict"], theirs["below"])
        else:
            look = finding["prescan"]
            assert look["p_value"] > 0.3 and look["rms"] > 0
            assert row["verdict"] == "unknown" and finding["scores"] == []
            assert (
                finding["status"] == f"not promoted: above {look['below']} of {look['count']} ordinary prompts at 8x8"
            )
            assert "not promoted" in row["message"]
        assert "prescan" not in theirs
    assert (found[0]["settings"]["promote"], len(found[0]["settings"]["prescan"])) == (0.3, 8)
    assert "promote" not in rows(plain)[0]["settings"]
    summary = json.loads(scan("--out", out, "--force", "--json")[1])
    assert (summary["scanned"], summary["promoted"], summary["without_score"]) == (41, count, 1)
    assert sum(summary["verdicts"].values()) == count
    _, table, err = scan()
    assert f"memguard scan: 41 prompts scanned, {count} promoted\n" in err
    lines = table.splitlines()
    assert [line.startswith("not promoted     8x8  ") for line in lines] == [not each for each in promoted]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_hold_the_first_look_and_are_gone_on_with(scan, tmp_path, suffix):
    out, whole = tmp_path / f"out.{suffix}", tmp_path / "whole.jsonl"
    scan("--out", whole)
    scan("--out", out)
    if suffix == "csv":
        with out.open(newline="") as file:
            found = list(csv.DictReader(file))
        out.write_text("".join(out.read_text().splitlines(keepends=True)[:21]))
        assert scan("--out", out, "--resume")[0] == 0
        with out.open(newline="") as file:
            again = list(csv.DictReader(file))
        assert [row["findings"] for row in again] == [row["findings"] for row in found]
    else:
        pq = pytest.importorskip("pyarrow.parquet")
        found = pq.read_table(out).to_pylist()
    assert [json.loads(row["findings"]) for row in found] == [row["findings"] for row in rows(whole)]
    assert [row["status"] for row in found] == [row["findings"][0]["status"] for row in rows(whole)]


@pytest.mark.parametrize("own", [(), ("--own-seeds",)])
def test_shards_hold_the_rows_of_the_whole_scan_to_the_last_bit(capsys, model, prompts, small, tmp_path, own):
    words = ("scan", prompts, "--model", model, "--prescan", small, "--promote", 0.3, "--batch-size", 4, *own)
    words = (*words, "--num-inference-steps", 6, "--out")
    whole, folder = tmp_path / "whole.jsonl", tmp_path / "shards"
    run(capsys, *words, whole)
    for number in (2, 3, 1):
        code, said, _ = run(capsys, *words, folder, "--shard", f"{number}/3", "--json")
        said = json.loads(said)
        assert code == 0 and 0 < said["promoted"] < said["scanned"] == (16, 16, 9)[number - 1]
        assert sum(said["verdicts"].values()) == said["promoted"]
    found = rows(*sorted(folder.iterdir()))
    without = [{**row, "settings": {k: v for k, v in row["settings"].items() if k != "list"}} for row in found]
    assert [measured(row) for row in without] == [measured(row) for row in rows(whole)]
    assert run(capsys, *words, folder, "--shard", "1/3", "--promote", 0.2)[0] == 0  # another scan, another file
    assert len(list(folder.iterdir())) == 4
    _, said, _ = run(capsys, *words, folder, "--shard", "1/9")
    assert said.endswith(": no rows: 41 prompts make 3 blocks of 16 that stay together, so fewer shards are enough\n")


@pytest.mark.parametrize("done", [15, 16, 37])
def test_a_scan_that_was_broken_off_goes_on_to_the_same_bits(scan, tmp_path, done):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    scan("--out", whole)
    lines = whole.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:done]) + lines[done][:50])
    code, said, _ = scan("--out", out, "--resume", "--json")
    promoted = [row["findings"][0]["prescan"]["promoted"] for row in rows(whole)]
    assert code == 0 and json.loads(said)["skipped"] == done
    assert (json.loads(said)["scanned"], json.loads(said)["promoted"]) == (41 - done, sum(promoted[done:]))
    assert [measured(row) for row in rows(out)] == [measured(row) for row in rows(whole)]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_scan_goes_on_and_nothing_is_lost_or_doubled(capsys, model, small, tmp_path):
    source, whole, out = tmp_path / "list.txt", tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f"a fox and {i} houses\n" for i in range(64)))
    words = ["scan", str(source), "--model", model, "--prescan", small, "--promote", "0.3", *map(str, WAY), "--out"]
    child = subprocess.Popen([sys.executable, "-m", "memguard.cli", *words, str(out)], cwd=ROOT)
    while not (out.exists() and out.read_bytes().count(b"\n") > 1):
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert out.read_bytes().count(b"\n") < 64
    assert run(capsys, *words, out, "--resume")[0] == 0
    run(capsys, *words, whole)
    assert [measured(row) for row in rows(out)] == [measured(row) for row in rows(whole)]


def test_rows_of_other_pre_scans_are_not_mixed(capsys, model, prompts, scan, small, profiles, tmp_path):
    out, plain = tmp_path / "out.jsonl", tmp_path / "plain.jsonl"
    scan("--out", out)
    run(capsys, "scan", prompts, "--model", model, *WAY, "--out", plain)
    for path in (out, plain):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    before = out.read_bytes()
    words = ("scan", prompts, "--model", model, *WAY, "--resume", "--out")
    first = ("--prescan", small)
    digest = json.loads(before.splitlines()[0])["settings"]["prescan"]
    assert f"its rows were made with prescan {digest}, this run has none" in bad(capsys, *words, out)
    assert "its rows were made with promote 0.3, this run has 0.1" in bad(capsys, *words, out, *first)
    assert f"its rows were made with prescan {digest}, this run has " in bad(
        capsys, *words, out, "--prescan", profiles[8, 1000]
    )
    assert "its rows do not say their prescan, this run has" in bad(capsys, *words, plain, *first)
    assert out.read_bytes() == before


@pytest.mark.parametrize(("factor", "code"), [(0.001, 1), (1000, 0)])
def test_fail_on_goes_by_those_that_were_promoted(scan, profiles, tmp_path, factor, code):
    path = tmp_path / "profile.json"
    values = json.loads(Path(profiles[16, 0]).read_text())
    scores = values["distributions"]["text_noise_norm"]["scores"]
    values["distributions"]["text_noise_norm"]["scores"] = [factor * score for score in scores]
    path.write_text(json.dumps(values))
    assert scan("--profile", path, "--fail-on", "suspicious")[0] == code
    assert scan("--profile", path)[0] == 0


def test_it_can_be_merged(capsys, scan, profiles, tmp_path):
    out, table = tmp_path / "out.jsonl", tmp_path / "table.jsonl"
    scan("--out", out, "--profile", profiles[16, 0])
    count = sum(row["findings"][0]["prescan"]["promoted"] for row in rows(out)) - 1  # one is no text
    code, said, _ = run(capsys, "merge", out, "--out", table)
    assert code == 0
    assert "41 rows, 1 without a score" in said and "of 40 prompts at a false-discovery rate" in said
    assert f"a pre-scan promoted {count + 1} of 41 prompts; the others count as tests with p = 1" in said
    for row, scanned in zip(rows(table), rows(out), strict=True):
        finding = scanned["findings"][0]
        assert row["p_value"] == (finding["p_value"] if finding["prescan"]["promoted"] else 1.0)


def test_a_missing_profile_names_the_command_that_makes_it(capsys, model, prompts, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("mine\n")
    path = tmp_path / "pre" / "none.json"
    words = ("scan", prompts, "--model", model, "--prescan", path, "--num-inference-steps", 6, "--out", out, "--force")
    said = bad(capsys, *words)
    assert f"{path}: no such file; this makes one and says its name: memguard calibrate" in said
    command = shlex.split(said.split("its name: memguard ")[1])
    assert command == [
        *("calibrate", "--model", model, "--height", "8", "--width", "8", "--num-inference-steps", "6"),
        *("--out", str(path.parent)),
    ]
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(ordinary_prompts()[:50]))
    assert run(capsys, *command, texts)[0] == 0
    (made,) = path.parent.iterdir()
    assert out.read_text() == "mine\n"
    out.unlink()
    assert run(capsys, *[made if word == path else word for word in words])[0] == 0
    said = bad(capsys, *words, "--height", 48, "--width", 32, "--negative-prompt", "very bad", "--steps", 2)
    assert "--height 24 --width 16 --steps 2 --num-inference-steps 6 --negative-prompt 'very bad'" in said
    words = ("scan", prompts, "--model", "testbed", "--prescan", path)
    assert "--model testbed --height 64 --width 64 --out" in bad(capsys, *words)
    assert "--height PX --width PX" in bad(capsys, *words, "--model", tmp_path / "x.safetensors")


def test_bad_input_is_one_line_and_no_file_is_touched(capsys, model, prompts, small, profiles, tmp_path):
    out = tmp_path / "out.jsonl"
    words = ("scan", prompts, "--model", model, *WAY)
    run(capsys, *words, "--out", out)
    before = out.read_bytes()
    words = (*words, "--out", out, "--force")
    assert "--promote needs --prescan PROFILE" in bad(capsys, *words, "--promote", 0.1)
    words = (*words, "--prescan")
    for share in (0, 1, 1.5, "nan"):
        assert f"--promote: {float(share)} is not between 0 and 1" in bad(capsys, *words, small, "--promote", share)
    same = profiles[16, 0]
    assert "of 16 x 16 pixels, the scan of 16 x 16; a first look is a smaller picture of the same" in bad(
        capsys, *words, same
    )
    said = bad(capsys, *words, small, "--width", 64)
    assert "of 8 x 8 pixels, the scan of 64 x 16; a first look" in said
    assert f": memguard calibrate --model {model} --height 8 --width 32" in said
    assert "promote is 0.01, but none can rank higher than 1 of 51" in bad(capsys, *words, small, "--promote", 0.01)
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    said = bad(capsys, *words, wrong)
    assert "wrong.json: not a memguard profile" in said and "run memguard calibrate again" not in said
    assert f"this makes one and says its name: memguard calibrate --model {model} --height 8 --width 8" in said
    values = json.loads(Path(small).read_text())
    wrong.write_text(json.dumps(values | {"distributions": {}}))
    assert "no scores of ordinary prompts by text_noise_norm to rank among" in bad(capsys, *words, wrong)
    wrong.write_text(json.dumps(values | {"conditions": values["conditions"] | {"model": "beef"}}))
    assert "wrong.json: the profile is for model beef" in bad(capsys, *words, wrong)
    assert "the profile scores 1 step(s), this run 2" in bad(capsys, *words, small, "--steps", 2)
    assert "compares with the negative prompt, this run with the empty" in bad(
        capsys, *words, small, "--reference", "empty"
    )
    assert "by attention_entropy to rank among" in bad(capsys, *words, small, "--detector", "attention_entropy")
    assert "the profile is for sigma" in bad(capsys, *words, small, "--num-inference-steps", 50)
    assert out.read_bytes() == before
    folder = tmp_path / "shards"
    shard = ("scan", prompts, "--model", model, *WAY, "--out", folder, "--shard", "1/2", "--prescan")
    assert "a first look is a smaller picture" in bad(capsys, *shard, same)
    assert list(folder.iterdir()) == []
    link = tmp_path / "link.jsonl"
    link.symlink_to(small)
    assert "is the same file as" in bad(capsys, *words[:-4], "--out", link, "--force", "--prescan", small)


def broken(monkeypatch, fails):
    """Let runs fail that ``fails`` says of the texts and whether it is the first look."""
    from memguard.hosts.diffusers import scans

    inner = scans.Scan._run

    def run(self, texts):
        if fails([text for text, _ in texts], self.call.get("height") == 8):
            raise RuntimeError("sizes do not fit")
        return inner(self, texts)

    monkeypatch.setattr(scans.Scan, "_run", run)


def test_a_first_look_that_fails_is_refused_and_no_file_is_touched(
    capsys, model, prompts, small, monkeypatch, tmp_path
):
    out = tmp_path / "out.jsonl"
    broken(monkeypatch, lambda texts, first: first)
    words = ("scan", prompts, "--model", model, *WAY, "--prescan", small, "--out", out)
    assert "the first look at 8x8 fails: RuntimeError: sizes do not fit" in bad(capsys, *words)
    assert not out.exists()


def test_a_scan_that_fails_at_all_that_were_promoted_says_so(capsys, model, prompts, small, monkeypatch, tmp_path):
    broken(monkeypatch, lambda texts, first: not first)
    words = ("scan", prompts, "--model", model, *WAY, "--prescan", small, "--promote", 0.3, "--out")
    assert "no prompt could be scored: the pipeline failed (RuntimeError)" in bad(
        capsys, *words, tmp_path / "out.jsonl"
    )
    assert "the model failed at each of its " in bad(capsys, *words, tmp_path / "shards", "--shard", "1/3")


def test_one_prompt_that_fails_ends_nothing_although_no_other_was_promoted(capsys, model, small, monkeypatch, tmp_path):
    few = tmp_path / "few.txt"
    few.write_text("\n".join(PROMPTS[:16]))
    broken(monkeypatch, lambda texts, first: PROMPTS[3] in texts)
    words = ("scan", few, "--model", model, *WAY, "--prescan", small, "--promote", 0.02, "--out")
    for more in ((tmp_path / "out.jsonl",), (tmp_path / "shards", "--shard", "1/1")):
        assert run(capsys, *words, *more)[0] == 0
    (shard,) = (tmp_path / "shards").iterdir()
    for path in (tmp_path / "out.jsonl", shard):
        found = rows(path)
        assert found[3]["error"] == "RuntimeError: sizes do not fit" and len(found) == 16
        assert [row["index"] for row in found if row["findings"][0]["prescan"]["promoted"]] == [3]


def test_the_profile_of_the_first_look_is_not_that_of_the_scan(capsys, scan, small, profiles, tmp_path):
    out = tmp_path / "out.jsonl"
    scan("--out", out)
    assert "is the profile of the first look, at a smaller size" in bad(capsys, "merge", out, "--profile", small)
    assert "is the profile of the first look, at a smaller size" in bad(
        capsys, *("scan", "x.txt", "--model", "testbed", "--prescan", small, "--profile", small)
    )
    assert run(capsys, "merge", out, "--profile", profiles[16, 0])[0] == 0
