"""The benchmarks of training run to their end on a few pictures, and chance has the rate of the filter before it."""

import json

import pytest
import torch

from benchmarks import training_bed, training_filters, training_loras
from testbed import loras

ARMS = ["norm", "chance", "entropy"]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(training_bed, "INFERENCE", 2)
    for name, value in {"DUPLICATES": 2, "HELD": 4, "CONTROLS": 1, "BATCH": 4}.items():
        monkeypatch.setattr(training_filters, name, value)
    for name, value in {"COUNT": 4, "OFTEN": 2, "EPOCH": 8, "BATCH": 4}.items():
        monkeypatch.setattr(loras, name, value)
    monkeypatch.setattr(training_loras, "TUNING", 2)
    monkeypatch.setattr(training_loras, "HELD", 2)
    monkeypatch.setitem(loras.PLANS, "few", (24, 0.1, 6))


def rows(main, monkeypatch, line, file):
    monkeypatch.setattr("sys.argv", ["x", *line.split()])
    main()
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("device", DEVICES)
def test_filters(monkeypatch, tmp_path, device):
    out = tmp_path / "rows.jsonl"
    line = f"--arms {' '.join(ARMS)} --steps 3 --every 2 --fresh 6 --share 0.5 --moving 2 --out {out} --device {device}"
    found = rows(training_filters.main, monkeypatch, line, out)
    assert [(row["arm"], row["step"]) for row in found] == [(arm, step) for arm in ARMS for step in (2, 3)]
    norm, chance = found[1], found[3]
    assert chance["rate"] == pytest.approx((norm["duplicates left out"] + norm["ordinary left out"]) / 2)
    assert chance["as"] == "norm" and list(norm["thresholds"]) == [str(level) for level in training_bed.LEVELS]
    for row in found:
        assert row["copied, first half"] + row["copied, second half"] == row["copied"] <= row["of"] == 2
        assert len(row["likeness"]) == 3 and row["held loss"] > 0


@pytest.mark.parametrize("device", DEVICES)
def test_loras(monkeypatch, tmp_path, device):
    pytest.importorskip("peft")
    line = f"{tmp_path} --plan few --arms norm --epochs 2 --every 1 --keep 2 --moving 1 --tag x --device {device}"
    found = rows(training_loras.main, monkeypatch, line, tmp_path / "few-norm-x-s0.jsonl")
    assert [row["epoch"] for row in found] == [1, 2] and all(len(row["likeness"]) == 4 for row in found)
    assert [file.name for file in (tmp_path / "loras").iterdir()] == ["few-norm-x-s0-epoch002.safetensors"]


@pytest.mark.parametrize("device", DEVICES)
def test_scores_say_how_well_they_tell_duplicates_for_each_layer(monkeypatch, tmp_path, device):
    out = tmp_path / "rows.jsonl"
    line = f"--arms none --steps 1 --every 1 --fresh 6 --separation --out {out} --device {device}"
    (row,) = rows(training_filters.main, monkeypatch, line, out)
    layers = [name for name in row["separation"] if name.startswith("entropy ")]
    assert layers and all(0 <= auc <= 1 for halves in row["separation"].values() for h in halves for auc in h.values())
