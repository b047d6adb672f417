"""``memguard scan`` and ``memguard calibrate`` end to end, on a tiny diffusers folder."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memguard.cli import main

pytest.importorskip("diffusers")
from tests.command import bad, run
from tests.hosts import tiny

ROOT = Path(__file__).parents[2]
PROMPTS = ["a red fox", "a blue house", "a cat on the roof"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.sd().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return str(path)


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_list_is_scored_and_written(capsys, model, prompts, tmp_path):
    out = tmp_path / "out.jsonl"
    code, said, err = run(capsys, "scan", prompts, "--model", model, "--out", out)
    assert code == 0
    assert said == f"{out}: 3 prompts scanned: 3 unknown\n"
    assert err == "memguard scan: no verdict: uncalibrated: no profile for this model; run memguard calibrate\n"
    assert [row["prompt"] for row in rows(out)] == PROMPTS
    assert all(row["findings"][0]["scores"][0] > 0 for row in rows(out))


def test_without_out_there_is_a_table_or_json_lines(capsys, model, prompts):
    _, table, _ = run(capsys, "scan", prompts, "--model", model, "--num-inference-steps", "6")
    assert [line.split(None, 2)[2] for line in table.splitlines()] == PROMPTS
    _, lines, _ = run(capsys, "scan", prompts, "--model", model, "--json", "--num-inference-steps", "6")
    reports = [json.loads(line) for line in lines.splitlines()]
    assert [report["steps"] for report in reports] == [6, 6, 6]
    for line, report in zip(table.splitlines(), reports, strict=True):
        assert float(line.split()[1]) == pytest.approx(report["findings"][0]["scores"][0], abs=1e-3)


def test_stdin_is_a_list_too(capsys, model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a red fox\n")))
    code, said, _ = run(capsys, "scan", "--model", model)
    assert code == 0 and said.count("\n") == 1


def test_resume_scans_only_what_is_missing(capsys, model, prompts, tmp_path):
    out, again = tmp_path / "out.jsonl", tmp_path / "again.jsonl"
    run(capsys, "scan", prompts, "--model", model, "--out", again)
    run(capsys, "scan", prompts, "--model", model, "--out", out)
    whole = out.read_text().splitlines(keepends=True)
    out.write_text(whole[0] + whole[1][:50])
    code, said, _ = run(capsys, "scan", prompts, "--model", model, "--out", out, "--resume", "--json")
    assert code == 0
    summary = json.loads(said)
    assert (summary["scanned"], summary["skipped"]) == (2, 1)
    assert out.read_text().startswith(whole[0])
    for mine, plain in zip(rows(out), rows(again), strict=True):
        assert mine["findings"][0]["scores"] == pytest.approx(plain["findings"][0]["scores"], rel=1e-4)
    code, said, _ = run(capsys, "scan", prompts, "--model", model, "--out", out, "--resume")
    assert (code, said) == (0, f"{out}: 0 prompts scanned, 3 were done before\n")


def test_force_costs_nothing_before_the_model_is_there(capsys, model, prompts, tmp_path):
    out = tmp_path / "out.jsonl"
    run(capsys, "scan", prompts, "--model", model, "--out", out)
    before = out.read_text()
    assert "is there already" in bad(capsys, "scan", prompts, "--model", model, "--out", out)
    bad(capsys, "scan", prompts, "--model", tmp_path / "none", "--out", out, "--force")
    assert out.read_text() == before
    assert run(capsys, "scan", prompts, "--model", model, "--out", out, "--force", "--seed", "1")[0] == 0
    assert [row["seeds"] for row in rows(out)] == [[1], [1], [1]]
    new = tmp_path / "new.jsonl"
    bad(capsys, "scan", prompts, "--model", tmp_path / "none", "--out", new)
    assert not new.exists()


def test_resume_refuses_another_list_or_seed(capsys, model, prompts, tmp_path):
    out = tmp_path / "out.jsonl"
    run(capsys, "scan", prompts, "--model", model, "--out", out)
    out.write_text("".join(out.read_text().splitlines(keepends=True)[:2]))
    line = bad(capsys, "scan", prompts, "--model", model, "--out", out, "--resume", "--seed", "9")
    assert "its rows were made with seed 0, this run has 9" in line
    other = tmp_path / "other.txt"
    other.write_text("another prompt\n")
    assert "row 1 is for another prompt" in bad(capsys, "scan", other, "--model", model, "--out", out, "--resume")


def test_an_interrupted_scan_leaves_a_valid_file_and_130(capsys, model, prompts, tmp_path, monkeypatch):
    import memguard.hosts.diffusers as host

    whole = host.scan

    def interrupted(*args, **settings):
        for number, report in enumerate(whole(*args, **settings)):
            if number == 2:
                raise KeyboardInterrupt
            yield report

    monkeypatch.setattr(host, "scan", interrupted)
    out = tmp_path / "out.jsonl"
    code, _, err = run(capsys, "scan", prompts, "--model", model, "--out", out)
    assert code == 130
    assert f"{out} holds 2 prompts; --resume continues" in err
    assert [row["prompt"] for row in rows(out)] == PROMPTS[:2]
    monkeypatch.undo()
    assert main(["scan", prompts, "--model", model, "--out", str(out), "--resume"]) == 0
    assert [row["prompt"] for row in rows(out)] == PROMPTS


@pytest.mark.parametrize("shard", [False, True])
def test_what_was_interrupted_before_its_first_row_has_nothing_to_go_on_with(
    capsys, model, prompts, tmp_path, monkeypatch, shard
):
    monkeypatch.setattr("memguard.commands.models.load_model", lambda args: (_ for _ in ()).throw(KeyboardInterrupt))
    out = tmp_path / "out"
    words = ("--out", out, "--shard", "1/1") if shard else ("--out", out.with_suffix(".jsonl"))
    code, _, err = run(capsys, "scan", prompts, "--model", model, *words)
    assert code == 130 and "--resume" not in err and not out.with_suffix(".jsonl").exists()
    assert ("shard 1/1 leaves no file; run it again" if shard else "memguard scan: nothing was scored yet") in err
    assert not shard or not [path for path in out.iterdir() if path.suffix == ".jsonl"]


def test_a_bad_prompt_does_not_end_the_scan(capsys, model, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('"a red fox"\nnull\n"a cat"\n')
    code, said, err = run(capsys, "scan", path, "--model", model)
    assert code == 0
    assert said.splitlines()[1].startswith("no score")
    assert "1 without a score, for example because the prompt is no text but NoneType None" in err


def test_calibrate_gives_verdicts_and_fail_on_an_exit_code(capsys, model, prompts, tmp_path):
    code, said, _ = run(capsys, "calibrate", "--model", model, "--json")
    assert code == 0
    profile = json.loads(said)
    assert profile["profile"]["distributions"]["text_noise_norm"]["scores"][319] > 0
    code, table, err = run(capsys, "scan", prompts, "--model", model, "--fail-on", "suspicious")
    assert (code, err) == (0, "")  # found by the model's fingerprint, in MEMGUARD_HOME
    assert all(line.startswith("ordinary") for line in table.splitlines())
    values = profile["profile"]
    scores = values["distributions"]["text_noise_norm"]["scores"]
    values["distributions"]["text_noise_norm"]["scores"] = [score / 1000 for score in scores]
    low = tmp_path / "low.json"
    low.write_text(json.dumps(values))
    assert run(capsys, "scan", prompts, "--model", model, "--profile", low, "--fail-on", "memorized")[0] == 1
    assert run(capsys, "scan", prompts, "--model", model, "--profile", low)[0] == 0


def test_fail_on_without_a_profile_says_that_it_is_idle(capsys, model, prompts):
    code, _, err = run(capsys, "scan", prompts, "--model", model, "--fail-on", "memorized")
    assert code == 0
    assert "no verdict, so --fail-on has nothing to go by" in err


def test_bad_input_is_one_line_and_2(capsys, model, prompts, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    latin = tmp_path / "latin.txt"
    latin.write_bytes("café".encode("cp1252"))
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    (tmp_path / "folder").mkdir()
    scan = ("scan", prompts, "--model")
    assert "none.txt: no such file" in bad(capsys, "scan", tmp_path / "none.txt", "--model", model)
    assert "empty.txt: holds no prompts" in bad(capsys, "scan", empty, "--model", model)
    assert "latin.txt: byte 3 is not utf-8" in bad(capsys, "scan", latin, "--model", model)
    assert "no such folder or file; give a diffusers folder" in bad(capsys, *scan, tmp_path / "none")
    assert "is a single file; memguard reads .safetensors" in bad(capsys, *scan, wrong)
    assert "model_index.json is missing" in bad(capsys, *scan, tmp_path / "folder")
    (tmp_path / "folder" / "model_index.json").write_text("{")
    assert "folder: cannot be loaded, model_index.json is damaged" in bad(capsys, *scan, tmp_path / "folder")
    assert "not a memguard profile" in bad(capsys, *scan, model, "--profile", wrong)
    assert "no detector is called 'x'" in bad(capsys, *scan, model, "--detector", "x")
    assert "steps is 60" in bad(capsys, *scan, model, "--steps", "60")
    assert "--resume needs --out" in bad(capsys, *scan, model, "--resume")
    assert "give a multiple of 8" in bad(capsys, *scan, model, "--height", "13")
    assert "49 prompts" in bad(capsys, "calibrate", _fifty(tmp_path, 49), "--model", model)


def _fifty(folder, number):
    path = folder / "ordinary.txt"
    path.write_text("a red fox\n" * number)
    return path


def test_a_profile_for_another_model_is_named(capsys, model, prompts, tmp_path):
    _, said, _ = run(capsys, "calibrate", "--model", model, "--json", "--out", tmp_path)
    values = json.loads(said)["profile"]
    values["conditions"]["model"] = "0000000000000000"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(values))
    code, _, err = run(capsys, "scan", prompts, "--model", model, "--profile", other)
    assert code == 0
    assert "the profile is for model 0000000000000000" in err


def test_pickled_weights_are_not_loaded(capsys, prompts, tmp_path):
    folder = tmp_path / "pickled"
    tiny.sd().save_pretrained(folder, safe_serialization=False)
    capsys.readouterr()
    assert "cannot be loaded" in bad(capsys, "scan", prompts, "--model", folder)


OUT = ("--num-inference-steps", "6", "--out")


def test_resume_needs_every_setting_that_changes_a_row(capsys, model, prompts, tmp_path):
    out, other = tmp_path / "out.csv", tmp_path / "other"
    form = ("--dtype", "float32")
    run(capsys, "scan", prompts, "--model", model, *form, *OUT, out)
    run(capsys, "calibrate", "--model", model, "--out", tmp_path, "--num-inference-steps", "6")
    (profile,) = tmp_path.glob("*.json")
    tiny.sd(seed=1).save_pretrained(other)
    capsys.readouterr()
    out.write_text("".join(out.read_text().splitlines(keepends=True)[:2]))
    before = out.read_bytes()
    for words, says in {
        ("--detector", "attention_entropy"): "detector text_noise_norm, this run has attention_entropy",
        ("--negative-prompt", "blurry"): "negative prompt the default, this run has blurry",
        ("--sensitivity", "95"): "sensitivity 99, this run has 95",
        ("--num-images", "2"): "num images 1, this run has 2",
        ("--steps", "2"): "steps 1, this run has 2",
        ("--num-inference-steps", "7"): "num inference steps 6, this run has 7",
        ("--guidance-scale", "3"): "guidance scale 7.5, this run has 3",
        ("--height", "64"): "height the default, this run has 64",
        ("--width", "64"): "width the default, this run has 64",
        ("--reference", "empty"): "reference negative, this run has empty",
        ("--dtype", "bfloat16"): "number format float32, this run has bfloat16",
        ("--model", other): "its rows were made with model ",
        ("--profile", profile): "profile none, this run has ",
    }.items():
        said = bad(capsys, "scan", prompts, "--model", model, *form, *OUT, out, "--resume", *words)
        assert says in said and said.endswith("--resume needs the same settings")
        assert out.read_bytes() == before
    assert run(capsys, "scan", prompts, "--model", model, *form, *OUT, out, "--resume", "--batch-size", "1")[0] == 0
    assert len(out.read_text().splitlines()) == 4


def test_a_profile_that_was_made_in_between_is_another_setting(capsys, model, prompts, tmp_path):
    out = tmp_path / "out.jsonl"
    run(capsys, "scan", prompts, "--model", model, *OUT, out)
    out.write_text(out.read_text().splitlines(keepends=True)[0])
    run(capsys, "calibrate", "--model", model, "--num-inference-steps", "6")
    assert "made with profile none, this run has" in bad(
        capsys, "scan", prompts, "--model", model, *OUT, out, "--resume"
    )


@pytest.mark.parametrize("name", ["list.jsonl", "link.jsonl"])
def test_the_list_is_not_emptied_by_its_own_results(capsys, model, tmp_path, name):
    source = tmp_path / "list.jsonl"
    source.write_text('"a red fox"\n')
    (tmp_path / "link.jsonl").symlink_to(source)
    for how in ("--force", "--resume"):
        line = bad(capsys, "scan", source, "--model", model, "--out", tmp_path / name, how)
        assert "is the same file as" in line
    assert source.read_text() == '"a red fox"\n'


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_half_characters_and_commands_to_the_terminal_are_rows(capsys, model, tmp_path, suffix):
    source, out = tmp_path / "list.jsonl", tmp_path / f"out.{suffix}"
    source.write_text('"a"\n"b \\ud800"\n"c \\u001b[31m\\u009b2J"\n"d"\n')
    code, said, err = run(capsys, "scan", source, "--model", model, *OUT, out)
    assert code == 0 and "3 without a score" not in err
    assert "1 without a score, for example because character 3 of the prompt is half of one (U+D800)" in err
    if suffix == "jsonl":
        found = [row["prompt"] for row in rows(out)]
        assert [bool(row["findings"][0]["scores"]) for row in rows(out)] == [True, False, True, True]
        assert found == ["a", "b \\ud800", "c \x1b[31m\x9b2J", "d"]
    # and the same list goes on behind it
    code, said, err = run(capsys, "scan", source, "--model", model, *OUT, out, "--resume")
    assert (code, said) == (0, f"{out}: 0 prompts scanned, 4 were done before\n")
    for words in ((), ("--json",)):
        code, said, err = run(capsys, "scan", source, "--model", model, *OUT[:2], *words)
        assert code == 0 and said.count("\n") == 4
        assert not {"\x1b", "\x9b"} & set(said + err)
    assert json.loads(said.splitlines()[2])["prompt"] == "c \x1b[31m\x9b2J"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("--batch-size", 10**30),
            "--batch-size is '1000000000000000000000000000000'; give a whole number between 1 and 4096",
        ),
        (("--seed", "x"), "--seed is 'x'; give a whole number"),
        (("--batch-size", 0), "--batch-size is '0'; give"),
        (("--num-images", -1), "--num-images is '-1'; give"),
        (
            ("--seed", 10**30),
            "--seed is '1000000000000000000000000000000'; give a whole number between -9223372036854775808 and",
        ),
        (("--height", 8 * 10**9), "--height is '8000000000'; give a multiple of 8 between 8 and 16384 pixels"),
        (("--width", 12), "--width is '12'; give a multiple of 8"),
        (("--guidance-scale", "nan"), "--guidance-scale is 'nan'; give a number, such as 7.5"),
        (("--sensitivity", "nan"), "--sensitivity is 'nan'; give a percentile"),
        (("--sensitivity", "100"), "--sensitivity is '100'; give a percentile between 50 and 99.99"),
        (("--detector", "x\x1b[31m"), "no detector is called 'x\\x1b[31m'"),
        (("--device", "klingon"), "--device klingon: no such device"),
        (("--device", "meta"), "--device meta: no such device"),
        (("--device", "cuda:" + 50 * "9"), "--device cuda:"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_the_model_is_loaded(capsys, tmp_path, prompts, words, says):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert says in bad(capsys, "scan", prompts, "--model", folder, *words)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ("[]", "model_index.json is damaged"),
        ("[" * 20_000, "model_index.json is damaged"),
        ('{"_class_name": 3}', "model_index.json is damaged"),
        ("\xff", "model_index.json is damaged"),
        (
            '{"_class_name": "StableDiffusionPipeline", "tokenizer": ["transformers", "CLIPTokenizer"]}',
            "its folder tok",
        ),
        ('{"_class_name": "Nothing"}', "cannot be loaded"),
    ],
)
def test_a_damaged_model_is_one_line(capsys, tmp_path, prompts, index, says):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text(index, encoding="latin-1")
    assert says in bad(capsys, "scan", prompts, "--model", folder)


def test_a_tokenizer_without_its_files_is_one_line(capsys, model, tmp_path, prompts):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    shutil.rmtree(folder / "tokenizer")
    assert "its folder tokenizer is missing; copy the model again" in bad(capsys, "scan", prompts, "--model", folder)
    (folder / "tokenizer").mkdir()
    assert "cannot be loaded" in bad(capsys, "scan", prompts, "--model", folder)


def test_a_prompt_where_a_file_belongs_is_one_line(capsys, model):
    assert "no such file; give a file of prompts" in bad(capsys, "scan", 60 * "fox! ", "--model", model)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_ctrl_c_in_a_process_of_its_own(model, tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    source, out = tmp_path / "long.txt", tmp_path / f"out.{suffix}"
    source.write_text("".join(f"prompt number {i}\n" for i in range(50_000)))
    grows = out if suffix == "jsonl" else tmp_path / "out.parquet.jsonl"
    words = ["scan", str(source), "--model", model, "--out", str(out)]
    command = [sys.executable, "-m", "memguard.cli", *words]
    # a job that a shell started in the background ignores SIGINT, and its children would, too
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **heard) as process:
        try:
            until = time.monotonic() + 120
            while not (grows.exists() and grows.read_bytes().count(b"\n") > 20) and time.monotonic() < until:
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "--resume continues" in err and "memguard scan: interrupted" in err
    assert "Traceback" not in err
    if suffix == "jsonl":
        found = [row["prompt"] for row in rows(out)]
    else:
        found = pytest.importorskip("pyarrow.parquet").read_table(out).column("prompt").to_pylist()
        assert not grows.exists()
    assert 20 < len(found) < 50_000
    assert found == [f"prompt number {i}" for i in range(len(found))]
