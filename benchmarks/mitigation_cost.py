"""What mitigations cost: time beside no mitigation, in alternating runs, and peak memory.

    python benchmarks/mitigation_cost.py time [--model testbed|wide|DIR] [--pairs 20] [--steps 10] [--side 256]
    python benchmarks/mitigation_cost.py memory [--model wide]

Budget (DESIGN.md section 7): attention scaling, padding mask and neuron mask take at most 1.02 of the wall time.
Each pair is one free and one mitigated run of the same prompt and seed, in alternating order, so that a busy machine
slows both alike; given are the median of the ratios and its 95 % bootstrap interval, of wall time and of the process's
own CPU time. "wide" is the test bed in SD1.5's widths. Memory is how far the resident set grows over the loaded model,
each mitigation in a process of its own, as a ratio to a run without (Linux).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from overhead import interval

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
BUDGET = 1.02
PROMPT = "a red fox on a roof"
FREE = ("attention_scaling", "spike_attenuation", "padding", "neuron_mask")  # what has a budget, or should keep one
COSTLY = ("guidance_delay", "guard", "noise_adjustment", "prompt_optimization")
MORE = ("local_guidance", "paraphrase", "random_tokens", "auto")


def pipeline(model: str) -> Any:
    """Return the model."""
    from memguard.testbed import loader

    if model in ("testbed", "wide"):
        return loader.pipeline(wide=model == "wide")
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(model, use_safetensors=True, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build(name: str, pipe: Any) -> Any:
    """Return a mitigation by its defaults; the neuron mask silences ten neurons of every layer, auto is a guard."""
    from memguard import Guard
    from memguard.hosts.diffusers.attention import cross_layers
    from memguard.mitigations import get
    from memguard.records import NeuronSet

    if name == "auto":
        return Guard(policy="mitigate")
    if name == "paraphrase":
        return get(name, text="a crimson fox above a house")
    if name != "neuron_mask":
        return get(name)
    return get(name, neurons=NeuronSet({layer: tuple(range(10)) for layer in cross_layers(pipe.unet)}))


def one(pipe: Any, mitigation: Any, steps: int, side: int) -> tuple[float, float]:
    """Generate once; return seconds of wall time and of CPU time. A guard gets a prompt that it mitigates."""
    import contextlib

    import torch

    from memguard import Guard
    from memguard.testbed import loader

    prompt = loader.originals()[0].caption if isinstance(mitigation, Guard) else PROMPT

    with contextlib.nullcontext() if mitigation is None else mitigation.attach(pipe):
        wall, own = time.perf_counter(), time.process_time()
        pipe(
            prompt,
            num_inference_steps=steps,
            height=side,
            width=side,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        )
        spent = time.perf_counter() - wall, time.process_time() - own
    if isinstance(mitigation, Guard) and not (mitigation.report and mitigation.report.attempts):
        sys.exit("auto did nothing: there is no profile of this model at this size; use --side 128")
    return spent


def said(ratios: list[float]) -> str:
    """Return the median and its 95 % bootstrap interval as text."""
    low, high = interval(ratios)
    return f"{statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]"


def times(args: argparse.Namespace) -> None:
    """Print the ratios of all mitigations."""
    pipe = pipeline(args.model)
    for name in args.only or (*FREE, *COSTLY, *MORE):
        mitigation = build(name, pipe)
        walls, owns = [], []
        warm = args.steps if name == "auto" else 1  # of a run of one step no profile knows the first one
        for _ in range(2):
            one(pipe, None, warm, args.side), one(pipe, mitigation, warm, args.side)
        for number in range(args.pairs):
            order = (None, mitigation) if number % 2 else (mitigation, None)
            found = {each is None: one(pipe, each, args.steps, args.side) for each in order}
            walls.append(found[False][0] / found[True][0])
            owns.append(found[False][1] / found[True][1])
        print(f"{name:20} wall {said(walls)}  CPU {said(owns)}", flush=True)


def peak(model: str, name: str, side: int) -> float:
    """Return how far memory grows over the loaded model during one run, in MiB."""
    pipe = pipeline(model)
    mitigation = None if name == "none" else build(name, pipe)
    found, over = [resident()], threading.Event()

    def watch() -> None:  # the system's own peak is that of loading
        while not over.wait(0.002):
            found.append(resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        one(pipe, mitigation, 20 if name == "auto" else 2, side)  # of a run of two steps no profile knows the first one
    finally:
        over.set()
        watcher.join()
    return (max(found) - found[0]) / 2**20


def resident() -> int:
    """Return the bytes of this process in memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def memory(args: argparse.Namespace) -> None:
    """Print the peaks of all mitigations, each in a process of its own."""
    plain = None
    for name in ("none", *(args.only or (*FREE, *COSTLY, *MORE))):
        command = [sys.executable, __file__, "memory", "--model", args.model, "--side", str(args.side), "--one", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        plain = plain or found
        print(f"{name:20} {found:7.0f} MiB  ratio {found / plain:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("time", "memory"))
    parser.add_argument("--model", default="testbed", help="testbed, wide, or a diffusers folder")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--side", type=int, default=128, help="of the picture")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(peak(args.model, args.one, args.side)))
    else:
        times(args) if args.what == "time" else memory(args)


if __name__ == "__main__":
    main()
