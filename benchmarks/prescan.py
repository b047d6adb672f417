"""Would a first look at half the width and height do? What it promotes on the test bed, and which copies it loses.

Every prompt is scored at full and at smaller sizes, each on noise of its own. A prompt is promoted if it ranks high
enough among the shipped ordinary prompts at the small size. Two things are counted: the share of fresh ordinary
prompts that is promoted, which costs time, and the share of duplicates that is not, which is what a pre-scan loses:
of all of them, and of those that the full size flags at the 99th percentile. At last a threshold is chosen by half of
the duplicates and reported on the others, both ways round.

    python benchmarks/prescan.py [--device cuda] [--lists 8] [--scores FILE.json] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from false_positives import DUPLICATES, groups, interval

import memguard
from memguard import testbed
from memguard.bench.roc import auc
from memguard.calibration import ordinary_prompts

FULL = 128  # pixels
FIRST_SEED = 700_000  # none of a calibration's
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # of ordinary prompts that a threshold lets through
FLAGGED = 0.01
LOSS = 0.03  # of the flagged duplicates: "a few per cent"
CALIBRATION = "calibration"

Scores = dict[str, dict[str, list[list[float]]]]  # way -> group -> list -> RMS


def scored(pipe, ways: Iterable[tuple[int, int]], lists: int, limit: int | None) -> Scores:
    """Return the RMS of all prompts per way (size and images per prompt), group and list."""
    texts = {CALIBRATION: ordinary_prompts(), **groups()}
    found: Scores = {}
    for size, images in ways:
        way = found[f"{size} px, {images} image(s)"] = {}
        for number, (name, prompts) in enumerate(texts.items()):
            count = lists if name == DUPLICATES else 1
            seeds = [FIRST_SEED + 100_000 * number + 1000 * k for k in range(count)]
            way[name] = [rms(pipe, prompts[:limit], seed, size, images) for seed in seeds]
            print(f"scored {count} x {len(way[name][0])} {name} at {size} px, {images} image(s)", flush=True)
    return found


def rms(pipe, prompts: Sequence[str], seed: int, size: int, images: int) -> list[float]:
    """Return the RMS per prompt."""
    given = {"height": size, "width": size, "num_images": images, "own_seeds": True}
    return [r.findings[0].mean_rms or 0.0 for r in memguard.scan(pipe, prompts, seed=seed, **given)]


def p_values(way: dict[str, list[list[float]]], name: str) -> np.ndarray:
    """Return conformal p-values [list, prompt] of a group among the calibration of the same way."""
    among = sorted(way[CALIBRATION][0])
    p = [[(1 + len(among) - bisect_left(among, each)) / (len(among) + 1) for each in part] for part in way[name]]
    return np.array(p)


def share(hits: int, count: int) -> str:
    """Return a rate in words, with its interval."""
    low, high = interval(hits, count) if count else (0.0, 1.0)
    return f"{hits:>4} of {count:>4} = {hits / max(count, 1):6.1%} [{low:.1%}, {high:.1%}]"


def table(full: dict, small: dict, label: str) -> list[dict]:
    """Print and return what each threshold promotes and loses."""
    ordinary = {name: p_values(small, name) for name in small if name not in (CALIBRATION, DUPLICATES)}
    copies, flagged = p_values(small, DUPLICATES), p_values(full, DUPLICATES) <= FLAGGED
    negatives = np.array([each for name in ordinary for part in small[name] for each in part])
    logs = [np.log(np.maximum(np.array(way[DUPLICATES]), 1e-12)).ravel() for way in (full, small)]
    said = {
        "way": label,
        "auc": auc(np.array(small[DUPLICATES]).ravel(), negatives),
        "ratio of medians": float(np.median(np.array(small[DUPLICATES])) / np.median(negatives)),
        "correlation with full size": float(np.corrcoef(*logs)[0, 1]),
    }
    print(f"\n{label}: " + ", ".join(f"{name} {value:.3f}" for name, value in list(said.items())[1:]))
    rows = [said]
    for rate in SHARES:
        row = {"way": label, "rate": rate, "promoted": {}}
        for name, p in ordinary.items():
            row["promoted"][name] = [int((p <= rate).sum()), p.size]
        row["promoted"][DUPLICATES] = [int((copies <= rate).sum()), copies.size]
        row["lost"] = [int((flagged & (copies > rate)).sum()), int(flagged.sum())]
        middle = [np.median(c[f]) for c, f in zip(copies.T, flagged.T, strict=True) if f.any()]
        row["captions lost"] = [sum(bool(p > rate) for p in middle), len(middle)]
        rows.append(row)
        print(f"  top {rate:.0%}:")
        for name, (hits, count) in row["promoted"].items():
            print(f"    {name + ' promoted':45} {share(hits, count)}")
        print(f"    {'flagged at full size, lost':45} {share(*row['lost'])}")
        print(f"    {'the same by captions (median of their noises)':45} {share(*row['captions lost'])}")
    return rows


def chosen(full: dict, small: dict, label: str) -> list[dict]:
    """Print and return thresholds that half of the duplicates chooses, on the other half and on fresh prompts."""
    copies, flagged = p_values(small, DUPLICATES), p_values(full, DUPLICATES) <= FLAGGED
    order = random.Random(0).sample(range(copies.shape[1]), copies.shape[1])
    halves, rows = (order[::2], order[1::2]), []
    fresh = p_values(small, "fresh")
    for mine, other in (halves, halves[::-1]):
        kept = np.sort(copies[:, mine][flagged[:, mine]])
        if not len(kept):
            print(f"{label}: no duplicate of this half is flagged at full size")
            continue
        rate = float(kept[len(kept) - 1 - int(LOSS * len(kept))])
        lost = int((flagged[:, other] & (copies[:, other] > rate)).sum())
        row = {"way": label, "rate": rate, "lost": [lost, int(flagged[:, other].sum())]}
        row["promoted"] = [int((fresh <= rate).sum()), fresh.size]
        rows.append(row)
        print(f"  at most {LOSS:.0%} lost of half: top {rate:.1%}; other half lost {share(*row['lost'])};")
        print(f"    fresh promoted {share(*row['promoted'])}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lists", type=int, default=8, help="noises of each duplicate")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96], help="pixels")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2], help="per prompt, at the small sizes")
    parser.add_argument("--limit", type=int, help="prompts of each group")
    parser.add_argument("--scores", type=Path, help="keep the scores there, or take them from there")
    parser.add_argument("--out", type=Path, help="rows as JSON")
    options = parser.parse_args()
    if options.scores and options.scores.exists():
        scores = json.loads(options.scores.read_text(encoding="utf-8"))
    else:
        ways = [(FULL, 1), *((size, images) for size in options.sizes for images in options.images)]
        scores = scored(testbed.pipeline().to(options.device), ways, options.lists, options.limit)
        if options.scores:
            options.scores.write_text(json.dumps(scores), encoding="utf-8")
    (first, full), *others = scores.items()
    rows = table(full, full, f"{first} (the scan itself)")
    for label, small in others:
        rows += table(full, small, label) + chosen(full, small, label)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
