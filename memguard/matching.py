"""When two prompts count as the same, and which words of a prompt are worth looking for in another.

The rule: NFKC, case-folded; the number of an emphasis such as (word:1.3) goes, and every character that is no letter,
mark or digit separates words; words are joined by one space. So "(Halley:1.3), breakfast" is "halley breakfast", and
"red-haired" is the two words "red haired". Invisible format characters go without separating.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable

from .records import Attribution

MOST_WORDS = 8
LONGEST = 40  # characters of a word; beyond that it is a text without spaces, and no text is kept
SHORT = 3
EMPHASIS = re.compile(r":\s*[+-]?[\d.]+\s*(?=[)\]}])")
# English, of three letters or more; shorter words never count
STOP_WORDS = frozenset(
    "about above across after against all along among and any are around because been before behind being below "
    "beneath beside between both but did does doing down during each few for from had has have having her here hers "
    "him his how into its just more most near nor not off once one only onto other our out over own same she should "
    "some such than that the their them then there these they this those through too under until upon very was were "
    "what when where which while who whom whose why will with would you your".split()
)


def normal(text: str) -> str:
    """Return a text by which prompts are compared; empty where there is no letter and no digit."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(map(_part, EMPHASIS.sub("", text))).split())


def digest(normal_text: str) -> bytes:
    """Return the SHA-256 of a normal text, 32 bytes."""
    return hashlib.sha256(normal_text.encode()).digest()


def driving_words(attribution: Attribution | None) -> tuple[str, ...]:
    """Return the words with at least half of the largest weight, at most 8, in alphabetical order.

    None without a usable attribution, and none where one of them is longer than 40 characters. Alphabetical, so that
    they do not give away the order of the prompt.
    """
    if attribution is None or attribution.status != "ok":
        return ()
    weighed = [(weight, normal(text).split()) for text, weight in attribution.words if math.isfinite(weight)]
    weighed = sorted(((weight, words) for weight, words in weighed if words), key=lambda row: -row[0])
    if not weighed or weighed[0][0] <= 0:
        return ()
    heavy = [word for weight, words in weighed if weight >= weighed[0][0] / 2 for word in words]
    kept = list(dict.fromkeys(heavy))[:MOST_WORDS]
    return () if any(len(word) > LONGEST for word in kept) else tuple(sorted(kept))


def clue(words: Iterable[str]) -> str | None:
    """Return the longest word that says something, or None: no stop word and of three letters or more.

    In scripts that are written without spaces, shorter words say something, too.
    """
    telling = [word for word in words if word not in STOP_WORDS and (len(word) >= SHORT or min(word) >= "\u2e80")]
    return max(telling, key=len, default=None)


def _part(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cf":
        return ""
    return character if category[0] in "LMN" else " "
