"""Is it memorization, and is it detected? Losses, reproduction from fresh noise, first-step score.

Every number is computed from a packed stage, as a user gets it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from tqdm import tqdm

from memguard.bench.roc import auc, bootstrap, tpr_at_fpr
from memguard.testbed import loader
from memguard.testbed import model as nets

from . import data, latents

FIRST = 981  # the first time step of 50 steps with SD1's spacing


class Bench:
    """A stage's networks, the data, and cached text embeddings."""

    def __init__(self, work: Path, stage: str) -> None:
        self.pipe = loader.pipeline(stage)
        self.images, self.meta = data.read(work / "data")
        _, self.latents = latents.load(work, self.images)
        self.kinds = np.array([row["kind"] for row in self.meta])
        self.alpha_bar = DDIMScheduler(**nets.SCHEDULE).alphas_cumprod

    def captions(self, kind: str) -> list[str]:
        """Return the captions of one kind, each once, in order."""
        return list(dict.fromkeys(row["caption"] for row in self.meta if row["kind"] == kind))

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Tensor:
        """Return text embeddings [N, 77, width]."""
        tokens = self.pipe.tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        return torch.cat([self.pipe.text_encoder(ids).last_hidden_state for ids in tokens.input_ids.split(64)])

    @torch.no_grad()
    def predict(self, x: Tensor, t: Tensor | int, context: Tensor) -> Tensor:
        """Return epsilon for any number of rows, 64 at a time."""
        times = torch.as_tensor(t).expand(len(x))
        parts = zip(x.split(64), times.split(64), context.split(64), strict=True)
        return torch.cat([self.pipe.unet(a, b, c).sample for a, b, c in parts])

    @torch.no_grad()
    def generate(self, texts: list[str], seed: int, guidance: float, steps: int) -> Tensor:
        """Return latents [N, 4, 16, 16]; prompt i starts from noise of its own."""
        made = []
        for start in range(0, len(texts), 16):
            some = texts[start : start + 16]
            generators = [torch.Generator().manual_seed(100_000 * seed + start + i) for i in range(len(some))]
            run = self.pipe(
                some, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="latent"
            )
            made.append(run.images)
        return torch.cat(made)

    @torch.no_grad()
    def pixels(self, z: Tensor) -> np.ndarray:
        """Decode latents to float32 [N, 128, 128, 3] in 0..1, as the pipeline does."""
        scale = self.pipe.vae.config.scaling_factor
        parts = [self.pipe.vae.decode(rows / scale).sample for rows in z.split(16)]
        return ((torch.cat(parts).clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of each pair of pictures over all pixels and colours, [N]."""
    x, y = (v.reshape(len(v), -1).astype(np.float64) for v in (a, b))
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    return (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1) + 1e-12)


def losses(bench: Bench, limit: int = 200) -> dict[str, dict[str, float]]:
    """Return the epsilon loss per group with its own, another and an empty caption; ten noise levels per picture."""
    groups = {
        "verbatim, rate 1": [i for i, r in enumerate(bench.meta) if r.get("rate") == 1],
        "template": np.flatnonzero(bench.kinds == "template")[::4].tolist(),
        "ordinary, trained": [i for i, r in enumerate(bench.meta) if r["kind"] == "ordinary" and r["unique"]][:limit],
        "ordinary, held out": np.flatnonzero(bench.kinds == "held")[:limit].tolist(),
        "rare name, trained": np.flatnonzero(bench.kinds == "single")[:60].tolist(),
        "rare name, held out": np.flatnonzero(bench.kinds == "single_held").tolist(),
    }
    times = torch.arange(50, 1000, 100)
    table = {}
    for name, rows in groups.items():
        texts = [bench.meta[i]["caption"] for i in rows]
        own = bench.embed(texts)
        contexts = {"own": own, "wrong": own.roll(len(rows) // 2, 0), "empty": bench.embed([""]).expand_as(own)}
        clean, sums, per_picture = bench.latents[rows], dict.fromkeys(contexts, 0.0), []
        for t in times:
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(int(t)))
            ab = bench.alpha_bar[t]
            x = ab.sqrt() * clean + (1 - ab).sqrt() * noise
            for key, context in contexts.items():
                error = (bench.predict(x, t, context) - noise).pow(2).mean((1, 2, 3))
                sums[key] += float(error.mean()) / len(times)
                if key == "own":
                    per_picture.append(error)
        spread = torch.stack(per_picture).mean(0)
        table[name] = {"n": len(rows), **sums, "standard error": float(spread.std() / len(rows) ** 0.5)}
    return table


def reproduction(bench: Bench, seeds: int = 2, guidance: float = 5.0, steps: int = 50) -> dict[str, Any]:
    """Generate every duplicated picture from fresh noise and compare it with its training picture."""
    rows = np.flatnonzero(bench.kinds == "verbatim")
    rates = np.array([bench.meta[i]["rate"] for i in rows])
    texts = [bench.meta[i]["caption"] for i in rows]
    truth = np.asarray(bench.images[rows], np.float32) / 255
    made = [bench.generate(texts, seed, guidance, steps) for seed in range(1, seeds + 1)]
    shown = [bench.pixels(z) for z in made]
    own = np.stack([correlation(p, truth) for p in shown])
    held = bench.captions("held")[:32]
    others = [bench.generate(held, seed, guidance, steps) for seed in range(1, seeds + 1)]
    result: dict[str, Any] = {"guidance": guidance, "steps": steps, "seeds": seeds, "groups": {}}
    for rate in sorted(set(rates), reverse=True):
        mine = rates == rate
        wrong = correlation(shown[0][mine], np.roll(truth[mine], 1, 0))
        result["groups"][f"rate {rate:.3g}"] = {
            "pictures": int(mine.sum()),
            "mean correlation": float(own[:, mine].mean()),
            "share above .8": float((own[:, mine] > 0.8).mean()),
            "share above .9": float((own[:, mine] > 0.9).mean()),
            "correlation with another picture": float(wrong.mean()),
            "seed to seed": float(correlation(shown[0][mine], shown[1][mine]).mean()),
            "own is nearest, d1/d50": nearest(bench, made[0][torch.from_numpy(mine)], rows[mine]),
        }
    result["held out"] = {
        "seed to seed": float(correlation(bench.pixels(others[0]), bench.pixels(others[1])).mean()),
        "d1/d50": nearest(bench, others[0], None)[1],
    }
    result["per picture"] = own.T.round(4).tolist()
    return result


def nearest(bench: Bench, z: Tensor, own: np.ndarray | None) -> tuple[float, float]:
    """Return the share whose nearest training latent is their own, and the mean ratio of 1st to 50th distance."""
    trained = np.flatnonzero(~np.isin(bench.kinds, ("held", "single_held")))
    distances = torch.cdist(z.flatten(1), bench.latents[trained].flatten(1))
    ranked = distances.sort(1)
    right = float((trained[ranked.indices[:, 0].numpy()] == own).mean()) if own is not None else float("nan")
    return right, float((ranked.values[:, 0] / ranked.values[:, 49]).mean())


def scores(bench: Bench, texts: list[str], seeds: int = 4) -> np.ndarray:
    """Return text_noise_norm at the first of 50 steps, [prompts, seeds], on the same starting noises."""
    x = torch.randn((seeds, 4, nets.LATENT, nets.LATENT), generator=torch.Generator().manual_seed(0))
    empty = bench.predict(x, FIRST, bench.embed([""]).expand(seeds, -1, -1))
    values = []
    for text in tqdm(texts, desc="scores", unit="prompt", mininterval=10):
        gap = bench.predict(x, FIRST, bench.embed([text]).expand(seeds, -1, -1)) - empty
        values.append(gap.flatten(1).norm(dim=1).numpy())
    return np.stack(values)


def detection(bench: Bench) -> dict[str, Any]:
    """Return AUC and TPR at 1 % FPR with intervals; negatives are all held-out prompts."""
    negatives = {kind: scores(bench, bench.captions(kind)) for kind in ("held", "single_held")}
    ordinary = np.concatenate(list(negatives.values()))
    rows = [r for r in bench.meta if r["kind"] == "verbatim"]
    positives = {
        f"verbatim, rate {rate:.3g}": scores(bench, [r["caption"] for r in rows if r["rate"] == rate])
        for rate in sorted(data.RATES, reverse=True)
    }
    positives["template"] = scores(bench, bench.captions("template"))
    table: dict[str, Any] = {"negatives": len(ordinary), "mean score": {}, "figures": {}}
    for name, values in (positives | negatives).items():
        table["mean score"][name] = float(values.mean())
    for name, values in positives.items():
        for n in (1, 4):
            high, low = values[:, :n].mean(1), ordinary[:, :n].mean(1)
            table["figures"][f"{name}, n={n}"] = {
                "prompts": len(values),
                "AUC": str(bootstrap(auc, high, low)),
                "TPR@1%FPR": str(bootstrap(tpr_at_fpr, high, low)),
                "AUC, same caption grammar": f"{auc(high, negatives['single_held'][:, :n].mean(1)):.3f}",
            }
    return table


def evaluate(work: Path, stage: str, parts: tuple[str, ...]) -> dict[str, Any]:
    """Run the named parts: losses, reproduction, detection, phenomena."""
    from .phenomena import phenomena

    bench = Bench(work, stage)
    known = {"losses": losses, "reproduction": reproduction, "detection": detection, "phenomena": phenomena}
    return {"stage": stage} | {part: known[part](bench) for part in parts}
