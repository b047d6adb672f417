"""What watching costs in a real ComfyUI: time, network rows and pixels, with and without MemGuard on the same model.

    COMFYUI_ROOT=/path/to/ComfyUI python benchmarks/overhead.py [--pairs 30] [--side 64] [--steps 10] [--json]
    ... --read entropy      # the detector attention_entropy as well: attention is read at the first step
    ... --read maps         # and at every step, as for the maps of a run that is explained; no budget is set for it
    ... --treat attention_scaling   # a mitigation node in place of a guard: the pixels change, the budget is 1.02

Each pair is one guarded and one free run of the same workflow, in alternating order, so that a busy machine slows both
alike. The budget (DESIGN.md section 7) is a median ratio of at most 1.01. Random weights: a network's time does not
depend on their values.
"""

import argparse
import json
import random
import statistics
import sys
import time
import types
from pathlib import Path

BUDGET, BUDGET_TREATED = 1.01, 1.02


def mount() -> None:
    """Make this repository importable under the name that the tests use, and ComfyUI beside it."""
    pack = types.ModuleType("memguard_pack")
    pack.__path__ = [str(Path(__file__).parents[1])]
    sys.modules["memguard_pack"] = pack
    from memguard_pack.tests.hosts.comfyui import host

    if host.root() is None:
        sys.exit(host.REASON)
    host.enter()


def interval(ratios: list[float], draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def measure(pairs: int, side: int, steps: int, read: str, treat: str | None) -> dict[str, object]:
    """Run the pairs and return the numbers."""
    mount()
    import torch

    from memguard_pack.memguard import Guard
    from memguard_pack.memguard.hosts.comfyui.explanation import Explanation
    from memguard_pack.memguard.hosts.comfyui.watcher import Watcher
    from memguard_pack.tests.hosts.comfyui import tiny

    class _Maps(Explanation):
        """Reads attention at every step and weighs no word."""

        taken = True

    model = tiny.build("sd15")
    detectors = ["text_noise_norm"] if read == "nothing" else ["text_noise_norm", "attention_entropy"]
    watcher = Watcher(Guard(detectors))
    if read == "maps":
        watcher._explanation = lambda: _Maps(None, lambda: (), "never")
    watched = watcher.install(model)
    positive, negative, image = tiny.prompt(seed=1, tokens=77), tiny.prompt(seed=2, tokens=77), tiny.latent(side=side)
    if treat:
        from memguard_pack.memguard.hosts.comfyui import graph
        from memguard_pack.memguard.hosts.comfyui.treating import Treater
        from memguard_pack.tests.hosts.comfyui import scene

        graph.prompt_texts = lambda *_: [scene.PROMPT]  # what the workflow would say
        model, clip, negative = scene.built("sd15")
        positive = scene.encode(clip)
        watched = Treater(scene.made(treat), clip).install(model)
    rows: list[int] = []
    model.model.diffusion_model.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))

    def run(patcher) -> tuple[float, int, torch.Tensor]:
        rows.clear()
        began = time.perf_counter()
        with torch.inference_mode(bool(treat)):  # what nodes load are inference tensors
            latent = tiny.sample(patcher, positive, negative, image, steps=steps)
        return time.perf_counter() - began, sum(rows), latent

    for patcher in (model, watched):
        run(patcher)
    ratios, spare, free_seconds, equal = [], 0, [], True
    for number in range(pairs):
        order = (model, watched) if number % 2 else (watched, model)
        results = {patcher is watched: run(patcher) for patcher in order}
        ratios.append(results[True][0] / results[False][0])
        free_seconds.append(results[False][0])
        spare += results[True][1] - results[False][1]
        equal &= torch.equal(results[True][2], results[False][2])
    low, high = interval(ratios)
    return {
        "pairs": pairs,
        "latent": [side, side],
        "steps": steps,
        "seconds_free": round(statistics.median(free_seconds), 3),
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_95": [round(low, 4), round(high, 4)],
        "milliseconds_more": round(1000 * (statistics.median(ratios) - 1) * statistics.median(free_seconds), 2),
        "extra_rows": spare,
        "torch_equal": equal,
        "budget": BUDGET_TREATED if treat else BUDGET,
    }


def main() -> int:
    """Print the numbers; exit code 1 where the budget or an identity is broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=30, help="guarded and free runs to compare, at least 20")
    parser.add_argument("--side", type=int, default=64, help="of the latent; 64 is a picture of 512 px")
    parser.add_argument("--steps", type=int, default=10, help="sampling steps per run")
    parser.add_argument("--read", choices=("nothing", "entropy", "maps"), default="nothing", help="attention")
    parser.add_argument("--treat", metavar="NAME", help="a mitigation, applied to every run")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args()
    if options.pairs < 20:
        parser.error(f"--pairs is {options.pairs}; fewer than 20 pairs say nothing on a busy machine")
    result = measure(options.pairs, options.side, options.steps, options.read, options.treat)
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:18} {value}")
    good = result["ratio_median"] <= result["budget"] and result["extra_rows"] == 0
    good = good and result["torch_equal"] != bool(options.treat)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
