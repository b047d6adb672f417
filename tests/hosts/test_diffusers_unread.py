"""Prompts beyond what the text encoders read: every report says what was not scored."""

import json

import pytest

pytest.importorskip("diffusers")

import memguard
from memguard import testbed
from memguard.cli import main
from memguard.hosts.diffusers.tokens import unread

CAPTION = "Halley breakfast at noon - press kit"
FILLER = " ".join(80 * ["word"])
SAYS = "the last {} were not scored: the text encoder reads 75 tokens"


@pytest.fixture(scope="module")
def pipe():
    return testbed.pipeline()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ""),
        (" ".join(75 * ["word"]), ""),
        (" ".join(76 * ["word"]), "the last word was not scored: the text encoder reads 75 tokens"),
        (f"{FILLER} {CAPTION}", SAYS.format("12 words")),
        (" ".join(74 * ["word"]) + " uncharacteristicallyxyzqq end", SAYS.format("2 words")),  # half a word is not read
        (200 * "\u732b", "were not scored: the text encoder reads 75 tokens"),
        (75 * "a ", ""),
    ],
)
def test_what_is_beyond_the_encoder_is_named(pipe, text, says):
    note = unread(pipe, text, 77)
    assert note.endswith(says) and bool(note) == bool(says)
    assert "character" in note if text.startswith("\u732b") else "character" not in note


def test_the_encoder_that_reads_the_most_counts(pipe):
    class Two:
        tokenizer, tokenizer_2, tokenizer_3 = pipe.tokenizer, pipe.tokenizer, pipe.tokenizer
        text_encoder_3 = object()

    assert unread(Two(), FILLER, 77 + 256) == ""
    Two.text_encoder_3 = None
    assert unread(Two(), FILLER, 77 + 256) == SAYS.format("5 words")


def test_a_tokenizer_that_cannot_be_asked_costs_no_score(pipe):
    class Odd:
        tokenizer = object()

    assert unread(Odd(), FILLER, 77) == ""


def test_a_memorized_caption_behind_filler_says_that_it_was_not_scored(pipe):
    """It scores as ordinary, and the report says why that is no news about the caption."""
    alone, behind, filler = memguard.scan(pipe, [CAPTION, f"{FILLER} {CAPTION}", FILLER])
    assert alone.notes == ()
    assert behind.notes == (SAYS.format("12 words"),) and filler.notes == (SAYS.format("5 words"),)
    assert behind.findings[0].score == pytest.approx(filler.findings[0].score)
    found = memguard.explain(pipe, f"{FILLER} {CAPTION}", num_inference_steps=4, method="attention")
    assert found.notes == (f"cut off, the model never sees: {' '.join(5 * ['word'])} {CAPTION.replace(' -', '')}",)
    guard = memguard.Guard()
    with guard.attach(pipe):
        pipe(f"{FILLER} {CAPTION}", num_inference_steps=2)
    assert guard.report.notes.count(SAYS.format("12 words")) == 1
    with guard.attach(pipe):
        pipe([CAPTION, FILLER], num_inference_steps=2)
    assert f"prompt 2: {SAYS.format('5 words')}" in guard.report.notes


def test_every_command_says_it(tmp_path, capsys):
    prompts, ordinary, out = tmp_path / "p.jsonl", tmp_path / "o.txt", tmp_path / "out.csv"
    prompts.write_text(json.dumps(FILLER) + '\n"a cat"\n')
    ordinary.write_text(f"{FILLER}\n" + "".join(f"a cat {i}\n" for i in range(49)))
    run = ("--model", "testbed", "--num-inference-steps", "4")
    said = f"1 of 2 prompts were cut: {SAYS.format('5 words')}"
    assert main(["scan", str(prompts), "--out", str(out), *run]) == 0
    assert said in capsys.readouterr().err and SAYS.format("5 words") in out.read_text()
    assert main(["generate", FILLER, "a cat", "--out", str(tmp_path / "pictures"), *run]) == 0
    assert said in capsys.readouterr().err
    assert main(["calibrate", str(ordinary), "--out", str(tmp_path), *run]) == 0
    assert said.replace("of 2", "of 50") in capsys.readouterr().err
    assert main(["explain", "--prompt", FILLER, "--method", "attention", *run]) == 0
    assert "note: cut off, the model never sees: word word word word word\n" in capsys.readouterr().out
