"""What each mitigation does to copies and to ordinary prompts, on the test bed, by its paper's defaults.

    python benchmarks/mitigation.py run DIR [--only padding auto] [--steps 20] [--images 4]   # can be resumed
    python benchmarks/mitigation.py table DIR
    python benchmarks/mitigation.py figure DIR OUT.png

"run" generates all 32 duplicates and 8 templates (4 seeds, guidance 5 and 7.5) and 32 prompts that were never trained
(2 seeds, guidance 7.5) without and with each mitigation, and writes one line of JSON per prompt. Single mitigations are
applied to every run; "auto" is policy mitigate, which decides for itself. A copy is a picture whose pixels correlate
above .8 with the training picture; of a template only the part that did not vary counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

COPY = 0.8
SEED = 1000
SHOWN = (0, 9, 21, 33, 37)  # of the memorized prompts, in the figure


def mitigations() -> dict[str, Any]:
    """Return what is compared; each entry builds a mitigation for one caption, None is nothing."""
    from memguard.mitigations import get

    def plain(name: str, **settings: Any) -> Callable[[str], Any]:
        return lambda caption: get(name, **settings)

    def otherwise(caption: str) -> Any:
        name = next((o.name for o in originals() if o.caption == caption), caption.split()[-1])
        return get("paraphrase", text=" ".join(word for word in caption.split() if word != name) or "a picture")

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
        "noise_adjustment sample": plain("noise_adjustment", method="sample", iterations=100),
        "guard": plain("guard"),
        "paraphrase": otherwise,
        "random_tokens": plain("random_tokens"),
        "local_guidance": plain("local_guidance"),
        "auto": lambda caption: None,
    }


def originals() -> list[Any]:
    """Return the training pictures that were shown as often as any, and the templates."""
    from memguard.testbed import loader

    return [o for o in loader.originals() if o.rate == 1 or o.kind == "template"]


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


def run(folder: Path, only: list[str], steps: int, images: int) -> None:
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


def table(folder: Path) -> str:
    """Return the numbers of all mitigations as a table in Markdown."""
    head = "| mitigation | similarity 7.5 / 5 | copied 7.5 / 5 | templates: similarity | copied | score | agreement | "
    head += "caption loss | time |\n|" + "---|" * 9
    lines, plain = [head], _rows(folder, "none")
    for name in mitigations():
        rows = _rows(folder, name)
        if not rows:
            continue
        verbatim = [
            [s for r in rows if (r["kind"], r["guidance"]) == ("verbatim", g) for s in r["similarity"]]
            for g in (7.5, 5)
        ]
        template = [s for r in rows if r["kind"] == "template" for s in r["similarity"]]
        ordinary = [r for r in rows if r["kind"] == "ordinary"]
        score = statistics.fmean(r["score"] for r in rows if r["kind"] == "verbatim")
        agreement = statistics.fmean(a for r in ordinary for a in r["agreement"])
        loss = statistics.fmean(r["caption loss"] for r in ordinary)
        pairs = {(r["caption"], r["guidance"]): r["seconds"] for r in plain}
        ratio = statistics.median(
            r["seconds"] / pairs[r["caption"], r["guidance"]] for r in rows if r["kind"] != "ordinary"
        )
        cells = [
            " / ".join(f"{statistics.fmean(v):.2f}" for v in verbatim),
            " / ".join(_share(v) for v in verbatim),
            f"{statistics.fmean(template):.2f}",
            _share(template),
            f"{score:.2f}",
            f"{agreement:.2f}",
            f"{loss:.3f}",
            f"{ratio:.2f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        if name == "auto":
            lines += ["", _gate(rows)]
    return "\n".join(lines)


def _gate(rows: list[dict[str, Any]]) -> str:
    ordinary = [r for r in rows if r["kind"] == "ordinary"]
    judged = [r for r in rows if r["verdict"] == "ordinary"]
    missed = [r for r in judged if r["kind"] != "ordinary"]
    touched = sum(r["verdict"] != "ordinary" for r in ordinary)
    same = sum(r["equal"] for r in judged)
    helped = sum(r["after"] == "ordinary" for r in rows if r["kind"] != "ordinary")
    return (
        f"auto: {same} of the {len(judged)} runs that it judged ordinary are bit-identical; it touched {touched} of "
        f"{len(ordinary)} prompts that were never trained, judged {len(missed)} of {len(rows) - len(ordinary)} "
        f"memorized runs ordinary and brought {helped} down to ordinary."
    )


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / f"{name.replace(' ', '-')}.jsonl"
    return [json.loads(line) for line in path.open()] if path.exists() else []


def _share(values: list[float]) -> str:
    return f"{statistics.fmean(v > COPY for v in values):.0%}"


def figure(folder: Path, out: Path) -> None:
    """Draw rows of training picture, unmitigated and mitigated pictures."""
    from PIL import Image, ImageDraw

    names = [
        name for name in mitigations() if all((folder / f"{name.replace(' ', '-')}-{i}.png").exists() for i in SHOWN)
    ]
    side, top = 128, 34
    sheet = Image.new("RGB", ((len(names) + 1) * (side + 4), top + len(SHOWN) * (side + 4)), "white")
    draw, known = ImageDraw.Draw(sheet), originals()
    for column, name in enumerate(["training picture", *names]):
        draw.multiline_text((column * (side + 4) + 2, 3), name.replace("_", " ").replace(" ", "\n", 1), "black")
        for row, index in enumerate(SHOWN):
            path = folder / f"{name.replace(' ', '-')}-{index}.png"
            picture = Image.fromarray(known[index].picture) if column == 0 else Image.open(path)
            sheet.paste(picture, (column * (side + 4), top + row * (side + 4)))
    sheet.save(out, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table", "figure"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="NAME", help="of the table; none must be among the first"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=4)
    args = parser.parse_args()
    if args.what == "run":
        run(args.folder, args.only, args.steps, args.images)
    elif args.what == "table":
        print(table(args.folder))
    else:
        figure(args.folder, args.out or Path("mitigation.png"))


if __name__ == "__main__":
    main()
