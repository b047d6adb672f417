"""What watching costs a diffusers run on the test bed: seconds of the processor, watched and plain runs in turn.

Watched runs are in one ``attach``, as in a program that makes many pictures; ``--single`` attaches for each run, so
that the checkpoint is named each time. ``--by-step`` hides what rows tell of their prompt, so that the score comes from
what the scheduler receives. The budget (DESIGN.md section 7) is a median ratio of at most 1.01.

    python benchmarks/overhead_diffusers.py [--pairs 20] [--steps 20] [--single] [--by-step] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import ExitStack, nullcontext

import torch
from overhead import BUDGET, interval

from memguard import Guard
from memguard.hosts.diffusers.rows import Prompts, Unscored
from memguard.testbed import pipeline

PROMPT = "a photograph of a red bicycle"


def seconds(pipe, steps: int, block) -> float:
    """Return the processor's seconds of one run inside of a block."""
    generator = torch.Generator("cpu").manual_seed(0)
    before = time.process_time()
    with block:
        pipe(PROMPT, num_inference_steps=steps, generator=generator, output_type="latent")
    return time.process_time() - before


def hidden(self, text):
    raise Unscored("hidden by the benchmark")


def measure(pairs: int, steps: int, single: bool) -> dict[str, object]:
    """Run the pairs and return the numbers."""
    pipe = pipeline()
    pipe.set_progress_bar_config(disable=True)
    plain, ratios = [], []
    guard = Guard()
    for number in range(-1, pairs):  # the first one warms up
        both = {}
        for watched in (False, True) if number % 2 else (True, False):
            with ExitStack() as stack:
                block = guard.attach(pipe) if watched else nullcontext()
                if not single:
                    stack.enter_context(block)
                    block = nullcontext()
                    seconds(pipe, 1, block)  # names the checkpoint
                both[watched] = seconds(pipe, steps, block)
        if number >= 0:
            plain.append(both[False])
            ratios.append(both[True] / both[False])
    assert guard.report is not None and guard.report.findings[0].scores
    low, high = interval(ratios)
    return {
        "pairs": pairs,
        "steps": steps,
        "seconds plain": statistics.median(plain),
        "ratio": statistics.median(ratios),
        "95 %": [low, high],
        "within": statistics.median(ratios) <= BUDGET,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--single", action="store_true")
    parser.add_argument("--by-step", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.by_step:
        Prompts.roles = hidden
    found = measure(given.pairs, given.steps, given.single)
    if given.json:
        print(json.dumps(found))
        return
    low, high = found["95 %"]
    print(
        f"{given.pairs} pairs, plain {found['seconds plain']:.3f} s, ratio {found['ratio']:.4f} [{low:.4f}, {high:.4f}]"
    )


if __name__ == "__main__":
    main()
