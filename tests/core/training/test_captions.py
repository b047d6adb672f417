"""Captions that vary: how often and in what, and that no global generator moves."""

import random

import pytest
import torch

from memguard.training import Captions, text_noise
from memguard.troubles import Refused

CAPTION = "a red fox on a roof"
WORDS = ("stone", "lamp")


def changed(captions, count=400):
    return [made for made in (captions(CAPTION) for _ in range(count)) if made != CAPTION]


@pytest.mark.parametrize("kind", ["random_caption", "random_tokens", "word_repetition"])
def test_a_share_of_the_captions_is_changed(kind):
    before = random.getstate()
    found = changed(Captions(kind, share=0.4, words=WORDS, seed=1))
    assert random.getstate() == before
    assert 120 < len(found) < 200
    assert found == changed(Captions(kind, share=0.4, words=WORDS, seed=1))
    assert changed(Captions(kind, share=0, words=WORDS)) == []


def test_what_is_changed():
    own = CAPTION.split()
    for made in changed(Captions("random_caption", words=WORDS)):
        assert len(made.split()) == len(own) and set(made.split()) <= set(WORDS)
    for made in changed(Captions("word_repetition", times=2)):
        assert len(made.split()) == len(own) + 2 and set(made.split()) == set(own)
    for made in changed(Captions("random_tokens", times=1, words=WORDS)):
        words = made.split()
        assert len(words) in (len(own), len(own) + 1) and len(set(words) & set(WORDS)) == 1
    numbers = changed(Captions("random_tokens", times=1))
    assert all(any(word.isdecimal() for word in made.split()) for made in numbers)


def test_one_of_several_captions():
    captions = Captions("multiple_captions")
    assert {captions(["a", "b", "c"]) for _ in range(50)} == {"a", "b", "c"} and captions("a") == "a"
    with pytest.raises(Refused, match="changes one caption"):
        Captions("random_tokens")(["a", "b"])


def test_an_empty_caption_stays_one_or_gets_words():
    assert Captions("word_repetition", share=1)("") == ""
    assert Captions("random_caption", share=1, words=WORDS)("") in WORDS


def test_noise_has_the_scale_and_the_generator_that_were_given():
    encoded = torch.zeros(2, 77, 768, dtype=torch.float16)
    state = torch.random.get_rng_state()
    made = text_noise(encoded, 0.1, torch.Generator().manual_seed(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert made.dtype == torch.float16 and float(made.float().std()) == pytest.approx(0.1, rel=0.02)
    assert not torch.equal(made[0], made[1])


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"kind": "synonyms"}, "kind is 'synonyms'; use one of multiple_captions"),
        ({"kind": "random_tokens", "share": 1.5}, "share is 1.5; give a number from 0 to 1"),
        ({"kind": "random_caption"}, "random_caption needs words to draw from"),
    ],
)
def test_bad_settings_are_one_line(settings, line):
    with pytest.raises(Refused) as refused:
        Captions(**settings)
    assert str(refused.value).startswith(line)
