"""The examples run: a LoRA of a few steps that the audit can read."""

import itertools
import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("peft")
from memguard import testbed
from memguard.hosts.diffusers import loras
from testbed.loras import picture
from tests.hosts import tiny

EXAMPLE = Path(__file__).parents[2] / "examples/train_lora.py"


def folder(path, *seeds):
    from PIL import Image

    path.mkdir()
    for seed in seeds:
        drawn, caption = picture(seed)
        Image.fromarray(drawn).save(path / f"{seed}.png")
        (path / f"{seed}.txt").write_text(caption)
    return path


def test_noise_is_added_as_the_schedule_says():
    noisy = runpy.run_path(str(EXAMPLE))["Training"].noisy
    training, pictures = SimpleNamespace(alphas=torch.tensor([0.25])), SimpleNamespace(latents=torch.ones(1, 4, 2, 2))
    noise, found = noisy(training, pictures, [0], torch.tensor([0]), torch.Generator().manual_seed(1))
    assert torch.allclose(found, 0.5 + 0.75**0.5 * noise)


def test_a_lora_is_trained_and_read(monkeypatch, tmp_path, capsys):
    data, held, out = folder(tmp_path / "data", 0, 1, 2), folder(tmp_path / "held", 50, 51), tmp_path / "out"
    words = f"x --data {data} --held-out {held} --out {out} --steps 3 --every 2 --batch 2 --device cpu"
    monkeypatch.setattr("sys.argv", words.split())
    seconds = itertools.count(step=20)
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"loss (\d\.\d+)", said)]
    assert "trains 3 steps on 3 pictures" in said and "step 1 of 3: loss" in said
    assert "step 2: loss" in said and 0 < losses[0] < 0.3  # the test bed knows pictures of this kind
    names = {json.loads(line)["name"] for line in (out / "log.jsonl").read_text().splitlines()}
    assert "memorization/gap" in names and len(names) > 6
    file = out / "lora.safetensors"
    assert loras.fitted(testbed.pipeline(), loras.read(file), file.name)


def test_a_folder_that_is_there_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", f"x --data {tmp_path} --held-out {tmp_path} --out {tmp_path}".split())
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert end.value.code == f"{tmp_path}: is there already; give another --out, or remove it"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--data {0}/none", "{0}/none: is no folder; give the folder of the training pictures"),
        ("--held-out {0}/empty", "{0}/empty: holds no picture with a caption, as .txt beside it or in metadata.jsonl"),
        ("--model {0}/empty", "{0}/empty: cannot be loaded as a diffusers folder of Stable Diffusion 1 or 2 ("),
        ("--model {0}/v", "{0}/v: predicts v_prediction; this loop trains models that predict the noise (epsilon)"),
        ("--out {0}/a.txt/b", "{0}/a.txt/b: cannot be made ("),
        ("--every 0", "train_lora.py: error: argument --every: 0 is less than 1"),
        ("--batch -1", "train_lora.py: error: argument --batch: -1 is less than 1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_folder(words, line, monkeypatch, tmp_path, capsys):
    data, held, out = folder(tmp_path / "data", 0), folder(tmp_path / "held", 50), tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("")
    if "/v" in words:
        tiny.sd(tiny.scheduler(prediction_type="v_prediction")).save_pretrained(tmp_path / "v")
    given = f"x --data {data} --held-out {held} --out {out} --steps 1 --device cpu {words.format(tmp_path)}"
    monkeypatch.setattr("sys.argv", given.split())
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().err.splitlines()[-1] if end.value.code == 2 else end.value.code
    assert said.startswith(line.format(tmp_path)) and len(said.splitlines()) == 1
    assert not out.exists()


def test_the_docstring_s_audit_is_one_that_runs():
    from memguard.cli import build_parser

    line = re.search(r"memguard (audit .*)", EXAMPLE.read_text())[1]
    assert build_parser("audit").parse_args(line.split()).lora == [Path("lora/lora.safetensors")]
