"""Peak memory and time of a token gradient beside a plain backward through the same UNet. Budget: half the memory.

Each mode runs in a process of its own, because a process never gives its peak back. Memory is the growth of the
resident set's peak over the loaded model; on CUDA it is the allocator's peak. Time is the median of the rounds.
    python benchmarks/gradient_memory.py --model DIR --side 32
    python benchmarks/gradient_memory.py --model sd15 --side 64 --rounds 1

"sd15" is a network of SD1.5's shape with random weights (3.4 GB in float32): memory and time depend on the shape alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
MODES = ("forward", "plain", "lean")


def measure(model: str, side: int, mode: str, rounds: int, device: str) -> dict[str, float]:
    """Return peak memory in MiB, seconds and the gradient's norm of one mode."""
    import torch
    from diffusers import UNet2DConditionModel

    from memguard.attributions.lean import lean

    if model == "sd15":
        torch.manual_seed(0)
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).to(device).eval()
    else:
        unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet", use_safetensors=True).to(device).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((1, 4, side, side), generator=generator).to(device)
    context = torch.randn((1, 77, unet.config.cross_attention_dim), generator=generator).to(device)
    on_cuda = device.startswith("cuda")
    before = torch.cuda.memory_allocated() if on_cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds, norm = [], 0.0
    for _ in range(rounds):
        started = time.perf_counter()
        with lean(unet) if mode == "lean" else contextlib.nullcontext():
            if mode == "forward":
                with torch.no_grad():
                    norm = float(unet(x, 981, context).sample.norm())
            else:
                leaf = context.clone().requires_grad_(True)
                (gradient,) = torch.autograd.grad(unet(x, 981, leaf).sample.norm(), leaf)
                norm = float(gradient.norm())
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if on_cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"MiB": (peak - before) / 2**20, "seconds": statistics.median(seconds), "norm": norm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, help="sd15, or a diffusers folder, such as memguard testbed export --wide writes"
    )
    parser.add_argument("--side", type=int, default=32, help="of the latent")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mode:
        print(json.dumps(measure(args.model, args.side, args.mode, args.rounds, args.device)))
        return
    found = {}
    for mode in MODES:
        command = [sys.executable, __file__, *sys.argv[1:], "--mode", mode]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[mode] = json.loads(done.stdout.splitlines()[-1])
        print(mode, json.dumps(found[mode]))
    lean, plain = found["lean"], found["plain"]
    ratios = {key: round(lean[key] / plain[key], 3) for key in ("MiB", "seconds", "norm")}
    print("lean / plain", json.dumps(ratios))


if __name__ == "__main__":
    main()
