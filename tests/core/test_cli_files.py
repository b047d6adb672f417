"""What commands write beside lists of results: nothing foreign is replaced, and it is said before the work."""

import io
import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from memguard import neurons
from memguard.cli import main
from memguard.records import NeuronSet

pytest.importorskip("diffusers")
from tests.core.test_cli_scan import bad, model, run  # noqa: F401

MINE = b"<html>my notes</html>"
TABLE = "Caption;URL;Initial Neurons;Initial SSIM;Refined Neurons;Refined SSIM\na;u;{0};0.4;{0};0.2\n"


@pytest.fixture
def mine(tmp_path):
    """Files that memguard did not write, by suffix; checked afterwards."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for suffix in ("html", "safetensors", "json", "yaml", "txt"):
        (folder / f"file.{suffix}").write_bytes(MINE)
    save_file({"a": torch.ones(1)}, folder / "lora.safetensors", {"model": "mine"})
    before = {path: path.read_bytes() for path in folder.iterdir()}
    yield folder
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.fixture
def held(tmp_path):
    return neurons.save(NeuronSet({"mid_block.attn2": (1, 2)}), tmp_path / "set.safetensors")


def test_what_is_not_memguards_is_not_replaced(capsys, mine, held, tmp_path):
    left = "was not written by memguard; it is left as it is"
    nowhere = ("--model", tmp_path / "nowhere")  # said before the model is looked for
    explain = ("explain", "--prompt", "a fox", *nowhere, "--html")
    assert left in bad(capsys, *explain, mine / "file.html")
    assert left in bad(capsys, *explain, mine / "file.txt")
    out = tmp_path / "new.safetensors"
    for name in ("file.safetensors", "lora.safetensors", "file.txt"):
        assert left in bad(capsys, "neurons", "merge", held, held, "--out", mine / name)
        find = ("neurons", "find", "a fox", *nowhere, "--statistics", held, "--out")
        assert left in bad(capsys, *find, mine / name)
        assert left in bad(capsys, *find, out, "--save-statistics", mine / name)
    export = ("testbed", "export", "--format")
    assert left in bad(capsys, *export, "checkpoint", mine / "lora.safetensors")
    assert left in bad(capsys, *export, "checkpoint", "--vae", "kl", mine / "file.safetensors")
    assert "is not empty; give a new folder" in bad(capsys, *export, "diffusers", mine)
    (mine.parent / "demo").mkdir()
    (mine.parent / "demo" / "report.html").write_bytes(MINE)
    assert left in bad(capsys, "demo", "--out", mine.parent / "demo")
    assert (mine.parent / "demo" / "report.html").read_bytes() == MINE


def test_the_recipe_beside_a_checkpoint_is_not_replaced_either(capsys, mine, tmp_path):
    (mine / "file.safetensors").unlink()  # put back below, for the fixture
    assert "file.yaml: was not written by memguard" in bad(
        capsys, "testbed", "export", "--format", "checkpoint", "--vae", "kl", mine / "file.safetensors"
    )
    (mine / "file.safetensors").write_bytes(MINE)


def test_results_are_not_written_over_what_is_read(capsys, held, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(TABLE.format("[[5], [], [], [], [], [], []]"))
    for path, words in {
        held: ("merge", held, held, "--out", held),
        table: ("import", table, "--out", table),
    }.items():
        before = path.read_bytes()
        assert "is the same file as" in bad(capsys, "neurons", *words)
        assert path.read_bytes() == before


def test_an_index_that_no_file_can_hold_is_one_line(capsys, tmp_path):
    table = tmp_path / "table.csv"
    for cell in ("[[3000000000], [], [], [], [], [], []]", "[" * 20_000, "[[1.5], [], [], [], [], [], []]", "{}"):
        table.write_text(TABLE.format(cell))
        assert "row 2: Refined Neurons are not 7 lists" in bad(
            capsys, "neurons", "import", table, "--out", tmp_path / "o.safetensors"
        )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("explain", "--prompt", "a", "--html", "FILE/x.html"), "cannot be written, it is a file; give a folder"),
        (("explain", "--prompt", "a", "--html", "a \udfff b.html"), "is no name for a file; choose another"),
        (("demo", "--out", "FILE"), "cannot be written, it is a file; give a folder"),
        (("demo", "--out", "FILE/x"), "cannot be written (Not a directory)"),
        (("testbed", "export", "FILE", "--format", "diffusers"), "cannot be written, it is a file; give a folder"),
        (("testbed", "export", "FILE/x.safetensors", "--format", "checkpoint"), "cannot be written"),
        (("testbed", "export", "x.ckpt", "--format", "checkpoint"), "does not end in .safetensors"),
        (("calibrate", "--out", "FILE"), "cannot be written, it is a file; give a folder"),
        (("explain", "--prompt", "a\ud800b"), "--prompt: character 2 of the prompt is half of one (U+D800)"),
        (("explain", "--prompt", " "), "--prompt: the prompt is empty"),
        (
            ("explain", "--prompt", "a", "--parity", "official", "--method", "ablation"),
            "is a number of method gradient",
        ),
        (("neurons", "find", "a\udcff", "--statistics", "s", "--out", "o"), "prompt 1: character 2 of the prompt"),
        (("neurons", "find", "a", "--num-images", "0", "--statistics", "s", "--out", "o"), "--num-images is '0'; give"),
        (
            ("neurons", "find", "a", "--threshold", "nan", "--statistics", "s", "--out", "o"),
            "--threshold is 'nan'",
        ),
    ],
)
def test_what_cannot_be_is_said_before_the_work(capsys, tmp_path, words, says):
    (tmp_path / "file").touch()
    words = [word.replace("FILE", str(tmp_path / "file")) for word in words]
    needs = ("--model", tmp_path / "nowhere") if words[0] in ("explain", "calibrate") or "find" in words else ()
    assert says in bad(capsys, *words, *needs)


@pytest.mark.parametrize("data", [b"caf\xe9", b"", b"\xef\xbb\xbf  \n"])
def test_stdin_of_explain_is_one_line_where_it_is_no_prompt(capsys, monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    line = bad(capsys, "explain", "--prompt", "-", "--model", "nowhere")
    assert "byte 3 of stdin is not utf-8" in line if data[:1] == b"c" else "the prompt is empty" in line
    monkeypatch.setattr(sys, "stdin", None)
    assert "stdin is closed" in bad(capsys, "explain", "--prompt", "-", "--model", "nowhere")


def test_the_page_of_explain_replaces_a_page_of_explain(capsys, model, tmp_path):  # noqa: F811
    page = tmp_path / "page.html"
    words = ("explain", "--model", model, "--method", "attention", "--num-inference-steps", "4", "--html", page)
    for prompt in ("a red fox", "a blue \x1b[31m house"):
        code, said, err = run(capsys, *words, "--prompt", prompt)
        assert (code, err) == (0, "") and "\x1b" not in said
        assert prompt.split()[-1] in page.read_text(encoding="utf-8")


def test_too_few_prompts_for_a_profile_cost_no_loading(capsys, tmp_path):
    path = tmp_path / "few.txt"
    path.write_text(49 * "a red fox\n")
    assert "49 prompts; a profile needs at least" in bad(capsys, "calibrate", path, "--model", tmp_path / "nowhere")


def test_what_the_package_notes_is_a_line_without_a_traceback(capsys):
    import logging

    main(["doctor", "--json"])
    capsys.readouterr()
    try:
        raise ValueError("two\nlines \x1b[31m")
    except ValueError as error:
        logging.getLogger("memguard").warning("%s", error, exc_info=error)
    assert capsys.readouterr().err == "note: two\\nlines \\x1b[31m\n"


def test_json_of_a_terminal_is_json_all_the_same(capsys, held, tmp_path):
    odd = neurons.save(NeuronSet({"\x9b2J": (1,)}, provenance="\x1b[31m"), tmp_path / "odd.safetensors")
    for words in (("show", odd), ("diff", held, odd)):
        for more in ((), ("--json",)):
            _, said, _ = run(capsys, "neurons", *words, *more)
            assert not {"\x1b", "\x9b"} & set(said)
    assert json.loads(said)["second"] == {"\x9b2J": [1]}
