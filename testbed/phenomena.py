"""Which phenomena of the literature the test bed shows: attention entropy, BOS and padding, triggers, neurons."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from memguard import explain
from memguard.attributions.attention import entropy, mass
from memguard.bench.roc import auc
from memguard.hosts.diffusers.attention import cross_layers, reading
from memguard.testbed import model as nets
from memguard.testbed.tokens import EOS

if TYPE_CHECKING:
    from .evaluate import Bench

FIRST = 981


def phenomena(bench: Bench) -> dict[str, Any]:
    """Return one table per phenomenon."""
    return {"attention": attention(bench), "triggers": triggers(bench), "neurons": neurons(bench)}


def top_rate(bench: Bench) -> list[dict]:
    """Return the records of the fully duplicated pictures."""
    return [row for row in bench.meta if row.get("rate") == 1]


def attention(bench: Bench) -> dict[str, Any]:
    """Return the mean cross-attention mass of BOS, words and padding, and the entropy's AUC, at the first step."""
    dup, held = [r["caption"] for r in top_rate(bench)], bench.captions("held")[:60]
    texts = dup + held
    context = bench.embed(texts)
    ids = bench.pipe.tokenizer(texts, padding="max_length", max_length=77, truncation=True).input_ids
    lengths = [row.index(EOS) for row in ids]
    masses = record_attention(bench, start_noise(1).expand(len(texts), -1, -1, -1), context)
    table = {}
    for name, p in masses.items():
        entropies = entropy(p).numpy()
        padding = np.array([float(row[n:].sum()) for row, n in zip(p, lengths, strict=True)])
        table[name.removesuffix(".transformer_blocks.0.attn2")] = {
            "BOS": float(p[:, 0].mean()),
            "EOS and padding, duplicates": float(padding[: len(dup)].mean()),
            "EOS and padding, ordinary": float(padding[len(dup) :].mean()),
            "entropy AUC": auc(entropies[: len(dup)], entropies[len(dup) :]),
        }
    return table


def start_noise(count: int, seed: int = 0) -> Tensor:
    """Return starting noise [count, 4, 16, 16]."""
    return torch.randn((count, 4, nets.LATENT, nets.LATENT), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def record_attention(bench: Bench, x: Tensor, context: Tensor) -> dict[str, Tensor]:
    """Return attention probabilities averaged over heads and positions, layer -> [B, 77]."""
    with reading(bench.pipe.unet) as found:
        bench.pipe.unet(x, FIRST, context)
        return {name: mass(one.probabilities()) for name, one in found.take(slice(None)).items()}


def triggers(bench: Bench, images: int = 4) -> dict[str, float]:
    """Return how often the trigger word weighs most in ``memguard.explain``, of the words with letters."""
    methods: dict[str, dict[str, Any]] = {
        "input gradient": {"respect_to": "input"},
        "output gradient": {"respect_to": "encoded"},
        "causal": {"method": "ablation"},
    }
    hits: dict[str, list[float]] = {name: [] for name in (*methods, "chance")}
    for row in top_rate(bench):
        for name, settings in methods.items():
            found = explain(bench.pipe, row["caption"], num_images=images, **settings)
            words = [(weight, word) for word, weight in found.words if any(c.isalpha() for c in word)]
            hits[name].append(max(words)[1] == row["name"])
        hits["chance"].append(1 / len(words))
    return {f"trigger ranks first, {name}": float(np.mean(values)) for name, values in hits.items()}


@contextmanager
def zeroed(layers: dict[str, Any], masks: dict[str, Tensor]):
    """Multiply each layer's value neurons by its mask [width] or [rows, 1, width] while the context lasts."""
    handles = [
        layers[name].to_v.register_forward_hook(lambda _m, _i, out, mask=mask: out * mask)
        for name, mask in masks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def neurons(bench: Bench, pictures: int = 16, counts: tuple[int, ...] = (3, 10, 30, 70)) -> dict[str, Any]:
    """Return score and reproduction after zeroing the value neurons with the largest first-order attribution."""
    from .evaluate import correlation

    layers = cross_layers(bench.pipe.unet)
    widths = {name: m.to_v.out_features for name, m in layers.items()}
    rows = [(i, row) for i, row in enumerate(bench.meta) if row.get("rate") == 1][:pictures]
    truth = np.asarray(bench.images[[i for i, _ in rows]], np.float32) / 255
    x = start_noise(4)
    empty = bench.predict(x, FIRST, bench.embed([""]).expand(4, -1, -1))
    attributions = []
    for _, row in rows:
        context = bench.embed([row["caption"]]).expand(4, -1, -1)
        masks = {name: torch.ones(width, requires_grad=True) for name, width in widths.items()}
        with torch.enable_grad(), zeroed(layers, masks):
            score = (bench.pipe.unet(x, FIRST, context).sample - empty).flatten(1).norm(dim=1).mean()
            attributions.append(torch.cat(torch.autograd.grad(score, list(masks.values()))))
    total = sum(widths.values())
    random = torch.rand(len(rows), total, generator=torch.Generator().manual_seed(0))
    table: dict[str, Any] = {"value neurons": total}
    for label, ranking in (("attribution", torch.stack(attributions)), ("random", random)):
        for count in (0, *counts) if label == "attribution" else counts[-1:]:
            norms, made = [], []
            for index, (_, row) in enumerate(rows):
                flat = torch.ones(total)
                flat[ranking[index].topk(count).indices] = 0
                masks = dict(zip(widths, flat.split(list(widths.values())), strict=True))
                with zeroed(layers, masks):
                    context = bench.embed([row["caption"]]).expand(4, -1, -1)
                    norms.append(float((bench.predict(x, FIRST, context) - empty).flatten(1).norm(dim=1).mean()))
                    made.append(bench.generate([row["caption"]], 1, 5.0, 25))
            own = correlation(bench.pixels(torch.cat(made)), truth)
            table[f"{count} by {label}"] = {"score": float(np.mean(norms)), "correlation": float(own.mean())}
    return table
