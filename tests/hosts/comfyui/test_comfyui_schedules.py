"""Prompts with a syntax of their own: parts that act later are named as not scored, and words have names or none."""

import pytest
import torch

from memguard_pack.memguard import Guard
from memguard_pack.memguard.hosts.comfyui import graph, screen, weighing
from memguard_pack.memguard.hosts.comfyui.syntax import encoded_from
from memguard_pack.memguard.hosts.comfyui.watcher import Watcher
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.scene import built
from memguard_pack.tests.hosts.comfyui.test_comfyui_explain import encode
from memguard_pack.tests.hosts.comfyui.test_comfyui_words import profile

LATER = "which begins at 50% of the schedule, was not scored"


@pytest.fixture
def run(monkeypatch):
    """A function that samples a prompt of parts, each a text with its limits, and returns the report."""

    def sample(typed, *parts, clip=True, explain="never", join=False):
        model, encoding, negative = built("sd15")
        made = {"s": {"class_type": "KSampler", "inputs": {"positive": ["p", 0]}}}
        made["p"] = {"class_type": "PCLazyTextEncode", "inputs": {"clip": ["c", 0], "text": typed}}
        monkeypatch.setattr(screen, "running_prompt", lambda prompt_id: made)
        monkeypatch.setattr(screen, "place", lambda: (None, "s"))
        watcher = Watcher(Guard(profile=profile(model, 1e-7)), clip=encoding if clip else None, explain=explain)
        with torch.inference_mode():
            vectors = [(encode(encoding, text)[0][0], limits) for text, limits in parts]
            positive = [[found, {**limits}] for found, limits in vectors]
            if join:
                positive = [[torch.cat([found for found, _ in vectors], 1), {}]]
            latent = tiny.sample(watcher.install(model), positive, negative, tiny.latent(), steps=4)
        return watcher.report_of(latent)

    return sample


FIRST, SECOND = {"start_percent": 0.0, "end_percent": 0.5}, {"start_percent": 0.5, "end_percent": 1.0}


def test_the_text_that_comes_later_is_named_as_not_scored(run):
    report = run("a [fox:cat:0.5] in snow", ("a fox in snow", FIRST), ("a cat in snow", SECOND))
    assert f"the part 'a cat in snow' of the prompt, {LATER}" in report.notes
    assert report.prompt == "a fox in snow | a cat in snow" and report.findings[0].score > 0
    unnamed = run("a [fox:cat:0.5] in snow", ("a fox in snow", FIRST), ("a cat in snow", SECOND), clip=False)
    assert f"a part of the prompt, {LATER}" in unnamed.notes


def test_a_prompt_without_times_has_no_such_note(run):
    report = run("a fox", ("a fox", {}))
    assert not any("was not scored" in note for note in report.notes)
    whole = run("a fox", ("a fox", {"start_percent": 0.0, "end_percent": 1.0}))
    assert not any("was not scored" in note for note in whole.notes)


@pytest.mark.parametrize(
    ("typed", "parts", "join"),
    [
        ("red fox BREAK blue whale", ("red fox", "blue whale"), True),
        ("red fox AND blue whale :0.7", ("red fox", "blue whale"), False),
        ("[red fox:blue whale:0.5]", ("red fox", "blue whale"), False),
    ],
)
def test_words_of_a_syntax_have_names(run, typed, parts, join):
    report = run(typed, *[(part, {}) for part in parts], explain="always", join=join)
    words = [span.text for span in report.attribution.spans if span.group == "word"]
    assert report.attribution.status == "ok" and words == ["red", "fox", "blue", "whale"]
    assert len(report.attribution.weights) == len(report.attribution.spans)


def test_words_without_names_are_none_with_one_reason(run):
    report = run("styled: (a fox)++", ("a fox, masterpiece", {}), explain="always")
    assert report.attribution.status == weighing.NO_TEXT and report.attribution.spans == ()
    assert report.attribution.weights == () and report.maps == ("noise_gap",) and report.prompt is None


def test_a_part_without_names_leaves_those_of_the_others(run):
    report = run("red fox AND ++", ("red fox", {}), ("something else", {}), explain="always")
    found = report.attribution
    assert [span.text for span in found.spans if span.group == "word"] == ["red", "fox"]
    assert found.status == "ok" and weighing.NO_PART in found.notes and len(found.weights) == len(found.spans)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a fox", ["a fox"]),
        ("a BREAK b", ["a BREAK b", "a", "b"]),
        ("a :1.2 AND b:-.5", ["a :1.2 AND b:-.5", "a :1.2", "b:-.5", "a", "b"]),
        ("a [b:c:0.5] d", ["a [b:c:0.5] d", "a b d", "a c d"]),
        ("a [b:0.5]", ["a [b:0.5]", "a", "a b"]),
        ("a [b::0.5]", ["a [b::0.5]", "a b", "a"]),
        ("[a:[b:c:.8]:.5]", ["[a:[b:c:.8]:.5]", "a", "b", "c"]),
        ("BREAKFAST at noon", ["BREAKFAST at noon"]),
    ],
)
def test_what_a_syntax_is_encoded_from(text, expected):
    assert list(encoded_from([text])) == expected


def test_many_changes_end():
    assert len(encoded_from(["".join(f"[a{i}:b{i}:.5]" for i in range(40))])) < 40
    assert graph.prompt_texts({}, None, "positive") == []
