"""How many of the prompts that ``memguard merge`` finds on the test bed are ordinary ones, at stated rates.

Lists of fresh ordinary prompts (``fresh_prompts.tsv``) with some duplicates of the training data among them, ranked by
the profile that is found. Each list has noise of its own. The realised
rate is the share of ordinary prompts among all found ones, over all lists, with Clopper and Pearson's interval; found
prompts of one list are not independent, so the interval is the narrowest that can be claimed.

    python benchmarks/false_discovery.py [--lists 5] [--copies 24 5] [--scores FILE.json] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from false_positives import DUPLICATES, groups, interval

import memguard
from memguard import testbed
from memguard.calibration import Profile, store
from memguard.calibration.discovery import adjusted, ordinary_share
from memguard.calibration.tail import fit_tail

FIRST_SEED = 700_000  # none of a calibration's
RATES = (0.05, 0.1, 0.2)
SPLITS = 500
NOISES = {"own": True, "one": False}


def scored(lists: int, limit: int | None) -> dict[str, dict[str, list[list[float]]]]:
    """Return RMS per noise, group and list; the lists of "one" noise have one seed each, the others one per prompt."""
    pipe = testbed.pipeline()
    found: dict[str, dict[str, list[list[float]]]] = {noise: {} for noise in NOISES}
    for noise, own in NOISES.items():
        for name in ("fresh", DUPLICATES):
            prompts = groups()[name]
            seeds = range(FIRST_SEED, FIRST_SEED + 10_000 * lists, 10_000)
            texts = prompts[:limit]
            found[noise][name] = [
                [r.findings[0].mean_rms for r in memguard.scan(pipe, texts, seed=seed, own_seeds=own)] for seed in seeds
            ]
            print(f"scored {lists} x {len(texts)} {name}, {noise} noise", flush=True)
    return found


def profile() -> Profile:
    """Return the profile that scans of the test bed find."""
    pipe = testbed.pipeline()
    (report,) = memguard.scan(pipe, ["a red fox"])
    return next(p for p in store.of_model(report.model) if p.conditions.negative == "empty")


def discoveries(
    ordinary: Sequence[float], copies: Sequence[float], p_value: Callable[[float], float], rate: float, estimate: bool
) -> tuple[int, int, float]:
    """Return ordinary prompts found, copies found, and the share of ordinary prompts that was used."""
    p_values = [[p_value(rms) for rms in part] for part in (ordinary, copies)]
    counts = Counter(p for part in p_values for p in part)
    share = ordinary_share(counts) if estimate else 1.0
    q_values = adjusted(counts, share)
    false, true = (sum(q_values[p] <= rate * (1 + 1e-9) for p in part) for part in p_values)
    return false, true, share


def row(label: str, rate: float, results: Sequence[tuple[int, int, float]], copies: int) -> dict:
    """Print and return what came of all lists of one kind."""
    false, true = (sum(each[i] for each in results) for i in (0, 1))
    low, high = interval(false, false + true) if false + true else (0.0, 1.0)
    mean = sum(f / max(f + t, 1) for f, t, _ in results) / len(results)
    share = sum(s for _, _, s in results) / len(results)
    power = true / (copies * len(results)) if copies else float("nan")
    print(
        f"{label:46} q={rate:4}: {false:>5} of {false + true:>6} found are ordinary ="
        f" {false / max(false + true, 1):6.2%} [{low:.2%}, {high:.2%}]; mean of lists {mean:6.2%};"
        f" copies found {power:.0%}; share {share:.2f}"
    )
    return {
        "kind": label, "rate": rate, "lists": len(results), "false": false, "found": false + true, "low": low,
        "high": high, "mean": mean, "power": power, "share": share,
    }  # fmt: skip


def by_profile(scores: dict, counts: Sequence[int], among) -> list[dict]:
    """Return rows for lists that are ranked by the profile at hand."""
    tail, table, draw = fit_tail(among), [], random.Random(0)
    print(f"{among.count} ordinary prompts; tail of {tail.count}: shape {tail.shape:.3f}, scale {tail.scale:.3g}")

    def assumed(rms: float) -> float:
        p = tail.p_value(rms)
        return among.p_value(rms) if p is None else p

    ways = [("own", "rank, estimated", among.p_value, True), ("own", "rank, share 1", among.p_value, False)]
    ways += [("own", "tail, estimated", assumed, True)]
    ways += [("one", "rank, estimated", among.p_value, True), ("one", "rank, share 1", among.p_value, False)]
    for noise, label, p_value, estimate in ways:
        for count in counts:
            for rate in RATES:
                results = []
                for ordinary, copies in zip(scores[noise]["fresh"], scores[noise][DUPLICATES], strict=True):
                    some = draw.sample(copies, min(count, len(copies)))
                    results.append(discoveries(ordinary, some, p_value, rate, estimate))
                table.append(row(f"{noise} noise, {count} copies, {label}", rate, results, count))
    return table


def by_splits(scores: dict, counts: Sequence[int]) -> list[dict]:
    """Return rows for lists that are ranked by the other half of the fresh prompts: the rate over calibrations."""
    table, draw = [], random.Random(1)
    for count in counts:
        for rate in RATES:
            results = []
            for number in range(SPLITS):
                lists = scores["own"]["fresh"]
                ordinary = draw.sample(lists[number % len(lists)], len(lists[0]))
                among = sorted(ordinary[: len(ordinary) // 2])
                copies = draw.sample(scores["own"][DUPLICATES][number % len(lists)], count)

                def p_value(rms: float, among: list[float] = among) -> float:
                    return (1 + len(among) - bisect_left(among, rms)) / (len(among) + 1)

                results.append(discoveries(ordinary[len(ordinary) // 2 :], copies, p_value, rate, True))
            table.append(row(f"{SPLITS} splits of the fresh, {count} copies, estimated", rate, results, count))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=int, default=5)
    parser.add_argument("--copies", type=int, nargs="+", default=[24, 5, 0], help="among the prompts of a list")
    parser.add_argument("--limit", type=int, help="prompts of each group")
    parser.add_argument("--scores", type=Path, help="keep the scores there, or take them from there")
    parser.add_argument("--out", type=Path, help="rows as JSON")
    options = parser.parse_args()
    if options.scores and options.scores.exists():
        scores = json.loads(options.scores.read_text(encoding="utf-8"))
    else:
        scores = scored(options.lists, options.limit)
        if options.scores:
            options.scores.write_text(json.dumps(scores), encoding="utf-8")
    table = by_profile(scores, options.copies, profile().distributions["text_noise_norm"])
    table += by_splits(scores, options.copies)
    if options.out:
        options.out.write_text(json.dumps(table, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
