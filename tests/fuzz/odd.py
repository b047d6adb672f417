"""Odd things from a seeded generator: texts, numbers, JSON values, bytes that were whole before."""

import json
import math
from random import Random
from typing import Any

WORDS = "a red fox house cat on the roof Halley breakfast at noon - press kit".split()
TEXTS = (
    "",
    " ",
    "\ud800",
    "a \udfff b",
    "\x1b[31mred",
    "\x9b2J\x7f",
    "\x00",
    "a\rb",
    "two\nlines",
    'said "so", twice; or\tmore',
    '"',
    "caf\u00e9 \u732b \u0639\u0631 \U0001f98a",
    "\u202egnp.xof",
    "\u2028\u2029",
    "\ufeffmark",
    "x" * 3000,
    "word " * 90,
    "((((deep:1.3):1.3)",
    "../../etc/passwd",
    "%s%n{0}{}",
    "-",
    "--out",
    "NaN",
    "sep=;",
)
NUMBERS = (0, -1, 1, 2, 7, 8, 64, 1.5, 1e-300, 1e300, math.nan, math.inf, -math.inf, 2**31, 2**63, 10**30, 10**400)


def prompt(random: Random) -> str:
    """A prompt; most are ordinary."""
    if random.random() < 0.4:
        return random.choice(TEXTS)
    return " ".join(random.choices(WORDS, k=random.randint(1, 8)))


def value(random: Random) -> Any:
    """A JSON value of any kind."""
    kind = random.randrange(7)
    if kind == 0:
        return random.choice(TEXTS)
    if kind == 1:
        return random.choice(NUMBERS)
    if kind == 2:
        return random.choice((None, True, False))
    if kind == 3:
        return [value(random) for _ in range(random.randrange(3))]
    if kind == 4:
        return {prompt(random)[:20]: value(random) for _ in range(random.randrange(3))}
    if kind == 5:
        return nest(random.choice((3, 200)))
    return prompt(random)


def nest(depth: int) -> list:
    """A list in a list in a list."""
    inner: list = []
    for _ in range(depth):
        inner = [inner]
    return inner


def text(value: Any) -> str:
    """JSON text, with numbers and constants that are no JSON."""
    return json.dumps(value, ensure_ascii=False)


def changed(random: Random, values: Any) -> Any:
    """A copy of JSON values with one of them replaced, left out or added."""
    values = json.loads(json.dumps(values))
    place = values
    while True:
        if isinstance(place, dict) and place:
            key = random.choice(sorted(place))
        elif isinstance(place, list) and place:
            key = random.randrange(len(place))
        else:
            return value(random)
        if not isinstance(place[key], dict | list) or not place[key] or random.random() < 0.3:
            break
        place = place[key]
    if random.random() < 0.2:
        del place[key]
    else:
        place[key] = value(random)
    if isinstance(place, dict) and random.random() < 0.1:
        place[prompt(random)[:20]] = value(random)
    return values


PIECES = (b"\x00", b"\xff\xfe", b'"', b"\n", b"\r", b",", b"[" * 3000, b"9" * 5000, b"NaN", b"\xed\xa0\x80", b"\x1a")


def damaged(random: Random, data: bytes) -> bytes:
    """Bytes with some of them cut off, left out, doubled, flipped or put in."""
    for _ in range(random.choice((1, 1, 2, 5))):
        start = random.randint(0, len(data))
        end = min(len(data), start + random.choice((1, 4, 64, 1000)))
        kind = random.randrange(6)
        if kind == 0:
            data = data[:start]
        elif kind == 1:
            data = data[:start] + data[end:]
        elif kind == 2:
            data = data[:end] + data[start:]
        elif kind == 3:
            data = data[:start] + bytes(random.randrange(256) for _ in range(end - start)) + data[end:]
        elif kind == 4:
            data = data[:start] + random.choice(PIECES) + data[start:]
        else:
            data = data[:start] + bytes(byte ^ (1 << random.randrange(8)) for byte in data[start:end]) + data[end:]
    return data
