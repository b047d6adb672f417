"""Neuron sets from the result files of NeMo's scripts (memorization_statistics_*.csv).

Semicolons; columns Caption, URL, Initial Neurons, Initial SSIM, Refined Neurons, Refined SSIM. A cell of neurons is
a list of seven lists, for the down blocks' and the middle's layers of SD1; a list may name a neuron twice.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Literal

from ..records import NeuronSet
from ..troubles import Refused
from .files import HIGHEST

LAYERS = tuple(
    f"{place}.transformer_blocks.0.attn2"
    for place in (*(f"down_blocks.{i}.attentions.{j}" for i in range(3) for j in range(2)), "mid_block.attentions.0")
)
Kind = Literal["refined", "initial"]


def read_csv(path: Path | str, kind: Kind = "refined", model: str = "") -> list[tuple[str, NeuronSet]]:
    """Return (caption, neuron set) per row; prompts that did not look memorized have empty sets.

    Args:
        path: the file.
        kind: the "refined" or the "initial" neurons.
        model: fingerprint of the checkpoint that they were found on, where it is known; the file does not say.

    Raises:
        ValueError: in one line that names the row, if the file is not one of these.

    """
    if kind not in ("refined", "initial"):
        raise Refused(f"kind is {kind!r}; use refined or initial")
    neurons, ssim = f"{kind.capitalize()} Neurons", f"{kind.capitalize()} SSIM"
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter=";"))
            names = rows[0].keys() if rows else ()
    except OSError as error:
        raise Refused(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, csv.Error):  # also UnicodeDecodeError
        raise Refused(f"{path}: is no table of cells in UTF-8; give the result file of NeMo's script 3") from None
    missing = [name for name in ("Caption", neurons, ssim) if name not in names]
    if missing:
        raise Refused(f"{path}: has no column {missing[0]}; give the result file of NeMo's script 3")
    found = []
    for number, row in enumerate(rows, 2):
        try:
            lists, score = json.loads(row[neurons]), float(row[ssim])
            held = [i for part in lists for i in part]
            if len(lists) != len(LAYERS) or not all(type(i) is int and 0 <= i <= HIGHEST for i in held):
                raise ValueError
            if row["Caption"] is None or (held and not math.isfinite(score)):
                raise ValueError
        except (ValueError, TypeError, RecursionError):
            raise Refused(f"{path}: row {number}: {neurons} are not {len(LAYERS)} lists of numbers") from None
        indices = {name: tuple(sorted(set(part))) for name, part in zip(LAYERS, lists, strict=True) if part}
        said = f"NeMo's scripts, {kind} neurons; prompt: {row['Caption']}"
        found.append((row["Caption"], NeuronSet(indices, 0.0, model, said, None, score if indices else None)))
    return found
