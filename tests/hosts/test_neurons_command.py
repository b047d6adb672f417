"""``memguard neurons``: find, show, merge, diff, import, and bad input in one line."""

import json

import pytest

from memguard import cli, neurons, testbed
from memguard.hosts.diffusers import neurons as hosted
from memguard.records import NeuronSet
from memguard_pack.tests.core.test_neurons_files import HEADER

SET = NeuronSet({"mid_block.attn2": (1, 2)}, 0.0, "cafe", "by hand", 0.9, 0.25, 77)


@pytest.fixture
def files(tmp_path):
    other = NeuronSet({"mid_block.attn2": (2, 3)}, 0.0, "cafe", "two")
    return neurons.save(SET, tmp_path / "a.safetensors"), neurons.save(other, tmp_path / "b.safetensors")


def test_show(files, capsys):
    assert cli.main(["neurons", "show", str(files[0])]) == 0
    said = capsys.readouterr().out
    assert (
        "a.safetensors: 2 neurons in 1 layers, seeds alike 0.900, SSIM 0.250 with them blocked, 77 rows, model cafe"
        in said
    )
    assert "  mid_block.attn2: 1 2\n  from: by hand\n" in said
    assert cli.main(["neurons", "show", str(files[0]), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["indices"] == {"mid_block.attn2": [1, 2]} and values["neurons"] == 2 and values["ssim_after"] == 0.25


def test_merge_and_diff(files, tmp_path, capsys):
    out = tmp_path / "both.safetensors"
    assert cli.main(["neurons", "merge", *map(str, files), "--out", str(out)]) == 0
    assert neurons.load(out).indices == {"mid_block.attn2": (1, 2, 3)}
    capsys.readouterr()
    assert cli.main(["neurons", "diff", *map(str, files), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["first"] == {"mid_block.attn2": [1]} and values["both"] == {"mid_block.attn2": [2]}
    assert cli.main(["neurons", "diff", *map(str, files)]) == 0
    assert "both: 1 neurons\n  mid_block.attn2: 2\n" in capsys.readouterr().out


def test_import(tmp_path, capsys):
    table, out = tmp_path / "t.csv", tmp_path / "o.safetensors"
    empty = "[[], [], [], [], [], [], []]"
    row = "[[5], [], [], [], [], [], [9]]"
    table.write_text(f"{HEADER}a;u;{row};0.4;{row};0.2\nb;u;{empty};0;{empty};0\n")
    assert cli.main(["neurons", "import", str(table), "--out", str(out), "--fingerprint", "cafe", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["neurons"] == 2 and "1 of 2 prompts have no neurons there" in said.err
    assert neurons.load(out).model == "cafe"
    assert cli.main(["neurons", "import", str(table), "--out", str(out), "--prompt", "c"]) == 2
    assert capsys.readouterr().err == f"memguard neurons: {table}: has no row of this caption\n"


def test_find(tmp_path, capsys):
    ordinary, out = tmp_path / "ordinary.txt", tmp_path / "set.safetensors"
    prompts = testbed.prompts("ordinary")
    ordinary.write_text("\n".join(prompts[:40]))
    words = ["neurons", "find", "--model", "testbed", "--num-images", "2", "--out", str(out), "--device", "cpu"]
    kept = tmp_path / "s.safetensors"
    how = ["--ordinary", str(ordinary), "--save-statistics", str(kept), "--resume", str(tmp_path / "state")]
    assert cli.main([*words, *how, "--json", testbed.prompts("held")[0], "a cat"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["neurons"] == 0 and len(values["prompts"]) == 2 and neurons.load(out).indices == {}
    assert len(list((tmp_path / "state").iterdir())) == 2
    listed = tmp_path / "p.txt"
    listed.write_text("a cat\n")
    assert cli.main([*words, "--statistics", str(kept), "--prompts", str(listed)]) == 0
    assert "a cat: 0 neurons in 0 layers, seeds alike" in capsys.readouterr().out


def test_find_that_is_interrupted_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    statistics = neurons.ActivationStatistics({}, {}, 2).save(tmp_path / "s.safetensors")

    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(hosted, "localize", interrupted)
    words = ["neurons", "find", "a", "--model", "testbed", "--statistics", str(statistics), "--out", "x"]
    assert cli.main([*words, "--resume", str(tmp_path / "state")]) == 130
    said = capsys.readouterr().err.splitlines()
    assert said[-2:] == [
        f"memguard neurons: {tmp_path / 'state'} holds what was evaluated; --resume continues",
        "memguard neurons: interrupted",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "no.safetensors"], "no.safetensors: no such file"),
        (
            ["find", "--model", "testbed", "--statistics", "no", "--out", "x"],
            "no prompts; give them as arguments or with",
        ),
        (["find", "a", "--model", "testbed", "--statistics", "no", "--out", "x"], "no: no such file"),
        (["find", "a", "--model", "testbed", "--ordinary", "no.txt", "--out", "x"], "no.txt: no such file"),
        (["merge", "no.safetensors", "--out", "x"], "no.safetensors: no such file"),
        (["import", "no.csv", "--out", "x"], "no.csv: cannot be read (No such file or directory)"),
    ],
)
def test_bad_input_is_one_line_and_2(words, message, capsys):
    assert cli.main(["neurons", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"memguard neurons: {message}") and err.count("\n") == 1


def test_a_file_that_cannot_be_written_is_one_line(files, tmp_path, capsys):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "x.safetensors"
    assert cli.main(["neurons", "merge", str(files[0]), "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert "cannot be written" in err and err.count("\n") == 1
