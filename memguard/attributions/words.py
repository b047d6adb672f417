"""From tokens to words: which token columns belong to which word of the prompt.

A word is what a person edits: letters and digits with what stands between them ("don't", "red-haired", "1924"), or a
run of punctuation. Tokenizers cut finer, and each in its own way, so tokens are laid back over the text of the prompt;
syntax that no token carries, such as the brackets of (word:1.3), is skipped. Every occurrence of a word counts alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..records import Group, TokenSpan

WORD = re.compile(r"\w+(?:[^\w\s]+\w+)*|[^\w\s]+")
GROUPS: tuple[Group, ...] = ("bos", "eos", "padding")


@dataclass(frozen=True)
class Token:
    """One column of an encoded prompt.

    Attributes:
        column: its index.
        text: what it stands for, without the marks that a tokenizer uses for spaces and ends of words.
        id: the tokenizer's id; -1 for a vector that has none (textual inversion in ComfyUI).
        group: what the column is.
        name: of a textual inversion, which may take several columns.
        opens: whether a new word begins here, for tokens that cannot be found in the text.
        emphasis: factor that the host gives to the token.

    """

    column: int
    text: str
    id: int = -1
    group: Group = "word"
    name: str | None = None
    opens: bool = True
    emphasis: float = 1.0


@dataclass
class _Open:
    """A word that tokens are still added to."""

    key: object
    tokens: list[Token]
    place: tuple[int, int] | None
    text: str


def spans(tokens: Sequence[Token], prompt: str, part: int = 0) -> tuple[TokenSpan, ...]:
    """Return the words of a prompt with their columns, then BOS, EOS and padding as far as there are any.

    Args:
        tokens: the columns of all chunks, in order; a prompt of several chunks has several BOS columns.
        prompt: the text.
        part: index of the prompt among those that act together.

    Returns:
        words in the order of the prompt. Words behind the last column have no columns: the model never sees them.

    """
    found: list[_Open] = []
    end, lost = 0, False  # where the last token ended; whether a token since then was not found
    lower = prompt.lower()
    if len(lower) != len(prompt):  # some letters become two; places would then be wrong
        lower = prompt
    words = [(match.start(), match.end()) for match in WORD.finditer(prompt)]
    for token in (t for t in tokens if t.group == "word"):
        if token.name is not None:
            start = prompt.find(token.name, end)
            if found and found[-1].key == token.name and not token.opens:
                found[-1].tokens.append(token)
                continue
            place = None if start < 0 else (start, start + len(token.name))
            found.append(_Open(token.name, [token], place, token.name))
            end = end if place is None else place[1]
            continue
        at = _after(lower, token.text.lower(), end, lost)
        lost = at is None
        if at is None:
            if token.opens or not found:
                found.append(_Open(None, [token], None, token.text))
                continue
            word = found[-1]
            word.tokens.append(token)
            if word.place is None:
                word.text += token.text
            elif isinstance(word.key, tuple):  # the rest of a word that the tokenizer writes in its own way
                word.place = (word.place[0], word.key[1])
                end, lost = word.key[1], False
            continue
        end = at + len(token.text)
        key = next((w for w in words if w[0] <= at < w[1]), (at, end))
        if found and found[-1].key == key:
            found[-1].tokens.append(token)
            found[-1].place = (found[-1].place or key)[0], end
        else:
            found.append(_Open(key, [token], (at, end), ""))
    result = [_span(word, prompt, part) for word in found]
    if _full(tokens) and not lost:
        cut = [(a, b) for a, b in words if a >= end and any(c.isalpha() for c in prompt[a:b])]
        result += [TokenSpan(prompt[a:b], (), place=(a, b), part=part) for a, b in cut]
    for group in GROUPS:
        columns = [t for t in tokens if t.group == group]
        if columns:
            ids = tuple(t.id for t in columns)
            result.append(TokenSpan("", tuple(t.column for t in columns), group, ids, part=part))
    return tuple(result)


def merge(parts: Sequence[Sequence[TokenSpan]]) -> tuple[TokenSpan, ...]:
    """Return one span per word where several text encoders read the same prompt, each in columns of its own."""
    found: dict[object, TokenSpan] = {}
    for part in parts:
        for span in part:
            key = span.group if span.group != "word" else span.place or (span.text, span.columns)
            first = found.get(key)
            columns, ids = span.columns, span.ids
            if first is not None:
                columns, ids = first.columns + columns, first.ids + ids
            found[key] = replace(span, columns=columns, ids=ids)
    in_text = [span for span in found.values() if span.group == "word"]
    return (*in_text, *(span for span in found.values() if span.group != "word"))


def _after(text: str, piece: str, start: int, lost: bool) -> int | None:
    """Return where a piece stands next; over another word only if the piece before was not found."""
    found = text.find(piece, start) if piece else -1
    if found < 0 or (not lost and re.search(r"[^\W\d_]", text[start:found])):
        return None
    return found


def _full(tokens: Iterable[Token]) -> bool:
    """Whether no column was left for padding, so that words may have been cut off."""
    return not any(token.group == "padding" for token in tokens)


def _span(word: _Open, prompt: str, part: int) -> TokenSpan:
    return TokenSpan(
        word.text if word.place is None or word.text else prompt[slice(*word.place)],
        tuple(token.column for token in word.tokens),
        ids=tuple(token.id for token in word.tokens),
        place=word.place,
        emphasis=word.tokens[0].emphasis,
        part=part,
    )
