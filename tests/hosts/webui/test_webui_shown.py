"""Words, curve, maps and warnings as a person sees them; no host."""

import base64
import io
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from memguard import Guard
from memguard.hosts.webui.pictures import SHOWN, draw, full
from memguard.hosts.webui.session import Session
from memguard.hosts.webui.shown import INK, failed, html, known
from memguard.memory import PromptWarning
from memguard.records import Attribution, TokenSpan
from memguard.wording import SIGNS
from tests.contrast import contrast

SPANS = (TokenSpan("", (0,), "bos"), TokenSpan("a<b>", (1,)), TokenSpan("comet", (2, 3)), TokenSpan("", (4,), "eos"))
FOUND = Attribution("gradient", SPANS, (0.1, 0.2, 0.9, 0.3), (0.1, 0.2, 0.5, 0.4, 0.3), "a unit", 3.0, notes=("<i>",))
WARNING = PromptWarning("prompt", (), "memorized", 3.2, 99.9, "a.safetensors", 1, "2026-01-01")


@pytest.fixture
def session():
    made = Session(Guard(), "a1111", "v1", lambda: None)
    now = made.begin("pass", model="cafe", steps=3)
    gap = torch.zeros(2, 4, 8, 8)
    for rms in (0.5, 0.8, 0.2):
        now.follow(1.0, gap + rms)
    now.explanation = SimpleNamespace(words=lambda: FOUND, rows=2)
    tally = SimpleNamespace(
        left=(),
        bright_ending=lambda columns: torch.rand(2, 8, 8),
        word=lambda columns: torch.full((2, 8, 8), float(len(columns))),
    )
    now.reader = SimpleNamespace(tally=tally)
    made.end()
    return made


def test_a_pass_tells_its_words_curve_and_maps(session):
    (report,) = session.reports
    assert report.attribution is FOUND and report.extra_rows == 2
    assert [rms for _, rms in report.curve] == pytest.approx([0.5, 0.8, 0.2])
    assert report.maps == ("noise_gap", "bright_ending", "word 1", "word 2")
    torch.testing.assert_close(report.noise_gap_map, torch.full((2, 8, 8), 0.04))


def test_a_call_without_a_second_prediction_is_no_point_of_the_curve():
    made = Session(Guard(), "a1111", "v1", lambda: None)
    now = made.begin("pass")
    for rms in (0.5, 0.0, 0.2):
        now.follow(1.0, torch.full((1, 4, 8, 8), rms))
    made.end()
    assert [rms for _, rms in made.reports[0].curve] == pytest.approx([0.5, 0.2])


def test_the_panel_shows_words_with_their_ink_the_curve_and_the_pictures(session):
    draw(session, 0, torch.rand(2, 3, 64, 64))
    page = html(session)
    words = re.findall(r"currentColor (\d+)%, transparent\)\">([^<]*)</b><small>([^<]*)", page)
    assert [(word, weight) for _, word, weight in words] == [
        ("[BOS]", "0.1"),
        ("a&lt;b&gt;", "0.2"),
        ("comet", "0.9"),
        ("[EOS]", "0.3"),
    ]
    assert [int(ink) for ink, *_ in words] == [3, 7, 30, 10]  # the heaviest word has the strongest ink
    assert re.findall(r"font-weight:(\d+);border-bottom:([\d.]+)px", page) == [
        ("500", "1.3"),
        ("500", "1.7"),
        ("700", "4.0"),
        ("500", "2.0"),
    ]
    assert '<p><b class="memguard-unknown" aria-hidden="true">?</b> no score' in page
    assert 'aria-label="noise gap over 3 model calls, RMS: starts at 0.5, highest 0.8 at call 2, ends at 0.2"' in page
    assert "&lt;i&gt;" in page and "<i>" not in page
    assert re.findall(r'alt="([^"]*)"', page) == [
        "end of prompt, last step",
        "noise gap, last step",
        "word &#34;comet&#34;",
    ]
    (first, *_) = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    assert Image.open(io.BytesIO(base64.b64decode(first))).size == (64, 64)


def test_large_overlays_are_of_every_picture(session):
    pictures = torch.rand(2, 3, 64, 96)
    for show in SHOWN:
        made = full(session, 0, pictures, show)
        assert [np.asarray(picture).shape for _, picture in made] == [(64 + 24, 96, 3)] * 2
    assert full(session, 1, pictures, "noise gap") == []


@pytest.mark.parametrize(
    ("kind", "verdict", "line"),
    [
        ("prompt", "memorized", "MemGuard: this prompt looked memorized (score 3.2) before"),
        ("words", "suspicious", "MemGuard: a prompt with comet, &lt;halley may be memorized (score 3.2) before"),
    ],
)
def test_what_is_known_of_a_prompt_that_is_typed(kind, verdict, line):
    found = PromptWarning(kind, ("comet", "<halley"), verdict, 3.2, 99.9, "a.safetensors", 1, "2026-01-01")
    assert line in known(found)
    assert known(None) == ""


def test_why_there_are_no_words():
    made = Session(Guard(), "a1111", "v1", lambda: None)
    now = made.begin("pass")
    now.explanation = SimpleNamespace(words=lambda: Attribution("gradient", status="the gradient failed"), rows=0)
    made.end()
    assert "no words, because the gradient failed" in html(made)


@pytest.mark.parametrize("verdict", SIGNS)
def test_the_panel_brings_the_colours_of_both_themes(session, verdict):
    light, dark = SIGNS[verdict].letters
    style = f".memguard-{verdict}{{color:{light}}}.dark .memguard-{verdict}{{color:{dark}}}"
    assert html(session).count(style) == known(WARNING).count(style) == 1


def test_why_a_check_came_to_nothing():
    assert failed("<it>") == '<div class="memguard-panel"><p>MemGuard: no score, because &lt;it&gt;</p></div>'


def test_why_a_run_was_stopped_has_the_colour_of_a_memorized_one(session):
    session.stopped = "MemGuard: <stopped>"
    assert '<p class="memguard-memorized">MemGuard: &lt;stopped&gt;</p>' in html(session)


@pytest.mark.parametrize(("letters", "page"), [("#1f2937", "#ffffff"), ("#f3f4f6", "#0b0f19"), ("#f3f4f6", "#1f2937")])
def test_words_can_be_read_on_the_strongest_ink(letters, page):
    """The ink behind a word is mixed of the letters' own colour."""
    mixed = [
        round(int(a, 16) * INK / 100 + int(b, 16) * (1 - INK / 100))
        for a, b in ((letters[i : i + 2], page[i : i + 2]) for i in (1, 3, 5))
    ]
    assert contrast(letters, "#" + "".join(f"{part:02x}" for part in mixed)) >= 4.5


def test_a_curve_of_zeros_is_a_flat_line(session):
    session.reports[0] = replace(session.reports[0], curve=((14.6, 0.0), (3.0, 0.0)))
    assert 'points="0.0,60.0 240.0,60.0"' in html(session)
