"""The same score in ComfyUI and in diffusers: same checkpoint, same starting noise, same sigma (the first of 50 steps).

    python benchmarks/parity.py diffusers FOLDER                                  # needs the ``diffusers`` extra
    COMFYUI_ROOT=/path/to/ComfyUI python benchmarks/parity.py comfyui FOLDER      # needs ComfyUI's requirements

The first command writes a checkpoint and its scores into FOLDER, the second compares. Both compute in float32.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from overhead import mount

TOLERANCE = 1e-3
TIMESTEP = 981
CHECKPOINT, SCORES = "memguard-testbed.safetensors", "scores.json"


def main() -> int:
    """Do one of the two halves; exit code 1 where a score differs by more than 1e-3."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("host", choices=("diffusers", "comfyui"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=6, help="duplicates and held-out prompts, each")
    options = parser.parse_args()
    if options.host == "diffusers":
        return in_diffusers(options.folder, options.prompts)
    return in_comfyui(options.folder)


def noise(index: int):
    """Return the starting noise of one prompt, [1, 4, 16, 16]."""
    import torch

    return torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(index))


def interrupt(pipe, step: int, timestep: int, values: dict) -> dict:
    """End a run after its first step, as diffusers documents it."""
    pipe._interrupt = True
    return values


def in_diffusers(folder: Path, count: int) -> int:
    """Write the checkpoint, and the scores that a pipeline of the same networks gives."""
    import torch

    from memguard import Guard, testbed
    from memguard.testbed import export

    export.to_checkpoint(folder / CHECKPOINT, dtype=torch.float32)
    prompts = [o.caption for o in testbed.originals()][:count] + testbed.prompts("held")[:count]
    pipe, guard, scores = testbed.pipeline(wide=True), Guard(), {}
    # ComfyUI scales noise that starts below its largest sigma by sigma / sqrt(1 + sigma^2)
    scale = math.sqrt(1 - float(pipe.scheduler.alphas_cumprod[TIMESTEP]))
    for index, prompt in enumerate(prompts):
        with guard.attach(pipe):
            pipe(prompt, latents=noise(index) * scale, output_type="latent", callback_on_step_end=interrupt)
        scores[prompt] = guard.report.findings[0].score
    (folder / SCORES).write_text(json.dumps({"model": guard.report.model, "scores": scores}))
    print(f"wrote {folder / CHECKPOINT} and the scores of {len(scores)} prompts")
    return 0


def in_comfyui(folder: Path) -> int:
    """Load the checkpoint as CheckpointLoaderSimple does and compare each first step's score."""
    mount()
    import comfy.sample
    import comfy.samplers
    import comfy.sd
    import torch

    from memguard_pack.memguard import Guard
    from memguard_pack.memguard.hosts.comfyui.watcher import Watcher

    expected = json.loads((folder / SCORES).read_text())
    options = {"dtype": torch.float32}
    patcher, clip, _, _ = comfy.sd.load_checkpoint_guess_config(str(folder / CHECKPOINT), model_options=options)
    guard = Guard()
    watched = Watcher(guard).install(patcher)
    sigma = float(patcher.get_model_object("model_sampling").sigma(torch.tensor(float(TIMESTEP))))
    sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([sigma, 0.0])
    empty, worst = clip.encode_from_tokens_scheduled(clip.tokenize("")), 0.0
    for index, (prompt, own) in enumerate(expected["scores"].items()):
        positive, image = clip.encode_from_tokens_scheduled(clip.tokenize(prompt)), torch.zeros(1, 4, 16, 16)
        comfy.sample.sample_custom(
            watched, noise(index), 5.0, sampler, sigmas, positive, empty, image, disable_pbar=True, seed=index
        )
        here = guard.report.findings[0].score
        worst = max(worst, abs(here - own) / own)
        print(f"{here:.6f} {own:.6f} {abs(here - own) / own:.1e}  {prompt}")
    print(f"ComfyUI, diffusers, relative difference; the largest is {worst:.1e}, allowed {TOLERANCE:.0e}")
    print(f"fingerprints: {guard.report.model} in ComfyUI, {expected['model']} in diffusers")
    return int(worst > TOLERANCE or guard.report.model != expected["model"])


if __name__ == "__main__":
    sys.exit(main())
