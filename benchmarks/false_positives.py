"""How many ordinary prompts a default profile flags by mistake, and how many duplicates it flags, by the command line.

The prompts of ``fresh_prompts.tsv`` (style, prompt) were written with the shipped ones and set aside by lot;
held-out captions and duplicates are the test bed's. Each eighth of the prompts starts from a seed of its own. A scan
gives ranks, and what a sensitivity flags follows from them, by the same function that verdicts use.

    python benchmarks/false_positives.py [--num-images 4] [--calibrate] [--copies] [--out FILE.json]

With ``--copies`` the duplicates' pictures are made from the noise that was scored, and those that are copies are
counted by themselves: pixels that correlate above .8 with the training picture, of several images in half of them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from memguard.calibration import Sensitivity
from memguard.calibration.rates import at, bound, cut
from memguard.cli import main

SEEDS = 8
FIRST_SEED = 5000  # none of a calibration's
SENSITIVITIES = (95.0, 99.0, 99.9)
COPY = 0.8  # correlation above which a picture is a copy
STEPS = 20  # of the duplicates' pictures
DUPLICATES = "duplicates"
FRESH = Path(__file__).with_name("fresh_prompts.tsv")
PROMPTS = Path(__file__).parents[1] / "memguard/testbed/assets/prompts.json"


def groups() -> dict[str, list[str]]:
    """Return the prompts to score: fresh ordinary ones, held-out captions, duplicates."""
    known = json.loads(PROMPTS.read_text(encoding="utf-8"))
    fresh = [line.split("\t")[1] for line in FRESH.read_text(encoding="utf-8").splitlines()]
    copied = [each["caption"] for each in known["originals"] if each["kind"] == "verbatim" and each["rate"] == 1]
    return {"fresh": fresh, "held-out captions": known["held"] + known["single_held"], DUPLICATES: copied}


def command(*arguments: object) -> str:
    """Run a command of memguard and return what it prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = main([str(argument) for argument in arguments])
    if code:
        raise SystemExit(f"memguard {' '.join(map(str, arguments))}: exit {code}")
    return said.getvalue()


def ranks(prompts: Sequence[str], seeds: Sequence[int], model: str, more: Sequence[object]) -> Iterator[dict]:
    """Yield the findings of the prompts, each part of them scanned from its own seed."""
    for number, seed in enumerate(seeds):
        part = prompts[number :: len(seeds)]
        with tempfile.TemporaryDirectory() as folder:
            given, found = Path(folder) / "prompts.jsonl", Path(folder) / "reports.jsonl"
            lines = (json.dumps({"prompt": text}) + "\n" for text in part)
            given.write_text("".join(lines), encoding="utf-8")
            command("scan", given, "--model", model, "--seed", seed, "--out", found, *more)
            reports = [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines()]
        yield from (report["findings"][0] for report in reports)


def rate_row(findings: Sequence[dict], sensitivity: float) -> dict:
    """Return how many findings are flagged at a sensitivity, and what was stated."""
    count = findings[0]["count"]
    flagging = cut(Sensitivity(sensitivity).suspicious, count)
    supported = flagging is not None
    flagging = flagging or at(0, count)
    flagged = sum(finding["count"] - finding["below"] <= flagging.allowed for finding in findings)
    grave = cut(Sensitivity(sensitivity).memorized, count)
    looks = 0 if grave is None else sum(f["count"] - f["below"] <= grave.allowed for f in findings)
    low, high = interval(flagged, len(findings))
    return {
        "sensitivity": sensitivity,
        "stated": flagging.rate,
        "at most": flagging.bound,
        "supported": supported,
        "prompts": len(findings),
        "flagged": flagged,
        "looks memorized": looks,
        "realised": flagged / len(findings),
        "low": low,
        "high": high,
    }


def interval(hits: int, count: int) -> tuple[float, float]:
    """Return Clopper and Pearson's two-sided 95 % interval."""
    return 1 - bound(count - hits, count, 0.975), bound(hits, count, 0.975)


def rows(group: str, images: int, findings: Sequence[dict]) -> list[dict]:
    """Print and return a row for each sensitivity."""
    found = [{"group": group, "images": images, **rate_row(findings, sensitivity)} for sensitivity in SENSITIVITIES]
    for row in found:
        print(
            f"{group:18} n={images} {row['sensitivity']:>5}: {row['flagged']:>3} of {row['prompts']}"
            f" = {row['realised']:6.2%} [{row['low']:.2%}, {row['high']:.2%}], stated {row['stated']:.2%}"
            f" (at most {row['at most']:.2%}); looks memorized {row['looks memorized']}",
            flush=True,
        )
    return found


def similarities(prompts: Sequence[str], seeds: Sequence[int], images: int) -> Iterator[list[float]]:
    """Yield how each duplicate's pictures correlate with its training picture, in the order of ``ranks``."""
    import torch

    from memguard.testbed import loader

    pipe, originals = loader.pipeline(), {o.caption: o.picture / 255 for o in loader.originals()}
    for number, seed in enumerate(seeds):
        part = list(prompts[number :: len(seeds)])
        # what a scan starts all its prompts from
        noise = torch.randn(images, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
        made = pipe(
            part,
            num_images_per_prompt=images,
            latents=noise.repeat(len(part), 1, 1, 1),
            num_inference_steps=STEPS,
            output_type="np",
        ).images
        for i, caption in enumerate(part):
            yield [correlation(each, originals[caption]) for each in made[i * images : (i + 1) * images]]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation of two pictures over pixels and colours."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def run(arguments: argparse.Namespace) -> list[dict]:
    """Calibrate where that is asked for, scan, print a table; return its rows."""
    images = arguments.num_images
    more: list[object] = ["--num-images", images]
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    table = []
    with tempfile.TemporaryDirectory() as folder:
        if arguments.calibrate:
            said = command("calibrate", "--model", arguments.model, "--out", folder, "--json", *more)
            more += ["--profile", json.loads(said)["file"]]
        for name, prompts in groups().items():
            findings = list(ranks(prompts[: arguments.limit], seeds, arguments.model, more))
            table += rows(name, images, findings)
            if arguments.copies and name == DUPLICATES:
                alike = list(similarities(prompts[: arguments.limit], seeds, images))
                for finding, values in zip(findings, alike, strict=True):
                    print([round(value, 2) for value in values], f"{finding['below']} of {finding['count']}")
                kept = [statistics.median_high(values) > COPY for values in alike]
                table += rows("that are copied", images, [f for f, copy in zip(findings, kept, strict=True) if copy])
    return table


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default="testbed")
    made.add_argument("--num-images", type=int, default=1)
    made.add_argument("--calibrate", action="store_true", help="make a profile first; else the one that is found")
    made.add_argument("--seeds", type=int, default=SEEDS)
    made.add_argument("--copies", action="store_true", help="make the duplicates' pictures (test bed only)")
    made.add_argument("--limit", type=int, help="prompts of each group")
    made.add_argument("--out", type=Path, help="rows as JSON")
    return made


if __name__ == "__main__":
    options = parser().parse_args()
    table = run(options)
    if options.out:
        options.out.write_text(json.dumps(table, indent=1), encoding="utf-8")
