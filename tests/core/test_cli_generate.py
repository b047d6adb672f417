"""``memguard generate`` end to end, on a tiny diffusers folder."""

import json

import numpy as np
import pytest
from PIL import Image

from memguard.neurons import files
from memguard.records import NeuronSet

pytest.importorskip("diffusers")
from tests.core.test_cli_scan import bad, model, run  # noqa: F401

SHORT = ("--num-inference-steps", "3")


def pictures(folder) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]


@pytest.fixture
def plain(capsys, model, tmp_path):  # noqa: F811
    run(capsys, "generate", "a red fox", "--model", model, "--out", tmp_path / "plain", *SHORT)
    return pictures(tmp_path / "plain")


def test_pictures_and_reports_are_written(capsys, model, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    code, said, err = run(
        capsys, "generate", "a red fox", "a/../house?", "--model", model, "--out", out, "--num-images", "2", *SHORT
    )
    assert (code, err) == (0, "")
    assert said.count("\n") == 2 and said.startswith("a red fox: MemGuard: no verdict")
    assert sorted(path.name for path in out.glob("*.png")) == [
        "0000-0-0-a-red-fox.png",
        "0000-0-1-a-red-fox.png",
        "0001-0-0-a-house.png",
        "0001-0-1-a-house.png",
    ]
    reports = [json.loads(line) for line in (out / "reports.jsonl").read_text().splitlines()]
    assert [report["prompt"] for report in reports] == ["a red fox", "a/../house?"]
    assert sum((report["files"] for report in reports), []) == sorted(path.name for path in out.glob("*.png"))


def test_an_uncalibrated_run_is_not_touched_by_mitigate(capsys, model, tmp_path, plain):  # noqa: F811
    out = tmp_path / "out"
    run(capsys, "generate", "a red fox", "--model", model, "--out", out, "--mitigation", "auto", *SHORT)
    assert np.array_equal(pictures(out)[0], plain[0])


def test_always_mitigates_every_run(capsys, model, tmp_path, plain):  # noqa: F811
    out = tmp_path / "out"
    words = ("--always", "--mitigation", "attention_scaling:bos_scale=3,mask_eos=True")
    code, said, err = run(capsys, "generate", "a red fox", "--model", model, "--out", out, *words, *SHORT)
    assert (code, err) == (0, "")
    assert "no verdict (score" in said  # it is scored all the same
    assert not np.array_equal(pictures(out)[0], plain[0])


def test_a_neuron_set_is_taken_from_its_file(capsys, model, tmp_path, plain):  # noqa: F811
    path, out = tmp_path / "set.safetensors", tmp_path / "out"
    files.save(NeuronSet({"mid_block.attentions.0.transformer_blocks.0.attn2": tuple(range(16))}), path)
    run(capsys, "generate", "a red fox", "--model", model, "--out", out, "--always", "--neurons", path, *SHORT)
    assert not np.array_equal(pictures(out)[0], plain[0])
    same = ("--neurons", path, "--mitigation", "neuron_mask:factor=1.0")
    run(capsys, "generate", "a red fox", "--model", model, "--out", tmp_path / "same", "--always", *same, *SHORT)
    assert np.array_equal(pictures(tmp_path / "same")[0], plain[0])


def test_the_mitigations_are_listed(capsys):
    code, said, _ = run(capsys, "generate", "--mitigations")
    assert code == 0
    assert "attention_scaling: Attention scaling (Ren et al., ECCV 2024)" in said
    assert "bos_scale=1.25, mask_padding=True, mask_eos=False" in said


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--out", "x"), "--model is missing"),
        (("--model", "testbed"), "--out is missing"),
        (("--mitigation", "colour"), "there is no mitigation 'colour'; use one of attention_scaling"),
        (("--mitigation", "padding:tau=1"), "padding has no parameter 'tau'"),
        (("--mitigation", "padding:name=x"), "padding has no parameter 'name'"),
        (("--mitigation", "padding:tau"), "'tau' is no PARAMETER=VALUE"),
        (("--mitigation", "attention_scaling:bos_scale=0"), "bos_scale is 0; give a number above 0, such as 1.25"),
        (("--mitigation", "attention_scaling:bos_scale=high"), "bos_scale is 'high'; give a number"),
        (("--mitigation", "neuron_mask"), "--mitigation neuron_mask needs --neurons FILE"),
        (("--always",), "--always needs --mitigation"),
        (("--always", "--mitigation", "auto"), "auto decides by the score"),
        (("--policy", "warn", "--mitigation", "auto"), "policy is 'warn'; use policy mitigate"),
        (("--neurons", "nowhere.safetensors"), "nowhere.safetensors"),
        (("--profile", "nowhere.json"), "nowhere.json"),
    ],
)
def test_bad_input_is_one_line(capsys, model, tmp_path, words, line):  # noqa: F811
    given = ("--model", model, "--out", tmp_path / "out") if "is missing" not in line else ()
    assert line in bad(capsys, "generate", "a red fox", *given, *words, *SHORT)


def test_no_prompts(capsys, model, tmp_path):  # noqa: F811
    assert bad(capsys, "generate", "--model", model, "--out", tmp_path).endswith(
        "no prompts; give some, or --file FILE"
    )


def held(folder) -> dict:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def reports(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "reports.jsonl").read_text().splitlines()]


