"""The shipped ordinary prompts: enough, varied, mixed from the first line on, none memorized."""

import json
import re
from pathlib import Path

import pytest

from memguard.calibration import ordinary_prompts

ROOT = Path(__file__).resolve().parents[2]
STYLES = {
    "one word": lambda text: re.fullmatch(r"\w+", text),
    "a phrase": lambda text: 2 <= len(text.split()) <= 8 and text.islower() and text.isascii() and "," not in text,
    "a sentence": lambda text: re.match(r"[A-Z].*[.]$", text) and len(text) < 120,
    "a long description": lambda text: len(text.split()) > 40,
    "tags": lambda text: text.count(",") >= 6 and len(text.split()) < 30,
    "quality words": lambda text: re.search(r"masterpiece|8k|4k|uhd|detailed|quality|award|sharp|high res", text),
    "an artist's style": lambda text: re.search(r" (by|style of|after|manner of) [A-Z]", text),
    "weights": lambda text: re.search(r"\(.*:\d\.\d+\)", text),
    "another script": lambda text: re.search(r"[\u0370-\uffff]", text) and re.search(r"\w", text),
    "a negative list": lambda text: re.search(
        r"bad|blur|lowres|deform|ugly|worst|no [a-z]+, no|poorly|extra|broken|duplicate|watermark|noise|text,", text
    ),
}


def test_there_are_enough_and_each_once():
    prompts = ordinary_prompts()
    assert len(prompts) >= 634
    assert len({text.casefold() for text in prompts}) == len(prompts)


@pytest.mark.parametrize("style", STYLES)
def test_every_prefix_is_mixed(style):
    """A profile of the first 50 must not be one of short phrases, nor the whole list."""
    prompts = ordinary_prompts()
    for count in range(50, len(prompts) + 1):
        assert sum(bool(STYLES[style](text)) for text in prompts[:count]) >= count // 40, (style, count)


def test_none_is_a_caption_of_the_test_bed_nor_among_the_fresh_ones():
    known = json.loads((ROOT / "memguard/testbed/assets/prompts.json").read_text(encoding="utf-8"))
    captions = {each["caption"] for each in known["originals"]}
    captions |= {text for name, texts in known.items() if name != "originals" for text in texts}
    lines = (ROOT / "benchmarks/fresh_prompts.tsv").read_text(encoding="utf-8").splitlines()
    fresh = [line.split("\t")[1] for line in lines]
    assert len(set(fresh)) == len(fresh) >= 300
    assert len({line.split("\t")[0] for line in lines}) >= 10
    assert not {*ordinary_prompts(), *fresh} & captions
    assert not set(ordinary_prompts()) & set(fresh)
