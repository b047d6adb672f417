r"""How many ordinary prompts a profile of ComfyUI's Calibrate node flags by mistake, and how many duplicates it flags.

The shipped prompts are calibrated by the code of the Calibrate node and the others scored by that of the Check Prompt
node, every prompt with a seed of its own. The prompts are those of ``false_positives.py``, the checkpoint is the test
bed's (``memguard testbed export --format checkpoint --vae kl``).

    COMFYUI_ROOT=/path/to/ComfyUI python benchmarks/false_positives_comfyui.py CHECKPOINT \
        [--num-images 4] [--limit N] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import types
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PIXELS = 128  # of the test bed's pictures


def enter() -> None:
    """Load ComfyUI, on the CPU, and the repository as a pack of its."""
    sys.path.insert(1, str(ROOT))
    pack = types.ModuleType("memguard_pack")
    pack.__path__ = [str(ROOT)]
    sys.modules["memguard_pack"] = pack
    warnings.filterwarnings("ignore")
    from memguard_pack.tests.hosts.comfyui import host

    host.enter()
    logging.getLogger().setLevel(logging.ERROR)


def run(checkpoint: Path, images: int, limit: int | None) -> list[dict]:
    """Calibrate, check, print a table; return its rows."""
    import comfy.sd
    import folder_paths
    import torch

    from benchmarks.false_positives import FIRST_SEED, groups, rows
    from memguard_pack.memguard import Guard
    from memguard_pack.memguard.hosts.comfyui import preflight, profiles
    from memguard_pack.memguard.hosts.comfyui.tokens import encode

    patcher, clip, *_ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=False, output_clip=True)
    latent = {"samples": torch.zeros(images, 4, PIXELS // 8, PIXELS // 8)}
    negative = encode(clip, "")
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.add_model_folder_path(profiles.FOLDER, folder, is_default=True)
        profile, *_ = profiles.calibrate(patcher, clip, latent)
    guard = Guard(profile=profile)

    def finding(text: str, seed: int) -> dict[str, Any]:
        found = preflight.check(guard, patcher, encode(clip, text), negative, latent, [seed]).findings[0]
        return {"below": found.below, "count": found.count}

    table = []
    for name, prompts in groups().items():
        found = [finding(text, FIRST_SEED + number) for number, text in enumerate(prompts[:limit])]
        table += rows(name, images, found)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument(
        "--num-images", type=int, default=1, help="of each prompt, one batch; the profile is over as many"
    )
    parser.add_argument("--limit", type=int, help="prompts of each group")
    parser.add_argument("--out", type=Path, help="rows as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["MEMGUARD_HOME"] = home
        enter()
        table = run(args.checkpoint.resolve(), args.num_images, args.limit)
    if args.out:
        args.out.write_text(json.dumps(table, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
