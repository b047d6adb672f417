"""Prompts per second of ``memguard.scan`` beside a loop that takes one prompt at a time on the same model.

The loop does what a careful user writes: encode prompt and "" together, draw the latents, one guided UNet call, norms;
no picture is sampled to its end and nothing is decoded. Both run in turns in one process, so that a busy machine slows
both. Budget: at least 2 x, and memory flat in the number of prompts (DESIGN section 7).
    python benchmarks/scan_speed.py --model testbed --prompts 64 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import memguard
from memguard import testbed
from memguard.calibration import ordinary_prompts

STEPS = 50


def loop(pipe, prompts: list[str], images: int) -> list[float]:
    """Score each prompt alone; return the mean norm per prompt."""
    scores = []
    size = pipe.unet.config.sample_size
    for prompt in prompts:
        with torch.no_grad():
            cond, uncond = pipe.encode_prompt(prompt, pipe.device, images, True)
            pipe.scheduler.set_timesteps(STEPS)
            t = pipe.scheduler.timesteps[0]
            x = torch.randn(images, 4, size, size, generator=torch.Generator("cpu").manual_seed(0))
            x = pipe.scheduler.scale_model_input(x.to(pipe.device, pipe.dtype) * pipe.scheduler.init_noise_sigma, t)
            both = pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=torch.cat([uncond, cond])).sample.float()
        u, c = both.chunk(2)
        scores.append(float((c - u).flatten(1).norm(dim=1).mean()))
    return scores


def scan(pipe, prompts: list[str], images: int) -> list[float]:
    """The same by ``memguard.scan``."""
    return [r.findings[0].score for r in memguard.scan(pipe, prompts, num_images=images, num_inference_steps=STEPS)]


def resident() -> float:
    """Return the largest resident size of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def measure(pipe, count: int, images: int, rounds: int, clock: str) -> dict:
    """Return median seconds of both, their ratio per round, and the largest relative difference of scores."""
    texts = ordinary_prompts()
    prompts = [f"{texts[i % len(texts)]} {i}" for i in range(count)]
    times: dict[str, list[float]] = {"loop": [], "scan": []}
    results = {}
    for turn in range(rounds + 1):
        for name, function in (("loop", loop), ("scan", scan)):
            started = CLOCKS[clock]()
            results[name] = function(pipe, prompts, images)
            if turn:  # the first round warms up
                times[name].append(CLOCKS[clock]() - started)
    worst = max(abs(a - b) / b for a, b in zip(results["scan"], results["loop"], strict=True))
    ratios = [a / b for a, b in zip(times["loop"], times["scan"], strict=True)]
    return {
        "prompts": count,
        "images": images,
        "loop_prompts_per_second": count / statistics.median(times["loop"]),
        "scan_prompts_per_second": count / statistics.median(times["scan"]),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "largest_relative_difference": worst,
    }


def memory(pipe, count: int) -> dict:
    """Return the growth of the resident size from the first 100 prompts to ``count``, MiB."""
    reports = memguard.scan(pipe, (f"prompt number {i}" for i in range(count)), num_inference_steps=STEPS)
    early = 0.0
    for index, _ in enumerate(reports):
        if index == 99:
            early = resident()
    return {"prompts": count, "resident_after_100_mib": early, "growth_mib": resident() - early}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="testbed", help="testbed, testbed-wide, or a diffusers folder (SD1, SD2)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-prompts", type=int, default=2000)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: for a CPU that others use as well")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.model.startswith("testbed"):
        pipe = testbed.pipeline(wide=options.model.endswith("wide"))
    else:
        from diffusers import StableDiffusionPipeline

        pipe = StableDiffusionPipeline.from_pretrained(options.model, use_safetensors=True, local_files_only=True)
    pipe = pipe.to(options.device)
    figures = [measure(pipe, options.prompts, images, options.rounds, options.clock) for images in options.images]
    kept = memory(pipe, options.memory_prompts) if options.memory_prompts else None
    if options.json:
        print(json.dumps({"model": options.model, "speed": figures, "memory": kept}))
        return
    for row in figures:
        print(
            f"{row['images']} image(s): loop {row['loop_prompts_per_second']:.1f}/s,"
            f" scan {row['scan_prompts_per_second']:.1f}/s, ratio {row['ratio']:.2f}"
            f" (rounds {min(row['ratios']):.2f}..{max(row['ratios']):.2f}),"
            f" scores differ by at most {row['largest_relative_difference']:.1e}"
        )
    if kept:
        print(f"memory: {kept['growth_mib']:.1f} MiB more after {kept['prompts']} prompts than after 100")


if __name__ == "__main__":
    main()
