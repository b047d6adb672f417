"""Train a LoRA on a folder of captioned pictures with a filter, a meter and a log of what is being memorized.

A plain loop of diffusers and peft for Stable Diffusion 1 and 2 (epsilon); what memguard adds is marked. Then ask what
came of it:

    pip install ".[diffusers,audit]"     # in the folder of memguard
    python examples/train_lora.py --model testbed --data PICTURES --held-out OTHERS --out lora --steps 400
    memguard audit --model testbed --lora lora/lora.safetensors --data PICTURES --held-out OTHERS --out audit

Pictures lie beside captions of the same name (a.png, a.txt) or under a metadata.jsonl. The held-out ones are of the
same kind, and never trained on.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import ImageOps
from torch.nn import functional

from memguard.audit.folder import Folder, pixels, read_folder
from memguard.lists import BadInput
from memguard.training import JsonLines, Meter, NormFilter, weighted

LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
DRAWS = 8  # of each held-out picture, for the thresholds
LEVELS = (0, 200, 400, 600, 800)  # timesteps from which each threshold holds
SECONDS = 10.0  # between two lines of progress


class Pictures:
    """The pictures of a folder as a network reads them: latents [N, 4, h, w], encoded captions [N, tokens, d]."""

    def __init__(self, pipe: Any, found: Folder, side: int, device: str) -> None:
        print(*found.notes, sep="\n", end="\n" if found.notes else "")
        self.names = [each.name for each in found.pictures]
        cut = [ImageOps.fit(pixels(each, 4 * side), (side, side)) for each in found.pictures]
        stacked = torch.from_numpy(np.stack([np.asarray(each) for each in cut])).permute(0, 3, 1, 2)
        captions = [each.caption for each in found.pictures]
        with torch.no_grad():
            encoded = [pipe.vae.encode(part.to(device) / 127.5 - 1) for part in stacked.split(8)]
            latents = [each.latents if hasattr(each, "latents") else each.latent_dist.mean for each in encoded]
            self.latents = torch.cat(latents) * pipe.vae.config.scaling_factor
            parts = (captions[i : i + 8] for i in range(0, len(captions), 8))
            self.texts = torch.cat([pipe.encode_prompt(part, device, 1, False)[0] for part in parts])

    def batches(self, size: int) -> list[list[int]]:
        """Return the numbers of all pictures in batches."""
        numbers = list(range(len(self.names)))
        return [numbers[i : i + size] for i in range(0, len(numbers), size)]


class Training:
    """One LoRA in training."""

    def __init__(self, args: argparse.Namespace, pipe: Any, data: Folder, held: Folder) -> None:
        self.args, self.pipe = args, pipe.to(args.device)
        self.unet, self.alphas = self.pipe.unet, self.pipe.scheduler.alphas_cumprod.to(args.device)
        self.pictures = Pictures(self.pipe, data, args.size, args.device)
        self.held = Pictures(self.pipe, held, args.size, args.device)
        self.unet.requires_grad_(False)
        torch.manual_seed(args.seed)
        self.unet.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=LAYERS))
        self.parameters = [each for each in self.unet.parameters() if each.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=args.rate)
        self.noise = torch.Generator().manual_seed(args.seed)
        # memguard: a log, a filter whose thresholds are those of held-out pictures, a meter
        self.log = JsonLines(args.out / "log.jsonl")
        with torch.no_grad():
            empty = self.pipe.encode_prompt([""], args.device, 1, False)[0]
        self.norm = NormFilter(self.thresholds(empty), empty, log=self.log)
        sides = ([(each, part) for part in each.batches(args.batch)] for each in (self.pictures, self.held))
        self.meter = Meter(self.loss, *sides, log=self.log)

    def noisy(self, pictures: Pictures, rows: Any, t: torch.Tensor, generator: torch.Generator) -> tuple[Any, Any]:
        """Return the noise that is to be predicted and latents under it."""
        clean = pictures.latents[rows]
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        alphas = self.alphas[t].view(-1, 1, 1, 1)
        return noise, alphas.sqrt() * clean + (1 - alphas).sqrt() * noise

    def thresholds(self, empty: torch.Tensor) -> dict[int, float]:
        """Return what one in twenty held-out pictures scores above, by noise level."""
        found = {}
        for level in LEVELS:
            judge = NormFilter(1.0, empty)  # its own threshold does not matter
            for draw, rows in ((draw, rows) for draw in range(DRAWS) for rows in self.held.batches(self.args.batch)):
                t = torch.randint(level, level + 200, (len(rows),), generator=self.noise).to(self.args.device)
                _, noisy = self.noisy(self.held, rows, t, self.noise)
                with torch.no_grad():
                    predicted = self.unet(noisy, t, self.held.texts[rows]).sample
                judge(self.unet, noisy, t, predicted, names=[(row, draw) for row in rows])
            found[level] = float(np.quantile([each.highest for each in judge.seen.values()], 0.95))
        return found

    def loss(self, batch: Any, timestep: int, generator: torch.Generator) -> torch.Tensor:
        """Return the losses of a batch at one noise level, for the meter."""
        pictures, rows = batch
        t = torch.full((len(rows),), timestep, device=self.args.device)
        noise, noisy = self.noisy(pictures, rows, t, generator)
        return functional.mse_loss(self.unet(noisy, t, pictures.texts[rows]).sample, noise, reduction="none")

    def step(self) -> float:
        """Do one step on a batch; return the loss of all of it, whatever was left out."""
        rows = torch.randint(0, len(self.pictures.names), (self.args.batch,), generator=self.noise).tolist()
        t = torch.randint(0, 1000, (len(rows),), generator=self.noise).to(self.args.device)
        noise, noisy = self.noisy(self.pictures, rows, t, self.noise)
        predicted = self.unet(noisy, t, self.pictures.texts[rows]).sample
        # memguard: the two lines
        weights = self.norm(self.unet, noisy, t, predicted, names=[self.pictures.names[i] for i in rows])
        losses = functional.mse_loss(predicted, noise, reduction="none")
        self.optimizer.zero_grad()
        weighted(losses, weights).backward()
        self.optimizer.step()
        return float(losses.detach().mean())


def load(model: str) -> Any:
    """Return a pipeline: of a diffusers folder, or the test bed that memguard ships.

    Raises:
        BadInput: for what is no such folder, and for a model that predicts something else than the noise.

    """
    if model == "testbed":
        from memguard import testbed

        return testbed.pipeline()
    from diffusers import StableDiffusionPipeline

    try:
        pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    except (OSError, ValueError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"{model}: cannot be loaded as a diffusers folder of Stable Diffusion 1 or 2 ({said})") from None
    if (kind := pipe.scheduler.config.prediction_type) != "epsilon":
        raise BadInput(f"{model}: predicts {kind}; this loop trains models that predict the noise (epsilon)")
    return pipe


def count(text: str) -> int:
    """Return a whole number from 1 on."""
    if (found := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return found


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="testbed", help="a diffusers folder, or testbed")
    parser.add_argument("--data", type=Path, required=True, help="folder of pictures with captions")
    parser.add_argument("--held-out", type=Path, required=True, help="folder of others that are not trained on")
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--size", type=count, default=128, help="pixels; 512 for Stable Diffusion 1 (default 128)")
    parser.add_argument("--steps", type=count, default=400)
    parser.add_argument("--every", type=count, default=50, help="steps between two readings of the meter")
    parser.add_argument("--batch", type=count, default=8)
    parser.add_argument("--rank", type=count, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    """Train and save."""
    args = arguments()
    try:
        if args.out.exists():
            raise BadInput(f"{args.out}: is there already; give another --out, or remove it")
        given = read_folder(args.data), read_folder(args.held_out)
        pipe = load(args.model)
        args.out.mkdir(parents=True)  # after what may be wrong, so that the next try finds no folder of this one
    except BadInput as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{args.out}: cannot be made ({error.strerror})")
    print("encodes the pictures and measures the held-out ones, for the thresholds", flush=True)
    training = Training(args, pipe, *given)
    print(f"trains {args.steps} steps on {len(training.pictures.names)} pictures", flush=True)
    said = time.monotonic()
    for step in range(args.steps):
        loss = training.step()
        if time.monotonic() - said > SECONDS:
            said = time.monotonic()
            print(f"step {step} of {args.steps}: loss {loss:.4f}", flush=True)
        if step % args.every == 0 or step == args.steps - 1:
            gaps = training.meter.measure(step, training.unet)
            print(f"step {step}: loss {loss:.4f}, gap {sum(each.gap for each in gaps) / len(gaps):.4f}", flush=True)
    state = get_peft_model_state_dict(training.unet)
    training.pipe.save_lora_weights(args.out, unet_lora_layers=state, weight_name="lora.safetensors")
    training.log.close()
    print(f"wrote {args.out / 'lora.safetensors'}; most often left out:")
    for name, seen in training.norm.left_out()[:10]:
        print(f"  {name}: {seen.above} of {seen.count} times")


if __name__ == "__main__":
    main()
