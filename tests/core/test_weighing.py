"""Attributions of prompts that are combined of parts, and of texts that lie in one conditioning."""

import pytest

from memguard.attributions import weighing
from memguard.records import Attribution, Report, TokenSpan

FOX = Attribution(
    "ablation",
    spans=(TokenSpan("fox", (1,)), TokenSpan("", (0,), "bos")),
    weights=(2.0, 0.5),
    token_scores=(0.5, 2.0, 0.0),
    unit="fall",
    score=3.0,
    notes=("a note",),
)
WHALE = Attribution(
    "ablation",
    spans=(TokenSpan("whale", (2,)),),
    weights=(1.0,),
    token_scores=(0.0, 0.0, 1.0),
    unit="fall",
    score=3.0,
    notes=("a note", "another"),
)


def test_parts_keep_rows_of_their_own():
    found = weighing.join([FOX, WHALE])
    assert [(span.text, span.part) for span in found.spans] == [("fox", 0), ("", 0), ("whale", 1)]
    assert found.weights == (2.0, 0.5, 1.0) and found.token_scores == (0.5, 2.0, 0.0, 0.0, 0.0, 1.0)
    assert found.words == (("fox", 2.0), ("whale", 1.0)) and found.notes == ("a note", "another")
    again = Report.from_dict(Report(run="r", attribution=found, curve=((14.6, 0.1),), maps=("word 0",)).to_dict())
    assert again.attribution == found and again.curve == ((14.6, 0.1),) and again.maps == ("word 0",)


def test_shares_of_layers_are_joined_in_the_order_of_the_spans():
    one = Attribution("attention", (TokenSpan("fox", (1,)),), (0.5,), layers={"mid": (0.25,)})
    two = Attribution("attention", (TokenSpan("whale", (1,)),), (0.5,), layers={"mid": (0.75,)})
    assert weighing.join([one, two]).layers == {"mid": (0.25, 0.75)}


def test_texts_in_one_conditioning_share_its_columns():
    found = weighing.together([FOX, WHALE])
    assert [span.part for span in found.spans] == [0, 0, 0]
    assert found.weights == (2.0, 0.5, 1.0) and found.token_scores == (0.5, 2.0, 1.0)


def test_a_part_that_does_not_act_weighs_nothing_and_says_so():
    found = weighing.silent(FOX, 77, "not yet")
    assert found.weights == (0.0, 0.0) and found.token_scores == (0.0,) * 77
    assert found.notes == ("a note", "not yet") and found.score == pytest.approx(3.0)
