"""Marks, words and colours of a verdict: said once, told apart without colours, and readable."""

import re
from pathlib import Path

import pytest

from memguard.findings import VERDICTS
from memguard.wording import SIGNS
from tests.contrast import contrast

ROOT = Path(__file__).parents[2]
HOME = ("memguard/wording.py", "web/js/signs.js", "web/signs.css")
SHOWN = [p for room in ("memguard", "nodes", "extension", "web") for p in sorted((ROOT / room).rglob("*"))]
SHOWN = [p for p in SHOWN if p.suffix in (".py", ".js", ".css", ".html", ".jinja") and not p.as_posix().endswith(HOME)]
MARKS = re.compile("[■▲●◐○]|[\"'`]✓[\"'`]")  # "✓ Copied" is of no verdict
OWN = {c for sign in SIGNS.values() for c in (*sign.letters, *sign.badge)} - {"inherit", "#ffffff"}
COLOURS = re.compile("|".join(OWN))
WORDS = re.compile("|".join(sign.words for sign in SIGNS.values()), re.IGNORECASE)


def test_there_is_something_to_search():
    assert {"web/js/verdict.js", "memguard/hosts/webui/shown.py"} <= {p.relative_to(ROOT).as_posix() for p in SHOWN}


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_has_a_sign_of_its_own(path):
    text = path.read_text(encoding="utf-8")
    assert not MARKS.search(text) and not COLOURS.search(text)
    if path.suffix == ".js":
        lines = [line for line in text.splitlines() if not line.lstrip().startswith(("//", "*", "/*"))]
        assert not WORDS.search("\n".join(lines))


def test_verdicts_are_told_apart_without_colours():
    assert list(SIGNS) == [*VERDICTS, "unknown"]
    assert len({sign.mark for sign in SIGNS.values()}) == len({sign.words for sign in SIGNS.values()}) == len(SIGNS)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_letters_can_be_read_on_either_theme(verdict):
    light, dark = SIGNS[verdict].letters
    for page in ("#ffffff", "#f3f4f6"):
        assert contrast(light, page) >= 4.5
    for page in ("#0b0f19", "#1f2937"):
        assert contrast(dark, page) >= 4.5


@pytest.mark.parametrize("verdict", SIGNS)
def test_a_badge_can_be_read(verdict):
    assert contrast(*SIGNS[verdict].badge) >= 4.5
