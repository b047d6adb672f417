"""How long a checkpoint was trained, their order, and when a file that a trainer writes is whole."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from memguard.audit.checkpoints import Age, Watched, age, digest, files, metadata, names, ordered


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("style-000008.safetensors", Age("epoch", 8)),  # kohya
        ("style_000000500.safetensors", Age("step", 500)),  # ai-toolkit
        ("style-epoch012.safetensors", Age("epoch", 12)),
        ("style_epoch_3.safetensors", Age("epoch", 3)),
        ("style-step00000450.safetensors", Age("step", 450)),  # kohya, by steps
        ("ComfyUI_trained_lora_500_steps_00001_.safetensors", Age("step", 500)),
        ("checkpoint-1500/pytorch_lora_weights.safetensors", Age("step", 1500)),  # diffusers, SimpleTuner
        ("style.safetensors", Age()),
        ("sdxl2024.safetensors", Age()),
    ],
)
def test_names_of_trainers(tmp_path, name, found):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    assert age(path) == found


@pytest.mark.parametrize(
    ("kept", "found"),
    [
        ({"ss_epoch": "7", "ss_steps": "70"}, Age("epoch", 7)),
        ({"ss_epoch": "None", "ss_steps": "70"}, Age("step", 70)),
        ({"training_info": json.dumps({"step": 250, "epoch": 3})}, Age("step", 250)),
        ({"training_info": "[]"}, Age("epoch", 9)),
    ],
)
def test_metadata_goes_before_the_name(tmp_path, kept, found):
    path = tmp_path / "x-epoch9.safetensors"
    save_file({"a": torch.zeros(2)}, path, kept)
    assert age(path) == found


def test_the_order_is_that_of_the_training_and_names_stay_apart(tmp_path):
    found = [tmp_path / each for each in ("s-000010.safetensors", "s-000002.safetensors", "s.safetensors")]
    for path in found:
        path.write_bytes(b"")
    assert [p.name for p in ordered(found)] == ["s-000002.safetensors", "s-000010.safetensors", "s.safetensors"]
    assert ordered([Path("b10"), Path("b9"), Path("b9")]) == [Path("b9"), Path("b10")]
    folders = [Path("r/checkpoint-5/w.safetensors"), Path("r/checkpoint-9/w.safetensors"), Path("r/other.safetensors")]
    assert list(names(folders).values()) == [
        "checkpoint-5/w.safetensors",
        "checkpoint-9/w.safetensors",
        "other.safetensors",
    ]
    assert Age("epoch", 4).said("x") == "epoch 4" and Age().said("x") == "x"


def test_a_file_is_ready_when_it_is_whole_and_stands_still(tmp_path):
    watched = Watched(tmp_path)
    path = tmp_path / "deep" / "a-000001.safetensors"
    path.parent.mkdir()
    save_file({"a": torch.zeros(9)}, path)
    whole = path.read_bytes()
    assert metadata(path) == {}
    path.write_bytes(whole[:-1])
    assert metadata(path) is None
    assert watched.ready() == [] and watched.ready() == []
    path.write_bytes(whole)
    assert watched.ready() == []  # just changed
    assert watched.ready() == [path]
    assert watched.ready() == []
    save_file({"a": torch.ones(12)}, path)
    assert watched.ready() == [] and watched.ready() == [path]
    path.unlink()
    assert watched.ready() == []


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b'{"a": 1}x'])
def test_what_is_no_safetensors_file_is_never_ready(tmp_path, data):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    assert metadata(path) is None


def test_digests_tell_contents_and_not_names(tmp_path):
    for name, data in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(data)
    a, b, c = (digest(tmp_path / name) for name in "abc")
    assert a == b != c and len(a) == 16


def test_a_folder_that_says_the_step_belongs_to_the_name_of_a_file_that_is_named_alone(tmp_path):
    each = tmp_path / "checkpoint-500" / "pytorch_lora_weights.safetensors"
    assert names([each])[each] == "checkpoint-500/pytorch_lora_weights.safetensors"
    assert names([tmp_path / "loras" / "a.safetensors"]) == {tmp_path / "loras" / "a.safetensors": "a.safetensors"}


def test_a_folder_with_the_ending_of_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "a.safetensors").touch()
    (tmp_path / "b.safetensors").mkdir()
    assert files(tmp_path) == [tmp_path / "a.safetensors"]
