"""NeMo's own search and the fast one, side by side: sets, MS-SSIM, UNet rows, seconds.

    python benchmarks/neurons.py testbed             # the shipped model, which shows no locality in neurons
    python benchmarks/neurons.py planted             # the same model, one prompt's memory turned into few neurons
    python benchmarks/neurons.py ranking             # which first-order attribution ranks candidates best

Both modes use the official noise, timestep and MS-SSIM (``parity="official"``). Rows are counted by the code: a row is
one latent through the UNet once; a row's backward pass counts three, since blocks are computed again.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

ORDINARY = 500  # prompts of the statistics


def main() -> int:
    """Print one table; exit code 1 where the fast set is larger, or above the threshold that both used."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=("testbed", "planted", "ranking"))
    parser.add_argument("--prompts", type=int, default=6, help="duplicated captions")
    parser.add_argument("--first", type=int, default=0, help="index of the first caption")
    parser.add_argument("--threshold", type=float, default=0.428)
    parser.add_argument("--layers", choices=("nemo", "all"), help="default: all where neurons are planted, else nemo")
    parser.add_argument("--ridge", type=float, help="of the planting (benchmarks/planting.py)")
    options = parser.parse_args()
    from memguard import testbed

    captions = [o.caption for o in testbed.originals()][options.first : options.first + options.prompts]
    if options.what == "ranking":
        return rank(captions)
    layers = options.layers or ("all" if options.what == "planted" else "nemo")
    print("| prompt | mode | neurons | planted | SSIM of seeds | SSIM blocked | reached | rows | seconds | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    ratios = [compare(caption, options, layers) for caption in captions]
    wrong = sum(larger for _, larger in ratios)
    share = sorted(ratio for ratio, _ in ratios)
    print(f"\nratio of rows, fast / official: median {share[len(share) // 2]:.3f}, largest {share[-1]:.3f}", end="")
    print(f"; fast sets that are larger than the official ones: {wrong}")
    return int(wrong > 0)


def compare(caption: str, options: argparse.Namespace, layers: str) -> tuple[float, bool]:
    """Print both modes' rows of the table; return the ratio of rows, and whether the fast set is larger."""
    from planting import RIDGE, plant

    from memguard import neurons, testbed

    pipe, ordinary = testbed.pipeline(), testbed.prompts("ordinary")
    planted = options.what == "planted"
    where = plant(pipe, caption, ordinary[:150], options.ridge or RIDGE) if planted else {}
    statistics = neurons.statistics(pipe, ordinary[150 : 150 + ORDINARY], None if layers == "nemo" else "all")
    found: dict[str, Any] = {}
    for mode in ("official", "fast"):
        started = time.perf_counter()
        neuron_set = neurons.localize(pipe, caption, statistics, mode, parity="official", threshold=options.threshold)
        seconds, found[mode] = time.perf_counter() - started, neuron_set
        inside = sum(len(set(indices) & set(where.get(n, ()))) for n, indices in neuron_set.indices.items())
        cells = [
            " ".join(caption.split()[:2]),
            mode,
            f"{neuron_set.count} of {candidates(neuron_set)}",
            str(inside) if planted else "-",
            number(neuron_set.ssim_before),
            number(neuron_set.ssim_after),
            "no" if "was not reached" in neuron_set.provenance else "yes",
            str(neuron_set.rows),
            f"{seconds:.1f}",
            "" if mode == "official" else f"{neuron_set.rows / found['official'].rows:.3f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
    return found["fast"].rows / found["official"].rows, found["fast"].count > found["official"].count


def candidates(neurons: Any) -> str:
    """Return how many candidates there were, from the provenance."""
    return next((part.split()[2] for part in neurons.provenance.split("; ") if " candidates (" in part), "0")


def number(value: float | None) -> str:
    """Return a score for the table."""
    return "-" if value is None else f"{value:.3f}"


def rank(captions: list[str]) -> int:
    """Print what blocking the heads of several rankings leaves of the noise difference (largest over the seeds)."""
    import torch

    from memguard import neurons, testbed
    from memguard.hosts.diffusers.probing import probe_of
    from memguard.neurons.attribution import gate_gradients
    from memguard.neurons.evaluation import Trials
    from memguard.neurons.outcome import flat
    from memguard.neurons.selection import candidates

    pipe, ordinary = testbed.pipeline(), testbed.prompts("ordinary")
    statistics, heads = neurons.statistics(pipe, ordinary[:ORDINARY]), (16, 32, 64, 96, 128)
    print(f"| prompt | ranking | {' | '.join(f'{head} blocked' for head in heads)} |\n|---|---|{len(heads) * '---|'}")
    for caption in captions:
        probe = probe_of(pipe, caption, 10, 1, None)
        trials = Trials(probe, "official")
        pool = flat(candidates(probe.activations(), statistics, 1.25, 15))
        images, opened = [0, 1, 2], {n: torch.ones(1, w) for n, w in probe.layers.items()}
        encoder = trials.probe.prompts.wished.head(1)  # the empty prompt
        gap = {n: torch.zeros(w) for n, w in probe.layers.items()}
        for image in images:
            x = trials.x[image : image + 1]
            with torch.no_grad():
                reference = pipe.unet(x, int(trials.t), encoder_hidden_states=encoder.text).sample
            gates = {n: gate.clone().requires_grad_() for n, gate in opened.items()}
            with probe.gradients(gates):
                loss = torch.linalg.vector_norm(probe.noise(x, trials.t, {}) - reference)
                for name, gradient in zip(gates, torch.autograd.grad(loss, list(gates.values())), strict=True):
                    gap[name] += gradient[0]
        rankings = {
            "MS-SSIM, gates of the candidates at 0": trials.gradients(pool, images, gate_gradients),
            "noise gap, gates at 1": gap,
            "noise gap, gates at 1, magnitude": {n: g.abs() for n, g in gap.items()},
            "z-score": statistics.zscores(probe.activations()),
            "activation": probe.activations(),
        }
        for title, values in rankings.items():
            order = sorted(sorted(pool), key=lambda neuron, values=values: -float(values[neuron[0]][neuron[1]]))
            left = [f"{trials.score(order[:head]):.3f}" for head in heads]
            print(f"| {' '.join(caption.split()[:2])} | {title} | {' | '.join(left)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
