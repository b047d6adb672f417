"""What watching costs in a real WebUI: time of whole generations with and without MemGuard's box, and their bytes.

The WebUI runs already, with --api, with this repository among its extensions and a checkpoint loaded:
    python benchmarks/webui_overhead.py http://127.0.0.1:7860 [--pairs 12] [--steps 20] [--side 128] [--explain]

Each pair is one watched and one plain generation of the same seed, in alternating order, so that a busy machine slows
both alike. The budget (DESIGN.md section 7) is a median ratio of at most 1.01. ``--explain`` explains every run as
well: words at the first step, attention read at every step; no budget is set for it.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import statistics
import time
import urllib.request

from PIL import Image


def generate(url: str, body: dict[str, object]) -> tuple[float, bytes]:
    """Return the seconds of one txt2img call, and the pixels of its picture."""
    request = urllib.request.Request(
        f"{url}/sdapi/v1/txt2img", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    begun = time.perf_counter()
    with urllib.request.urlopen(request, timeout=900) as reply:
        coded = json.load(reply)["images"][0]
    seconds = time.perf_counter() - begun
    return seconds, Image.open(io.BytesIO(base64.b64decode(coded))).convert("RGB").tobytes()


def interval(ratios: list[float], draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--explain", action="store_true")
    args = parser.parse_args()
    plain = {"prompt": "a red fox on a roof", "steps": args.steps, "width": args.side, "height": args.side}
    plain |= {"cfg_scale": 7.5, "sampler_name": "Euler", "scheduler": "Automatic", "save_images": False}
    settings = {"policy": "observe", "explain": "always" if args.explain else "flagged"}
    watched = plain | {"alwayson_scripts": {"MemGuard": {"args": [settings]}}}
    generate(args.url, plain | {"seed": 0})
    generate(args.url, watched | {"seed": 0})  # the fingerprint of the checkpoint is computed once
    ratios, seconds, same = [], [], 0
    for pair in range(args.pairs):
        found = {}
        for body in (plain, watched) if pair % 2 else (watched, plain):
            found[body is watched] = generate(args.url, body | {"seed": pair})
        ratios.append(found[True][0] / found[False][0])
        seconds.append(found[False][0])
        same += found[True][1] == found[False][1]
    low, high = interval(ratios)
    row = {
        "ratio": statistics.median(ratios),
        "95 %": [low, high],
        "seconds of a plain run": statistics.median(seconds),
    }
    print(json.dumps(row | {"pairs": args.pairs, "steps": args.steps, "side": args.side, "identical": same}))


if __name__ == "__main__":
    main()
