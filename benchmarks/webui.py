"""Does the exported checkpoint work in a WebUI? Generate memorized pictures through its API and compare.

The WebUI runs already, with --api and with the file of ``memguard testbed export --format checkpoint --vae kl FILE`` as
its checkpoint (A1111 also wants the .yaml beside it). The KL decoder paints the mean colour of each 8x8 block, so
pictures are compared by those means, less the picture's own mean colour.
    python benchmarks/webui.py http://127.0.0.1:7860 --out build/webui
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from memguard import testbed

BLOCK = 8


def means(picture: np.ndarray) -> np.ndarray:
    """Return the mean colour of each block less that of the picture, flat."""
    side = len(picture) // BLOCK
    blocks = picture.reshape(side, BLOCK, side, BLOCK, 3).astype(float).mean((1, 3))
    return (blocks - blocks.mean((0, 1))).ravel()


def generate(url: str, prompt: str, seed: int, steps: int) -> np.ndarray:
    """Return the picture of one txt2img call, uint8 [128, 128, 3]."""
    body = {"prompt": prompt, "seed": seed, "steps": steps, "width": 128, "height": 128, "cfg_scale": 5}
    body |= {"sampler_name": "Euler", "scheduler": "Automatic"}
    request = urllib.request.Request(
        f"{url}/sdapi/v1/txt2img", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as reply:
        data = json.load(reply)["images"][0]
    return np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, help="write the pictures here")
    args = parser.parse_args()
    originals = [o for o in testbed.originals() if o.kind == "verbatim"]
    known = np.stack([means(o.picture) for o in originals])
    chosen = [o for o in originals if o.rate == 1][:: max(1, 32 // args.pictures)][: args.pictures]
    held = testbed.prompts("held")[: args.pictures]
    for text, original in [*((o.caption, o) for o in chosen), *((text, None) for text in held)]:
        for seed in range(1, args.seeds + 1):
            picture = generate(args.url, text, seed, args.steps)
            found = np.array([np.corrcoef(means(picture), row)[0, 1] for row in known])
            best = originals[int(found.argmax())]
            row = {"prompt": text, "seed": seed, "nearest": best.name, "its correlation": round(float(found.max()), 3)}
            if original is not None:
                row["own correlation"] = round(float(found[originals.index(original)]), 3)
            print(json.dumps(row), flush=True)
            if args.out:
                args.out.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(args.out / f"{len(list(args.out.iterdir())):02d}-{best.name}-{seed}.png")


if __name__ == "__main__":
    main()
