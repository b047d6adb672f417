"""CLIP's byte-pair vocabulary and the seeded embedding of ids that were never trained."""

from __future__ import annotations

import gzip
import hashlib
import json
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np

BOS, EOS, VOCABULARY = 49406, 49407, 49408
TABLE_SEED, TABLE_STD = 20240611, 0.05
TABLE_SHA256 = "e04ee0279050499c731b975ec6716d9453d8dc3fec2ecf0cdbeed82752d3da07"
SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}


def embedding_table(width: int) -> np.ndarray:
    """Return the seeded token embedding, float32 [VOCABULARY, width].

    Built from PCG64's raw 64-bit words alone (the sum of four 16-bit uniforms each), because the distributions of
    numpy and torch may change between versions and the raw stream may not.
    """
    words = np.random.PCG64(TABLE_SEED).random_raw(VOCABULARY * width)
    total = np.zeros(words.shape, np.int64)
    for shift in (0, 16, 32, 48):
        total += ((words >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64)
    # four uniforms on 0..65535: mean 2 * 65535, standard deviation 65536 / sqrt(3)
    table = ((total - 2 * 65535) * (TABLE_STD * 3**0.5 / 65536)).astype(np.float32).reshape(VOCABULARY, width)
    digest = hashlib.sha256(table.tobytes()).hexdigest()
    if width == 128 and digest != TABLE_SHA256:
        raise RuntimeError(f"the seeded token embedding has hash {digest}, expected {TABLE_SHA256}; reinstall numpy")
    return table


def _byte_symbols() -> list[str]:
    """Return CLIP's printable stand-in for each byte, in the order of the vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


@lru_cache(maxsize=1)
def merges() -> tuple[str, ...]:
    """Return CLIP's 48894 merge rules, as ``left right``."""
    packed = resources.files(__package__).joinpath("assets/merges.txt.gz").read_bytes()
    return tuple(gzip.decompress(packed).decode("utf-8").splitlines())


def write_tokenizer(folder: Path) -> None:
    """Write the files that transformers' CLIPTokenizer reads."""
    symbols = _byte_symbols()
    vocabulary = symbols + [s + "</w>" for s in symbols] + ["".join(rule.split()) for rule in merges()]
    vocabulary += [SPECIAL["bos_token"], SPECIAL["eos_token"]]
    special = SPECIAL | {"pad_token": "<|endoftext|>"}
    settings = special | {
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
        "do_lower_case": True,
        "errors": "replace",
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "vocab.json": json.dumps({token: i for i, token in enumerate(vocabulary)}, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "\n".join(merges()) + "\n",
        "tokenizer_config.json": json.dumps(settings, indent=2),
        "special_tokens_map.json": json.dumps(special, indent=2),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
