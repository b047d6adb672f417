"""Does the entropy of cross-attention tell memorized prompts from others? AUC on the test bed's stages.

Positives are the fully duplicated captions, negatives captions that were held out: ordinary ones, and a rare name in
the grammar of the duplicates. The entropy depends on a prompt's length and form, so the second are the fair comparison.
The noise gap stands beside, from the same runs. E reads the first step (Ren et al.'s layer, and every other layer
beside it), D the whole run.
    python benchmarks/attention_entropy.py --stage early middle final
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from memguard import Guard, testbed
from memguard.bench.roc import auc, bootstrap
from memguard.detectors import attention_entropy, attention_entropy_late, text_noise_norm

LATE = "attention_entropy_late"


def evidence(pipe, prompts: list[str], steps: int, whole: bool) -> list[list]:
    """Return the evidence of one run per prompt, each from a starting noise of its own."""
    found = []
    for start in range(0, len(prompts), 16):
        some = prompts[start : start + 16]
        guard = Guard(detectors=["text_noise_norm", LATE if whole else "attention_entropy"])
        kept: list = []
        begin = guard.begin

        def keeping(begin=begin, kept=kept, **facts):
            run = begin(**facts)
            kept.append(run)
            return run

        guard.begin = keeping
        noise = [torch.Generator().manual_seed(1000 + start + i) for i in range(len(some))]
        with guard.attach(pipe):
            pipe(some, num_inference_steps=steps, generator=noise, output_type="latent")
        found += [[step.rows(slice(i, i + 1)) for step in kept[0].evidence] for i in range(len(some))]
    return found


def table(high: list[list], ordinary: list[list], alike: list[list], whole: bool) -> dict[str, str]:
    """Return the AUC of each score against both kinds of negatives, with 95 % bootstrap intervals."""
    layers = list(high[0][0].attention)
    scores = {
        "text_noise_norm, first step": lambda run: text_noise_norm.detect(run[:1]),
        "attention_entropy (E)": lambda run: attention_entropy.detect(run[:1]),
    }
    for name in layers:
        scores[f"E in {name}"] = lambda run, name=name: attention_entropy.detect(run[:1], layer=name)
    if whole:
        scores["attention_entropy_late (D)"] = attention_entropy_late.detect
        scores["D, parity official"] = lambda run: attention_entropy_late.detect(run, "official")
        scores["D without the change"] = lambda run: attention_entropy_late.detect(
            [replace(step, summary=torch.zeros_like(step.summary)) for step in run]
        )
    found = {}
    for name, score in scores.items():
        a, b, c = (np.array([score(run).scores[0] for run in runs]) for runs in (high, ordinary, alike))
        figures = bootstrap(auc, a, b), bootstrap(auc, a, c)
        found[name] = f"{figures[0]} | {figures[1]} | {a.mean():.3f} | {b.mean():.3f} | {c.mean():.3f}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", nargs="+", default=["early", "middle", "final"])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--negatives", type=int, default=32)
    parser.add_argument("--first-only", action="store_true", help="leave out D, which needs whole runs")
    args = parser.parse_args()
    positives = [original.caption for original in testbed.originals() if original.rate == 1]
    ordinary, alike = (testbed.prompts(kind)[: args.negatives] for kind in ("held", "single_held"))
    print(f"{len(positives)} memorized, {len(ordinary)} ordinary and {len(alike)} alike prompts, {args.steps} steps")
    for stage in args.stage:
        pipe = testbed.pipeline(stage)
        pipe.set_progress_bar_config(disable=True)
        runs = [evidence(pipe, prompts, args.steps, not args.first_only) for prompts in (positives, ordinary, alike)]
        print(f"\n{stage}\n| score | AUC, ordinary | AUC, same grammar | means | | |\n|---|---|---|---|---|---|")
        for name, figures in table(*runs, whole=not args.first_only).items():
            print(f"| {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
