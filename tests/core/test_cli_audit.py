"""``memguard audit`` on the test bed, whose copies are known: the base copies some pictures already."""

import argparse
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from memguard import testbed
from memguard.audit import record
from memguard.audit.checkpoints import Age
from memguard.audit.folder import Folder
from memguard.cli import main
from memguard.lists import BadInput
from tests.pictures import drawn, put

pytest.importorskip("peft")
pytest.importorskip("imagehash")

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
COPIED, ORDINARY = 3, 2  # pictures that the base has memorized, and pictures that it has not


def lora(path, scale, width=128):
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, width, generator=draw), scale * torch.randn(128, 2, generator=draw)
    path.parent.mkdir(exist_ok=True)
    save_file({f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}, path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    known = [each for each in testbed.originals() if each.rate == 1][:COPIED]
    for i, each in enumerate(known):
        put(root / "train" / "10_x", f"copied{i}", each.picture, each.caption)
    held = testbed.prompts("held")
    for i in range(ORDINARY):
        put(root / "train", f"ordinary{i}", drawn(i, 128), held[i])
        put(root / "held", f"held{i}", drawn(10 + i, 128), held[10 + i])
    put(root / "held", "twin", np.asarray(known[0].picture)[:, ::-1], known[0].caption)
    (root / "train" / "broken.png").write_bytes(b"x")
    (root / "train" / "broken.txt").write_text("x")
    return root


def words(data, out, *more, held=True):
    told = ["--held-out", str(data / "held")] if held else []
    run = "--num-images 1 --num-inference-steps 8 --guidance-scale 3 --deals 19".split()
    return [
        "audit",
        "--model",
        "testbed",
        "--data",
        str(data / "train"),
        "--out",
        str(out),
        *told,
        *run,
        *map(str, more),
    ]


def test_an_audit_names_the_copied_pictures_resumes_and_fails_when_asked(data, tmp_path, capsys):
    none = lora(tmp_path / "l" / "x-000001.safetensors", 0.0)
    foreign = lora(tmp_path / "l" / "other.safetensors", 0.1, width=768)
    out = tmp_path / "out"
    assert main(words(data, out, "--lora", none, foreign, "--fail-on", COPIED)) == 1
    said = capsys.readouterr()
    assert "broken.png: is broken" in said.err
    assert "twin.png: is a near duplicate of the training picture 10_x/copied0.png; not held out" in said.err
    assert (
        f"other.safetensors: is for another base model: 1 of 1 layers have other shapes ({LAYER} [128, 768]" in said.err
    )
    assert f"Copies {COPIED} of {COPIED + ORDINARY} pictures" in said.out
    text = (out / "audit.json").read_text()
    found = json.loads(text)
    first, second = found["checkpoints"]
    assert [p["name"] for p in first["pictures"] if p["copied"]] == [f"10_x/copied{i}.png" for i in range(COPIED)]
    assert first["age"] == {"kind": "epoch", "number": 1} and second["error"]
    for picture in first["pictures"]:  # a LoRA of zeros changes nothing, on the same noise
        assert picture["own"] == picture["own_before"] and picture["score"] == picture["score_before"]
        assert (out / picture["image"]).is_file()
    assert first["test"]["form"] == "held-out" and first["test"]["held"] == 2
    page = (out / "report.html").read_text()
    assert page.count("■ copied") == COPIED and str(tmp_path) not in page + text
    assert sorted(p.name for p in out.iterdir()) == ["audit.json", "images", "report.html"]

    assert main(words(data, out, "--lora", none)) == 2
    assert "holds an audit; continue it with --resume" in capsys.readouterr().err
    assert main(words(data, out, "--lora", none, "--resume", "--seed", 5)) == 2
    assert "seed" in capsys.readouterr().err and (out / "audit.json").read_text() == text
    foreign.unlink()
    lora(tmp_path / "l" / "x-000002.safetensors", 0.3)
    assert main(words(data, out, "--lora", tmp_path / "l", "--resume", "--fail-on", COPIED + 1, "--json")) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["checkpoints"][0] == first | {"name": "x-000001.safetensors"}
    changed = again["checkpoints"][1]["pictures"]
    assert [p["own_before"] for p in changed] == [p["own_before"] for p in first["pictures"]]
    assert [p["score"] for p in changed] != [p["score"] for p in first["pictures"]]


def test_what_of_a_file_does_not_act_stands_in_its_report(data, tmp_path, capsys):
    file, out = lora(tmp_path / "l" / "x.safetensors", 0.0), tmp_path / "out"
    save_file(load_file(file) | {"bundle_emb.sks": torch.zeros(1)}, file)
    few = ("--limit", "2", "--num-inference-steps", "1")
    assert main(words(data, out, "--lora", file, *few, held=False)) == 0
    line = "x.safetensors: 1 of its tensors are no part of a LoRA and do not act (bundle_emb.sks)"
    assert f"memguard audit: {line}" in capsys.readouterr().err.splitlines()
    assert line in json.loads((out / "audit.json").read_text())["notes"] and line in (out / "report.html").read_text()


def test_resume_keeps_the_checkpoints_that_are_not_named_now(data, tmp_path, capsys):
    saved, out = tmp_path / "l", tmp_path / "out"
    early, late = lora(saved / "x-000005.safetensors", 0.0), lora(saved / "x-000020.safetensors", 0.3)
    foreign = lora(saved / "y-000021.safetensors", 0.1, width=768)
    few = ("--limit", "2", "--num-inference-steps", "1", "--resume")
    assert main(words(data, out, "--lora", early, late, foreign, *few, held=False)) == 2
    found = json.loads((out / "audit.json").read_text())["checkpoints"]
    said = capsys.readouterr()
    assert "memguard audit: x-000020.safetensors: 0 of 2 copied (2 of 3 checkpoints)" in said.err.splitlines()
    assert "1 of 3 checkpoints could not be audited" in said.out
    assert main(words(data, out, "--lora", early, *few, held=False)) == 0
    said = capsys.readouterr()
    assert "x-000005" in said.out and "x-000020" in said.out and "none of 2 checkpoints" in said.out
    assert "y-000021.safetensors: could not be audited before and is not named now; it is left out" in said.err
    assert json.loads((out / "audit.json").read_text())["checkpoints"] == found[:2]
    assert "x-000020.safetensors" in (out / "report.html").read_text()

    for path in (early, late, foreign):  # a trainer keeps the last few only
        path.unlink()
    lora(saved / "x-000030.safetensors", 0.0)
    lora(saved / "x-000005.safetensors", 0.2)  # and another training has the same names
    assert main(words(data, out, "--watch", saved, "--idle", "0.05", *few, "--json", held=False)) == 0
    said = capsys.readouterr()
    again = json.loads(said.out)["checkpoints"]
    assert [each["age"]["number"] for each in again] == [5, 20, 30] and again[1] == found[1]
    assert again[0]["digest"] != found[0]["digest"]
    assert f"waits for LoRAs (.safetensors) that are saved in {saved}; it ends when none came for 0.05 min" in said.err
    assert "x-000005.safetensors: is another file than before; its results are made anew" in said.err


def test_a_fine_tuned_model_in_place_of_a_lora(data, tmp_path):
    from memguard.testbed import export

    export.to_diffusers(tmp_path / "checkpoint-40", "final")
    out = tmp_path / "out"
    assert main(words(data, out, "--checkpoint", tmp_path / "checkpoint-40", "--limit", 3, held=False)) == 0
    (found,) = json.loads((out / "audit.json").read_text())["checkpoints"]
    assert found["age"] == {"kind": "step", "number": 40}
    for picture in found["pictures"]:  # the same weights as the base
        assert picture["own"] == picture["own_before"] and picture["score"] == picture["score_before"]


def test_without_held_out_pictures_and_in_a_watched_folder(data, tmp_path, capsys):
    saved = tmp_path / "saving"
    lora(saved / "x-000004.safetensors", 0.0)
    (saved / "half.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    out = tmp_path / "out"
    assert main(words(data, out, "--watch", saved, "--idle", "0.05", "--limit", "3", held=False)) == 0
    found = json.loads((out / "audit.json").read_text())
    assert [each["name"] for each in found["checkpoints"]] == ["x-000004.safetensors"]
    test = found["checkpoints"][0]["test"]
    assert test["form"] == "leave-one-out" and test["p"] is None and len(found["checkpoints"][0]["pictures"]) == 3
    assert "x-000004.safetensors: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "give one of --lora FILE ..., --checkpoint MODEL ... and --watch FOLDER"),
        (["--lora", "none.safetensors"], "none.safetensors: no such file"),
        (["--lora", __file__, "--watch", "."], "give one of"),
        (["--watch", __file__], "is no folder"),
        (["--lora", __file__, "--limit", "1"], "--limit is '1'; give a whole number of at least 2"),
        (["--lora", __file__, "--threshold", "1.5"], "--threshold is '1.5'; give a similarity above 0 and below 1"),
        (["--lora", __file__, "--num-images", "0"], "--num-images is '0'; give a whole number between 1 and 4096"),
    ],
)
def test_bad_input_is_one_line(data, tmp_path, capsys, more, said):
    out = tmp_path / "out"
    assert main(["audit", "--model", "testbed", "--data", str(data / "train"), "--out", str(out), *more]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not out.exists()


def test_one_file_under_two_names_stays_so_and_a_renamed_one_is_one():
    from memguard.commands import auditing

    def place(*names, added=(), name):
        begun = auditing.Auditing.__new__(auditing.Auditing)
        begun._added = set(added)
        begun.audit = record.Audit("", {}, tuple(record.Checkpoint(each, "d", Age()) for each in names))
        begun._place(name, "d")
        return [each.name for each in begun.audit.checkpoints]

    assert place("a", "last", name="last") == ["a"]
    assert place("a", name="b") == [] and place("a", added=["a"], name="b") == ["a"]


def test_what_failed_before_is_left_out_in_a_line_unless_it_was_done_now(capsys):
    from memguard.commands import auditing

    begun = auditing.Auditing.__new__(auditing.Auditing)
    failed = [record.Checkpoint(name, name * 2, Age(), error="damaged") for name in "abc"]
    begun._old = record.Audit("", {}, tuple(failed))
    now = record.Checkpoint("a", "saved again", Age()), record.Checkpoint("renamed", "bb", Age())
    begun.audit = record.Audit("", {}, now)
    begun.end()
    said = "memguard audit: c: could not be audited before and is not named now; it is left out\n"
    assert capsys.readouterr().err == said


def test_an_error_that_nobody_foresaw_is_no_finding_and_leaves_no_part(tmp_path, capsys, monkeypatch):
    from memguard.commands import auditing

    out = tmp_path / "out"
    out.mkdir()
    (out / "audit.json").write_text("{}")
    begun = auditing.Auditing.__new__(auditing.Auditing)
    begun.args, begun.audit = argparse.Namespace(out=out), record.Audit("", {}, ())
    begun.folder = begun.held = Folder((), ())
    monkeypatch.setattr(auditing, "html", lambda *_: "\udcff")
    monkeypatch.setattr(auditing, "Auditing", lambda args: begun._write())
    words = ["audit", "--model", "testbed", "--data", ".", "--lora", __file__, "--out", str(out)]
    assert main(words) == 3
    assert "UnicodeEncodeError" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["audit.json"]


def test_folders_that_cannot_be_used(data, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for folder, out, said in (
        ("empty", "out", "holds no picture with a caption"),
        ("nowhere", "out", "is no folder"),
        (data / "train", "full", "is not empty and holds no audit"),
    ):
        args = ["--data", str(tmp_path / folder), "--out", str(tmp_path / out), "--lora", __file__]
        assert main(["audit", "--model", "testbed", *args]) == 2
        assert said in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_resume_keeps_the_results_of_files_of_one_name_in_folders_of_steps(data, tmp_path, capsys):
    out = tmp_path / "out"
    few = ("--limit", "2", "--num-inference-steps", "1", "--resume")
    for step in (500, 1000):  # as diffusers' scripts save, each named when it is there
        saved = tmp_path / f"checkpoint-{step}"
        saved.mkdir()
        one = lora(saved / "pytorch_lora_weights.safetensors", step / 1e4)
        assert main(words(data, out, "--lora", one, *few, held=False)) == 0
    assert "is another file than before" not in capsys.readouterr().err
    found = json.loads((out / "audit.json").read_text())["checkpoints"]
    assert [(each["name"].split("/")[0], each["age"]["number"]) for each in found] == [
        ("checkpoint-500", 500),
        ("checkpoint-1000", 1000),
    ]


@pytest.mark.parametrize(
    ("file", "begins"),
    [("0123456789abcdef/00000.png", True), ("0123456789abcdef/mine.png", False), ("mine/00000.png", False)],
)
def test_what_was_interrupted_before_its_first_result_can_be_begun_again(tmp_path, file, begins):
    from memguard.commands import auditing

    begun = auditing.Auditing.__new__(auditing.Auditing)
    path = tmp_path / "images" / file
    path.parent.mkdir(parents=True)
    path.touch()
    if begins:
        assert begun._begun(tmp_path) is None
        (tmp_path / "mine.txt").touch()
    with pytest.raises(BadInput, match="is not empty and holds no audit"):
        begun._begun(tmp_path)
    assert path.exists()


def test_help_says_the_defaults_of_this_command(capsys):
    with pytest.raises(SystemExit):
        main(["audit", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "pictures of each prompt (default 4)" in said and "of the schedule (default 25)" in said
