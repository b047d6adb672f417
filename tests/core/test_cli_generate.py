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
        (("--mitigation", "padding:tau"), "'tau' is no PARAMETER=VALUE"),
        (("--mitigation", "attention_scaling:bos_scale=0"), "bos_scale is 0; give a number above 0, such as 1.25"),
        (("--mitigation", "attention_scaling:bos_scale=high"), "a value is of the wrong kind"),
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
