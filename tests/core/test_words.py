"""Tokens laid over the text of a prompt: known answers."""

import pytest

from memguard.attributions.words import Token, merge, spans


def tokens(*pieces, padding=3):
    """Return BOS, one token per piece, EOS and padding; a piece that begins with + continues a word."""
    found = [Token(0, "", 1, "bos")]
    for piece in pieces:
        found.append(Token(len(found), piece.removeprefix("+"), 100 + len(found), opens=not piece.startswith("+")))
    found.append(Token(len(found), "", 2, "eos"))
    return found + [Token(len(found) + i, "", 2, "padding") for i in range(padding)]


def words(found):
    return [(span.text, span.columns) for span in found if span.group == "word"]


def test_sub_tokens_become_words_as_the_prompt_writes_them():
    found = spans(
        tokens("hal", "+ley", "'s", "1", "9", "2", "4", "breakfast", ",", "at", "-", "noon"),
        text := ("Halley's 1924 Breakfast, at-noon"),
    )
    assert words(found) == [
        ("Halley's", (1, 2, 3)),
        ("1924", (4, 5, 6, 7)),
        ("Breakfast", (8,)),
        (",", (9,)),
        ("at-noon", (10, 11, 12)),
    ]
    assert [text[slice(*s.place)] for s in found if s.place] == [s.text for s in found if s.group == "word"]
    assert found[0].ids == (101, 102, 103)


def test_bos_eos_and_padding_are_groups_of_their_own():
    found = spans(tokens("fox"), "fox")
    assert [(span.group, span.columns) for span in found[1:]] == [("bos", (0,)), ("eos", (2,)), ("padding", (3, 4, 5))]


def test_every_occurrence_of_a_word_counts_alone():
    assert words(spans(tokens("fox", "and", "fox"), "fox and fox")) == [("fox", (1,)), ("and", (2,)), ("fox", (3,))]


def test_syntax_that_no_token_carries_is_skipped():
    found = spans(tokens("a", "red", "fox", ",", "roof"), "a ((red fox:1.3)), [roof]")
    assert words(found) == [("a", (1,)), ("red", (2,)), ("fox", (3,)), (",", (4,)), ("roof", (5,))]


def test_a_word_that_the_tokenizer_rewrote_keeps_its_tokens_and_its_neighbours():
    found = spans(tokens("a", "caf", "+e", "fox"), "a Café fox")
    assert words(found) == [("a", (1,)), ("Café", (2, 3)), ("fox", (4,))]
    whole = spans(tokens("a", "cafe", "fox"), "a Ćafé fox")
    assert words(whole) == [("a", (1,)), ("cafe", (2,)), ("fox", (3,))]
    assert (whole[1].place, whole[2].place) == (None, (7, 10))


def test_an_embedding_of_several_vectors_is_one_word_under_its_name():
    parts = [Token(0, "", 1, "bos"), Token(1, "a", 5), Token(2, "<cat>", 9, name="<cat>")]
    parts += [Token(3, "<cat>", 10, name="<cat>", opens=False), Token(4, "hat", 6), Token(5, "", 2, "eos")]
    assert words(spans(parts, "a <cat> hat")) == [("a", (1,)), ("<cat>", (2, 3)), ("hat", (4,))]


def test_words_behind_the_last_column_are_named():
    found = spans(tokens("a", "red", padding=0), "a red fox, (roof)")
    assert words(found) == [("a", (1,)), ("red", (2,)), ("fox", ()), ("roof", ())]
    assert [s.text for s in spans(tokens("a", "red", padding=1), "a red fox") if s.group == "word"] == ["a", "red"]


def test_two_encoders_share_a_word():
    first, second = spans(tokens("fox", padding=1), "fox"), spans([Token(10, "fox", 7), Token(11, "", 2, "eos")], "fox")
    found = merge([first, second])
    assert [(s.group, s.columns, s.ids) for s in found] == [
        ("word", (1, 10), (101, 7)),
        ("bos", (0,), (1,)),
        ("eos", (2, 11), (2, 2)),
        ("padding", (3,), (2,)),
    ]


@pytest.mark.parametrize("prompt", ["", "   ", "???", "🙂 fox", "ﬁn", "İstanbul", "a\nb\tc"])
def test_any_text_has_spans(prompt):
    pieces = prompt.lower().split()
    found = spans(tokens(*pieces), prompt)
    assert sorted(c for span in found for c in span.columns) == list(range(len(pieces) + 5))
