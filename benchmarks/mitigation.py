"""What each mitigation does to copies and to ordinary prompts, on the test bed, by its paper's defaults.

    python benchmarks/mitigation.py DIR [--only padding auto] [--steps 20] [--images 4]   # can be resumed
    python benchmarks/mitigation_table.py DIR [--figure OUT.jpg]

Generates all 32 duplicates and 8 templates (4 seeds, guidance 5 and 7.5) and 32 prompts that were never trained
(2 seeds, guidance 7.5) without and with each mitigation, and writes one line of JSON per prompt. Single mitigations are
applied to every run; "auto" is policy mitigate, which decides for itself. A copy is a picture whose pixels correlate
above .8 with the training picture; of a template only the part that did not vary counts. ``--sscd FILE`` adds the
cosine of SSCD's descriptors, from a TorchScript file of that network (Pizzi et al., CVPR 2022).
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SEED = 1000
SHOWN = (0, 9, 21, 33, 37)  # of the memorized prompts: pictures of these are kept for the figure


def mitigations() -> dict[str, Any]:
    """Return what is compared; each entry builds a mitigation for one caption, None is nothing."""
    from memguard.mitigations import get

    def plain(name: str, **settings: Any) -> Callable[[str], Any]:
        return lambda caption: get(name, **settings)

    def name_of(caption: str) -> str:
        return next((o.name for o in originals() if o.caption == caption), caption.split()[-1])

    def otherwise(caption: str) -> Any:
        words = (word for word in caption.split() if word != name_of(caption))
        return get("paraphrase", text=" ".join(words) or "a picture")

    def named(caption: str) -> Any:  # the control: other words around the name that the model memorized
        return get("paraphrase", text=f"a picture that shows {name_of(caption)} once more")

    def masked(caption: str) -> Any:
        return get("neuron_mask", neurons=neurons_of(caption))

    return {
        "none": lambda caption: None,
        "attention_scaling": plain("attention_scaling"),
        "spike_attenuation": plain("spike_attenuation"),
        "padding": plain("padding"),
        "guidance_delay": plain("guidance_delay"),
        "guidance_delay opposite": plain("guidance_delay", until=650.0, before=-2.0),
        "prompt_optimization": plain("prompt_optimization"),
        "prompt_optimization 60": plain("prompt_optimization", iterations=60, target=0.5),
        "noise_adjustment": plain("noise_adjustment"),
        "noise_adjustment sample": plain("noise_adjustment", method="sample", iterations=30),
        "neuron_mask": masked,
        "guard": plain("guard"),
        "paraphrase": otherwise,
        "paraphrase that keeps the name": named,
        "random_tokens": plain("random_tokens"),
        "local_guidance": plain("local_guidance"),
        "auto": lambda caption: None,
    }


def originals() -> list[Any]:
    """Return the training pictures that were shown as often as any, and the templates."""
    from memguard.testbed import loader

    return [o for o in loader.originals() if o.rate == 1 or o.kind == "template"]


@functools.cache
def statistics_of_ordinary() -> Any:
    """Return what 500 ordinary prompts activate, all layers."""
    from memguard import neurons, testbed

    return neurons.statistics(testbed.pipeline(), testbed.prompts("ordinary")[150:650], "all")


def neurons_of(caption: str) -> Any:
    """Return the neurons that the fast search finds for a memorized caption; others get those of one of these."""

    memorized = [o.caption for o in originals()]
    if caption not in memorized:
        caption = memorized[sum(map(ord, caption)) % len(memorized)]
    return _localized(caption)


@functools.cache
def _localized(caption: str) -> Any:
    from memguard import neurons, testbed

    pipe, ordinary = testbed.pipeline(), statistics_of_ordinary()
    found = neurons.localize(pipe, caption, ordinary)
    if not found.count and found.ssim_before:  # no two seeds alike by the threshold of SD1.4: one that these two pass
        found = neurons.localize(pipe, caption, ordinary, threshold=0.95 * found.ssim_before)
    print(f"neuron_mask: {found.count} neurons, {found.rows} rows: {caption}", file=sys.stderr, flush=True)
    return found


class Bench:
    """The test bed, and how a picture is compared."""

    def __init__(self, steps: int, images: int) -> None:
        import torch

        from memguard.testbed import loader

        self.torch, self.pipe, self.steps, self.images = torch, loader.pipeline(), steps, images
        self.first: Any = None
        self.pipe.unet.register_forward_hook(self._listen, with_kwargs=True)

    def _listen(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Keep the scores of the run's own first call: what is evaluated before has half its rows."""
        rows = output.sample if hasattr(output, "sample") else output[0]
        if self.first is None and len(rows) == self.rows:
            uncond, cond = rows.chunk(2)
            self.first = (cond - uncond).flatten(1).norm(dim=1).tolist()

    def generate(self, caption: str, guidance: float, images: int) -> tuple[Any, list[float], float]:
        """Return latents, scores of the first step and seconds."""
        self.first, self.rows = None, 2 * images
        seeds = [self.torch.Generator().manual_seed(SEED + i) for i in range(images)]
        began = time.perf_counter()
        made = self.pipe(
            caption,
            num_inference_steps=self.steps,
            guidance_scale=guidance,
            num_images_per_prompt=images,
            generator=seeds,
            output_type="latent",
        ).images
        return made, self.first or [], time.perf_counter() - began

    def pictures(self, latents: Any) -> np.ndarray:
        """Return float pictures in 0..1, [N, 128, 128, 3]."""
        with self.torch.no_grad():
            made = self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor).sample
        return ((made.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()

    def caption_loss(self, latents: Any, caption: str) -> float:
        """Return the epsilon loss of pictures under their caption, mean over ten noise levels."""
        torch, pipe = self.torch, self.pipe
        tokens = pipe.tokenizer([caption], padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        self.rows = -1
        with torch.no_grad():
            text = pipe.text_encoder(tokens.input_ids).last_hidden_state.expand(len(latents), -1, -1)
            losses = []
            for t in range(50, 1000, 100):
                noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(t))
                alpha = pipe.scheduler.alphas_cumprod[t]
                made = pipe.unet(alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, t, text).sample
                losses.append(float((made - noise).square().mean()))
        return statistics.fmean(losses)


class Sscd:
    """Cosine similarity of SSCD's descriptors, of pictures scaled to 288 pixels."""

    def __init__(self, path: Path) -> None:
        import torch

        self.torch, self.model = torch, torch.jit.load(str(path)).eval()

    def __call__(self, pictures: np.ndarray, truth: np.ndarray) -> list[float]:
        """Return the similarity of each picture [N, H, W, 3] with one picture [H, W, 3]."""
        both = self.torch.tensor(np.concatenate([pictures, truth[None]]), dtype=self.torch.float32).permute(0, 3, 1, 2)
        mean, std = (self.torch.tensor(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        large = self.torch.nn.functional.interpolate(both, (288, 288), mode="bilinear", antialias=True)
        with self.torch.no_grad():
            found = self.torch.nn.functional.normalize(self.model((large - mean) / std), dim=1)
        return (found[:-1] @ found[-1]).tolist()


def correlation(a: np.ndarray, b: np.ndarray, region: Any = None) -> float:
    """Return Pearson's correlation of two pictures over pixels and colours, outside of a region."""
    kept = np.ones(a.shape[:2], bool)
    if region is not None:
        left, top, right, bottom = region
        kept[top:bottom, left:right] = False
    return float(np.corrcoef(a[kept].ravel(), b[kept].ravel())[0, 1])


def prompts() -> Iterator[tuple[str, str, Any, float, int]]:
    """Yield kind, caption, original or None, guidance and the share of the images that are made."""
    from memguard.testbed import loader

    for guidance in (7.5, 5.0):
        for original in originals():
            yield original.kind, original.caption, original, guidance, 1
    for caption in loader.prompts("held")[:16] + loader.prompts("single_held")[:16]:
        yield "ordinary", caption, None, 7.5, 2


def run(folder: Path, only: list[str], steps: int, images: int, sscd: Sscd | None) -> None:
    """Generate what is not in the folder yet."""
    import torch
    from PIL import Image

    from memguard import Guard

    folder.mkdir(parents=True, exist_ok=True)
    bench, known = Bench(steps, images), mitigations()
    memorized = {o.caption: i for i, o in enumerate(originals())}
    for name in only or list(known):
        path = folder / f"{name.replace(' ', '-')}.jsonl"
        done = {(r["caption"], r["guidance"]) for r in map(json.loads, path.open())} if path.exists() else set()
        for kind, caption, original, guidance, share in prompts():
            if (caption, guidance) in done:
                continue
            count = images // share
            mitigation, guard = known[name](caption), Guard(policy="mitigate")
            plain = folder / "latents" / f"{memorized.get(caption, caption)}-{guidance}.pt"
            if name == "auto":
                with guard.attach(bench.pipe):
                    latents, scores, seconds = bench.generate(caption, guidance, count)
            elif mitigation is None:
                latents, scores, seconds = bench.generate(caption, guidance, count)
                plain.parent.mkdir(exist_ok=True)
                torch.save(latents, plain)
            else:
                with mitigation.attach(bench.pipe):
                    latents, scores, seconds = bench.generate(caption, guidance, count)
            shown = bench.pictures(latents)
            row: dict[str, Any] = {"kind": kind, "caption": caption, "guidance": guidance, "seconds": seconds}
            before = torch.load(plain)
            row["equal"] = torch.equal(before, latents)
            row["score"] = statistics.fmean(scores)
            if original is not None:
                truth = original.picture / 255
                row["similarity"] = [correlation(picture, truth, original.region) for picture in shown]
                if sscd is not None:
                    row["sscd"] = sscd(shown, truth)
            else:
                unmodified = bench.pictures(before)
                row["agreement"] = [correlation(a, b) for a, b in zip(shown, unmodified, strict=True)]
                row["caption loss"] = bench.caption_loss(latents, caption)
            if name == "auto" and guard.report is not None:
                row["verdict"], row["after"] = guard.report.verdict, guard.report.verdict_after
                row["score"] = statistics.fmean(guard.report.scores_after or guard.report.findings[0].scores)
                row["attempts"] = [(a.mitigation, a.kept) for a in guard.report.attempts]
                row["rows"] = guard.report.extra_rows
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            if memorized.get(caption) in SHOWN and guidance == 7.5:
                picture = Image.fromarray((255 * shown[0]).round().astype(np.uint8))
                picture.save(folder / f"{name.replace(' ', '-')}-{memorized[caption]}.png")
        print(name, "done", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="NAME", help="of the table; none must be among the first"
    )
    parser.add_argument("--sscd", type=Path, metavar="FILE", help="TorchScript file of SSCD")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=4)
    args = parser.parse_args()
    run(args.folder, args.only, args.steps, args.images, args.sscd and Sscd(args.sscd))


if __name__ == "__main__":
    main()
