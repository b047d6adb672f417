"""What number formats and devices do to the scores of ``memguard.scan``: largest differences to float32 on the CPU.

A pipeline draws its latents in its own number format, and a seed gives other numbers in each: every prompt is scored
twice, on the noise of the format and on that of float32. Only the latter shows rounding alone. "tf32" is what torch
does in convolutions on CUDA unless told not to (``torch.backends.cudnn.allow_tf32``); "exact" is without.

    python benchmarks/scan_formats.py [--device cuda] [--limit 100] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from false_positives import DUPLICATES, groups

import memguard
from memguard import testbed
from memguard.records import Report

FIRST_SEED = 700_000  # none of a calibration's


def same_noise(pipe: Any) -> Any:
    """Let a pipeline draw its latents in float32, whatever its number format."""
    kind = type(pipe)

    class Drawn(kind):  # type: ignore[misc, valid-type]
        def prepare_latents(
            self, batch_size, num_channels_latents, height, width, dtype, device, generator, latents=None
        ):
            given = batch_size, num_channels_latents, height, width, torch.float32, device, generator, latents
            return super().prepare_latents(*given).to(dtype)

    pipe.__class__ = Drawn
    return pipe


def scanned(pipe: Any, limit: int | None, batch: int) -> tuple[list[Report], float]:
    """Return the reports of fresh ordinary prompts and duplicates, and prompts per second."""
    texts = [text for name in ("fresh", DUPLICATES) for text in groups()[name][:limit]]
    settings = {"seed": FIRST_SEED, "own_seeds": True, "batch_size": batch}
    for _ in memguard.scan(pipe, texts[: 2 * batch], **settings):
        pass  # warms up
    begun = time.perf_counter()
    reports = list(memguard.scan(pipe, texts, **settings))
    return reports, len(texts) / (time.perf_counter() - begun)


def compared(label: str, reports: list[Report], reference: list[Report], rate: float) -> dict:
    """Print and return how reports differ from those on the CPU in float32."""
    differences, verdicts, ranks, lost = [], 0, [], 0
    for mine, other in zip(reports, reference, strict=True):
        a, b = mine.findings[0], other.findings[0]
        if a.mean_rms is None or b.mean_rms is None:
            lost += 1
            continue
        differences.append(abs(a.mean_rms - b.mean_rms) / b.mean_rms)
        verdicts += mine.verdict != other.verdict
        ranks.append(abs((a.below or 0) - (b.below or 0)))
    row = {"way": label, "prompts": len(reports), "without score": lost, "largest": max(differences)}
    row |= {"median": statistics.median(differences), "other verdicts": verdicts, "largest in ranks": max(ranks)}
    row |= {"of": reference[0].findings[0].count, "prompts per second": rate}
    print(
        f"{label:34} {len(reports)} prompts: largest difference {row['largest']:.1e}, median {row['median']:.1e};"
        f" {verdicts} other verdicts; at most {row['largest in ranks']} of {row['of']} ranks; {lost} without a score;"
        f" {rate:.0f} prompts/s",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--formats", nargs="+", default=["float32", "float16", "bfloat16"])
    parser.add_argument("--limit", type=int, help="prompts of each group")
    parser.add_argument("--batch", type=int, default=8, help="prompts per forward")
    parser.add_argument("--out", type=Path, help="rows as JSON")
    options = parser.parse_args()
    reference, rate = scanned(testbed.pipeline(), options.limit, options.batch)
    flagged = sum(report.verdict != "ordinary" for report in reference)
    print(f"float32 on the CPU: {len(reference)} prompts, {flagged} flagged, {rate:.0f} prompts/s", flush=True)
    rows = []
    ways = [("float32", "exact", True)] if "float32" in options.formats and options.device != "cpu" else []
    ways += [(name, "tf32" if name == "float32" else "", True) for name in options.formats]
    ways += [(name, "", False) for name in options.formats if name != "float32"]
    for name, kind, same in ways:
        torch.backends.cudnn.allow_tf32 = kind != "exact"
        pipe = testbed.pipeline().to(options.device, getattr(torch, name))
        reports, rate = scanned(same_noise(pipe) if same else pipe, options.limit, options.batch)
        label = " ".join(filter(None, (name, kind, "float32's noise" if same else "its own noise")))
        rows.append(compared(label, reports, reference, rate))
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