def test_a_second_run_overwrites_nothing(capsys, model, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    words = ("--model", model, "--out", out, *SHORT)
    run(capsys, "generate", "a red fox", *words)
    before = held(out)
    assert "is not empty; continue it with --resume, or give a new folder" in bad(capsys, "generate", "a cat", *words)
    line = bad(capsys, "generate", "a cat", *words, "--resume")
    assert "row 1 is for another prompt than the list" in line
    line = bad(capsys, "generate", "a red fox", "a cat", *words, "--resume", "--seed", "3")
    assert "made with seed 0, this run has 3" in line
    assert held(out) == before
    (out / "0001-0-0-a-cat.png").write_bytes(b"of a run that ended before its report")
    code, said, _ = run(capsys, "generate", "a red fox", "a cat", *words, "--resume")
    assert code == 0 and said.count("\n") == 1 and said.startswith("a cat")
    now = held(out)
    lines = now.pop("reports.jsonl").splitlines(keepends=True)
    assert lines[0] == before.pop("reports.jsonl") and len(lines) == 2
    assert now.items() > before.items()
    assert now["0001-0-0-a-cat.png"] == b"of a run that ended before its report"
    assert [row["files"] for row in reports(out)] == [["0000-0-0-a-red-fox.png"], ["0001-0-0-a-cat-2.png"]]
    code, said, err = run(capsys, "generate", "a red fox", "a cat", *words, "--resume")
    assert (code, said, err) == (0, f"{out}: 2 prompts were done before\n", "")


@pytest.mark.parametrize("how", [(), ("--resume",)])
def test_a_folder_of_something_else_is_left_as_it_is(capsys, tmp_path, how):
    out = tmp_path / "out"
    out.mkdir()
    (out / "0000-0-0-a-red-fox.png").write_bytes(b"mine")
    assert "or give a new folder" in bad(capsys, "generate", "a red fox", "--model", "testbed", "--out", out, *how)
    (out / "reports.jsonl").write_bytes(b'{"prompt": "mine"}')
    line = bad(capsys, "generate", "a red fox", "--model", "testbed", "--out", out, *how)
    assert "or give a new folder" in line or "row 1 was not written by memguard" in line
    assert held(out) == {"0000-0-0-a-red-fox.png": b"mine", "reports.jsonl": b'{"prompt": "mine"}'}


def test_reports_of_the_first_version_are_refused_with_the_reason(capsys, model, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    words = ("--model", model, "--out", out, *SHORT)
    run(capsys, "generate", "a red fox", *words)
    old = {k: v for k, v in reports(out)[0].items() if k not in ("index", "files", "settings")}
    (out / "reports.jsonl").write_text(json.dumps(old) + "\n")
    assert "an older memguard wrote it" in bad(capsys, "generate", "a red fox", *words, "--resume")


def test_a_row_that_is_no_text_has_its_reason_and_the_rest_goes_on(capsys, model, tmp_path):  # noqa: F811
    source, out = tmp_path / "list.csv", tmp_path / "out"
    source.write_bytes("id;Titel\n1;ein Fuchs\n2\n3;café\n".encode("utf-16"))
    words = ("--file", source, "--column", "titel", "--encoding", "utf-16", "--model", model, "--out", out, *SHORT)
    code, said, err = run(capsys, "generate", *words)
    assert (code, err) == (0, "")
    assert said.splitlines()[1] == "no text: MemGuard: no score, because the prompt is no text but NoneType None"
    assert [row["prompt"] for row in reports(out)] == ["ein Fuchs", None, "café"]
    assert [len(row["files"]) for row in reports(out)] == [1, 0, 1]
    lines = (out / "reports.jsonl").read_bytes().splitlines(keepends=True)
    (out / "reports.jsonl").write_bytes(lines[0] + lines[1] + lines[2][:100])
    code, said, _ = run(capsys, "generate", *words, "--resume")
    assert code == 0 and said.startswith("café") and [row["prompt"] for row in reports(out)][2] == "café"


def test_a_pipeline_that_fails_costs_one_prompt(capsys, model, tmp_path, monkeypatch):  # noqa: F811
    from diffusers import StableDiffusionPipeline

    plain = StableDiffusionPipeline.encode_prompt

    def encode_prompt(self, prompt, *args, **kwargs):
        if "fox" in str(prompt):
            raise ValueError("no\nfoxes")
        return plain(self, prompt, *args, **kwargs)

    monkeypatch.setattr(StableDiffusionPipeline, "encode_prompt", encode_prompt)
    out = tmp_path / "out"
    code, said, err = run(capsys, "generate", "a fox", "a \x1b[31m cat", "--model", model, "--out", out, *SHORT)
    assert code == 0 and said.count("\n") == 2 and "\x1b" not in said + err
    first, second = reports(out)
    assert first["findings"][0]["status"] == "the pipeline failed (ValueError); the row's error has its words"
    assert (first["error"], first["files"], len(second["files"])) == ("ValueError: no\nfoxes", [], 1)
    line = bad_last(capsys, "generate", "a fox", "--model", model, "--out", tmp_path / "all", *SHORT)
    assert "no prompt could be generated: the pipeline failed" in line


def bad_last(capsys, *words) -> str:
    code, _, err = run(capsys, *words)
    assert code == 2 and err.count("\n") == 1
    return err


def test_a_folder_that_cannot_be_written_is_said_before_the_model_is_loaded(capsys, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert "it is a file; give a folder" in bad(
        capsys, "generate", "a", "--model", "nowhere", "--out", tmp_path / "file"
    )

    def full(**_settings):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    line = bad(capsys, "generate", "a", "--model", "nowhere", "--out", tmp_path / "folder")
    assert "folder: cannot be written (Read-only file system)" in line
