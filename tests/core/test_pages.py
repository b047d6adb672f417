"""HTML from templates: whatever a text holds, it stays text, and the page needs nothing from elsewhere."""

from dataclasses import fields
from html.parser import HTMLParser

import numpy as np
import pytest

from memguard.pages import rendered
from memguard.pages.report import Card, Section, Strip, page
from memguard.records import Attribution, Finding, Report, TokenSpan
from memguard.wording import SIGNS

HOSTILE = "</style></title><script>alert(1)</script>\" onload='x' &amp; {{ 7 * 7 }} {% if %}"
PICTURE = np.zeros((4, 6, 3), np.uint8)
WORDS = Attribution("gradient", (TokenSpan(HOSTILE, (1,)), TokenSpan("", (0,), "bos")), (0.75, -0.25))


class Seen(HTMLParser):
    """What a browser would see: the tags, the texts between them, and the attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


def report(**more):
    finding = Finding("x", (5.0,), (0.05,), verdict="memorized", threshold_source=HOSTILE, caveat=HOSTILE)
    return Report("r", prompt=HOSTILE, findings=(finding,), **more)


def whole(text):
    pictures = ((text, PICTURE),)
    sections = [
        Section(text, text, (text, text), ((text, text),), (Card(report(), pictures, text),), WORDS, pictures),
        Section(text, bars=((text, 0.5, text),), strips=(Strip(text, "suspicious", text, text, pictures),)),
        Section("reason", cards=(Card(Report("r", findings=(Finding("x", status=text),))),)),
    ]
    used = {name for section in sections for name in vars(section) if getattr(section, name) not in ((), "", None)}
    assert used == {each.name for each in fields(Section)}, "every part of a section has its text here"
    return page(text, text, sections)


def test_no_text_of_a_page_becomes_markup():
    plain, seen = Seen(whole("plain")), Seen(whole(HOSTILE))
    assert seen.tags == plain.tags and "script" not in seen.tags
    assert seen.texts.count(HOSTILE) == plain.texts.count("plain") + 2  # the word and the prompt are hostile in both
    named = [value for name, value in seen.attributes if name == "alt"]
    assert named == [HOSTILE] * 3


def test_a_page_says_marks_words_scores_and_colours():
    text = page("t", "l", [Section("s", words=WORDS, cards=(Card(report()), Card(Report("r"))))])
    assert '<span class="badge memorized">■ looks memorized</span>: score 5, ' in text
    assert '<span class="badge unknown">? no verdict</span>: no score' in text
    assert "<small>0.75</small>" in text and "<small>-0.25</small>" in text and ">[BOS]</b>" in text
    for verdict, sign in SIGNS.items():
        light, dark = sign.letters
        assert f".{verdict}{{color:{light}}}\n@media(prefers-color-scheme:dark){{.{verdict}{{color:{dark}}}}}" in text


@pytest.mark.parametrize(("share", "wide"), [(0.5, "50.0"), (1.7, "100.0"), (-1.0, "0.0"), (0.1234, "12.3")])
def test_a_bar_is_as_wide_as_its_share(share, wide):
    assert f'<b style="width:{wide}%">' in page("t", "l", [Section("s", bars=(("label", share, "says"),))])


def test_columns_of_numbers_are_told_from_the_first():
    text = page("t", "l", [Section("s", header=("a", "b"), rows=(("1", "2"), ("3", "4")))])
    assert '<tr><th>a</th><th class="n">b</th></tr>' in text and '<tr><td>3</td><td class="n">4</td></tr>' in text


def test_a_page_needs_nothing_from_elsewhere_and_can_be_written():
    seen = Seen(whole("half \ud800"))
    assert not {"script", "link", "iframe"} & set(seen.tags)
    assert all(value.startswith("data:image/png;base64,") for name, value in seen.attributes if name == "src")
    whole("half \ud800").encode("utf-8")


@pytest.mark.parametrize(
    ("template", "values"),
    [
        ("failed.html", {"why": HOSTILE}),
        ("known.html", {"verdict": "memorized", "says": HOSTILE}),
        ("lines.html", {"lines": (HOSTILE,), "items": (HOSTILE,)}),
        ("profiles.html", {"name": HOSTILE, "headings": (HOSTILE,), "rows": ((HOSTILE,),)}),
    ],
)
def test_no_text_of_a_panel_becomes_markup(template, values):
    seen = Seen(rendered(template, **values))
    assert "script" not in seen.tags and any(HOSTILE in text for text in seen.texts)


def test_what_a_template_names_must_be_given():
    with pytest.raises(Exception, match="'why' is undefined"):
        rendered("failed.html")
