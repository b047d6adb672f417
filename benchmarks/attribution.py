"""Do attributions point at what really drives the score? Measured on the test bed, where the answer is known.

Words: each method's weights on the 32 fully duplicated captions beside the causal effect of dropping a word, measured
on other starting noises. Maps: IoU of each map with the fixed region of the template families, at that region's size.
Intervals: 95 % percentile bootstrap over captions.
    python benchmarks/attribution.py words maps --stage final
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import memguard
from memguard import testbed
from memguard.attributions.maps import smooth

METHODS = {
    "gradient, input": {"method": "gradient", "respect_to": "input"},
    "gradient, encoded": {"method": "gradient", "respect_to": "encoded"},
    "ablation, drop": {"method": "ablation"},
    'ablation, "a"': {"method": "ablation", "substitute": "a"},
    "attention": {"method": "attention"},
}
OTHER_SEED = 1000  # the effect is measured on starting noises that no method has seen
ROUNDS = 2000


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval."""
    values = np.asarray(values, float)
    rng = np.random.default_rng(0)
    draws = [rng.choice(values, len(values)).mean() for _ in range(ROUNDS)]
    return float(values.mean()), *(float(v) for v in np.percentile(draws, [2.5, 97.5]))


def shown(values: np.ndarray) -> str:
    mean, low, high = interval(values)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def ranks(values: np.ndarray) -> np.ndarray:
    return values.argsort().argsort().astype(float)


def words(stage: str, images: int) -> dict[str, dict[str, str]]:
    """Return, per method, agreement with the causal effect and what editing the first word does."""
    pipe = testbed.pipeline(stage)
    originals = [o for o in testbed.originals() if o.rate == 1]
    found: dict[str, dict[str, list[float]]] = {
        name: {"first": [], "trigger": [], "spearman": [], "fall": [], "random": []} for name in METHODS
    }
    for original in originals:
        truth = memguard.explain(pipe, original.caption, "ablation", num_images=images, seed=OTHER_SEED)
        letters = np.array([any(c.isalpha() for c in word) for word, _ in truth.words])
        names = np.array([word for word, _ in truth.words])[letters]
        effect = np.array([weight for _, weight in truth.words])[letters]
        share = effect / truth.score
        for name, settings in METHODS.items():
            weights = memguard.explain(pipe, original.caption, num_images=images, **settings)
            weight = np.array([w for _, w in weights.words])[letters]
            first = int(weight.argmax())
            row = found[name]
            row["first"].append(first == effect.argmax())
            row["trigger"].append(names[first] == original.name)
            row["spearman"].append(float(np.corrcoef(ranks(weight), ranks(effect))[0, 1]))
            row["fall"].append(float(share[first]))
            row["random"].append(float(np.delete(share, first).mean()))
    keys = {
        "same first word": "first",
        "first is the trigger": "trigger",
        "Spearman": "spearman",
        "fall of the score, first word dropped": "fall",
        "another word dropped": "random",
    }
    return {name: {title: shown(row[key]) for title, key in keys.items()} for name, row in found.items()}


def iou(heat: np.ndarray, region: np.ndarray) -> float:
    """Return the IoU of a region with as many of the map's highest pixels."""
    order = heat.ravel().argsort(kind="stable")[::-1][: int(region.sum())]
    mask = np.zeros(region.size, bool)
    mask[order] = True
    return float((mask & region.ravel()).sum() / (mask | region.ravel()).sum())


def maps(stage: str, seeds: int) -> dict[str, dict[str, str]]:
    """Return, per map, the IoU with the fixed region of the template families."""
    pipe = testbed.pipeline(stage)
    known = {o.caption.split(",")[0]: o for o in testbed.originals() if o.kind == "template"}
    side = pipe.unet.config.sample_size
    readings: dict[str, Callable] = {
        "noise_gap": lambda a: a.maps["noise_gap"],
        "noise_gap, smoothed 3x3": lambda a: smooth(a.maps["noise_gap"][None], 3)[0],
        "bright_ending": lambda a: a.maps["bright_ending"],
        "word (the name)": lambda a: a.maps["word 0"],
        "chance": None,
    }
    found: dict[str, list[float]] = {name: [] for name in readings}
    rng = np.random.default_rng(0)
    for caption in testbed.prompts("template"):
        left, top, right, bottom = (v * side // 128 for v in known[caption.split(",")[0]].region)
        fixed = np.ones((side, side), bool)
        fixed[top:bottom, left:right] = False
        for seed in range(seeds):
            a = memguard.explain(
                pipe, caption, "attention", seed=seed, guidance_scale=5.0, maps=("noise_gap", "bright_ending", "word")
            )
            for name, read in readings.items():
                heat = rng.random((side, side)) if read is None else read(a).numpy()
                found[name].append(iou(heat, fixed))
    return {name: {"IoU": shown(np.reshape(values, (-1, seeds)).mean(1))} for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=("words", "maps"))
    parser.add_argument("--stage", default="final", choices=("early", "middle", "final"))
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    for what in args.what:
        table = words(args.stage, args.images) if what == "words" else maps(args.stage, args.seeds)
        print(f"{what}, stage {args.stage}")
        for name, row in table.items():
            print(json.dumps({"method": name, **row}, ensure_ascii=False))


if __name__ == "__main__":
    main()
