"""Parameters of the wrong kind, as a box for text, a command line or a script may give them: one line, no TypeError."""

from dataclasses import fields

import pytest

from memguard import mitigations
from memguard.troubles import Refused

GIVEN = {"paraphrase": {"text": "a crimson fox"}}
NAMES = [name for name in mitigations.available() if name != "neuron_mask"]


@pytest.mark.parametrize("value", ["word", [1], {}, float("nan"), True, b"1"])
@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_the_wrong_kind_is_one_line(name, value):
    for field in fields(mitigations.get(name, **GIVEN.get(name, {}))):
        try:
            mitigations.get(name, **{**GIVEN.get(name, {}), field.name: value})
        except Refused as refused:
            assert field.name in str(refused) and "\n" not in str(refused)


@pytest.mark.parametrize(
    ("name", "settings", "line"),
    [
        (
            "attention_scaling",
            {"bos_scale": "word"},
            "attention_scaling: bos_scale is 'word'; give a number above 0, such as 1.25; 1 changes nothing",
        ),
        ("attention_scaling", {"mask_padding": 1}, "attention_scaling: mask_padding is 1; give true or false"),
        (
            "noise_adjustment",
            {"rounds": 2.5},
            "noise_adjustment: rounds is 2.5; give a whole number of at least 0, such as 2",
        ),
        ("noise_adjustment", {"lr": True}, "noise_adjustment: lr is True; give a learning rate above 0"),
        ("paraphrase", {"text": 3}, "paraphrase: text is 3; give a text"),
        ("padding", {"strength": None}, "padding: strength is None; give a number between 0 and 1; 0 changes nothing"),
    ],
)
def test_the_line_says_what_is_wrong_and_what_to_give(name, settings, line):
    with pytest.raises(Refused) as refused:
        mitigations.get(name, **settings)
    assert str(refused.value) == line


def test_numbers_may_be_whole_and_what_may_be_nothing_may_be_nothing():
    assert mitigations.get("attention_scaling", bos_scale=2, strength=1).bos_scale == 2
    assert mitigations.get("noise_adjustment", lr=None, iterations=None).lr is None
    assert type(mitigations.get("noise_adjustment", rounds=2.0).rounds) is int  # as a box for text gives it
