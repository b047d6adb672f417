"""``memguard demo``: see memorization detected on the shipped test bed."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..bench.roc import Estimate, auc, bootstrap, tpr_at_fpr
from ..lists import files
from ..pages.report import Card, Section, page
from ..records import Report
from ..texts import shown
from . import common, models

SEED = 7
SHOWN = {"verbatim": 10, "template": 2, "held": 2, "single_held": 2}
LABELS = {
    "verbatim": "duplicated pictures",
    "template": "template families",
    "held": "ordinary prompts, never trained",
    "single_held": "same grammar as the duplicates, never trained",
}


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser("demo", help="see memorization detected on a small model that really memorizes")
    parser.add_argument("--out", type=Path, default=Path("memguard-demo"), help="folder of report.html")
    parser.add_argument(
        "--stage", choices=("early", "middle", "final"), default="final", help="how long it was trained"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score, generate, write the page; return 0."""
    target = args.out / "report.html"
    files.target(target, files.is_page)
    with models.quiet():
        return _run(args, target)


def _run(args: argparse.Namespace, target: Path) -> int:
    from .. import testbed
    from ..hosts.diffusers import scan

    started = time.perf_counter()
    pipe = testbed.pipeline(args.stage)
    originals = testbed.originals()
    prompts = {
        "verbatim": [o.caption for o in originals if o.rate == 1],
        "template": [o.caption for o in originals if o.kind == "template"],
        "held": testbed.prompts("held")[:100],
        "single_held": testbed.prompts("single_held"),
    }
    say = _quiet if args.json else print
    say(f"Scoring {sum(map(len, prompts.values()))} prompts at the first denoising step ...")
    with common.progress((), sum(map(len, prompts.values())), " prompts") as bar:
        reports: dict[str, list[Report]] = {kind: [] for kind in prompts}
        for kind, texts in prompts.items():
            for report in scan(pipe, texts, seed=SEED):
                reports[kind].append(report)
                bar.update()
    figures = detection(reports)
    rows = table(reports)
    for row in [("prompts", "number", "mean score", "flagged"), *rows]:
        say(f"{row[0]:<48}{row[1]:>8}{row[2]:>12}{row[3]:>10}")
    for name, value in figures.items():
        say(f"{name}: {value}")
    say("Generating pictures ...")
    with common.progress((), sum(SHOWN.values()), " pictures") as bar:
        cards = generate(pipe, originals, prompts, bar.update)
    try:
        target.write_text(_page(args.stage, rows, figures, cards), encoding="utf-8")
    except OSError as error:
        raise files.unwritable(target, error) from None
    seconds = time.perf_counter() - started
    if args.json:
        values = {name: vars(value) for name, value in figures.items()}
        json.dump({"stage": args.stage, "figures": values, "report": str(target), "seconds": seconds}, sys.stdout)
        print()
    say(f"{shown(str(target))} shows the pictures beside their training pictures ({seconds:.0f} s)")
    return 0


def _quiet(*_: Any) -> None:
    """Print nothing."""


def score(report: Report) -> float:
    """Return the first finding's score; NaN where there is none."""
    value = report.findings[0].score
    return float("nan") if value is None else value


def detection(reports: dict[str, list[Report]]) -> dict[str, Estimate]:
    """Return AUC and TPR@1%FPR of duplicates and templates against all prompts that were never trained."""
    ordinary = [score(r) for kind in ("held", "single_held") for r in reports[kind]]
    found = {}
    for kind in ("verbatim", "template"):
        values = [score(r) for r in reports[kind]]
        found[f"{LABELS[kind]}: AUC"] = bootstrap(auc, values, ordinary)
        found[f"{LABELS[kind]}: TPR at 1 % FPR"] = bootstrap(tpr_at_fpr, values, ordinary)
    return found


def table(reports: dict[str, list[Report]]) -> list[tuple[str, str, str, str]]:
    """Return label, number of prompts, mean score and share flagged per group."""
    rows = []
    for kind, group in reports.items():
        flagged = np.mean([r.flagged for r in group])
        rows.append((LABELS[kind], str(len(group)), f"{np.mean([score(r) for r in group]):.2f}", f"{flagged:.0%}"))
    return rows


def generate(
    pipe: Any, originals: list[Any], prompts: dict[str, list[str]], done: Callable[[], Any] = lambda: None
) -> dict[str, list[Card]]:
    """Generate pictures with a watching guard and return them beside their training pictures."""
    import torch

    from ..guard import Guard

    known = {o.caption: o for o in originals}
    guard = Guard()
    cards: dict[str, list[Card]] = {}
    for kind, count in SHOWN.items():
        cards[kind] = []
        for text in spread(prompts[kind], count):
            with guard.attach(pipe):  # from the noise of the table's score, so that both tell the same verdict
                image = pipe(text, num_inference_steps=50, guidance_scale=5.0, generator=torch.manual_seed(SEED))
            picture = np.asarray(image.images[0])
            pictures, note = [("generated", picture)], ""
            if text in known:
                original = known[text]
                pictures.append(("training picture", original.picture))
                if original.kind == "verbatim":
                    both = [p.astype(float).ravel() for p in (picture, original.picture)]
                    note = f"correlation with the training picture {np.corrcoef(both[0], both[1])[0, 1]:.2f}"
                else:
                    note = "the frame is memorized, the inset varied in training"
            assert guard.report is not None
            cards[kind].append(Card(guard.report, pictures, note))
            done()
    return cards


def spread(prompts: list[str], count: int) -> list[str]:
    """Return some of the prompts, evenly spread: neighbours in the list are alike."""
    return prompts[:: max(1, len(prompts) // count)][:count]


def _page(stage: str, rows: list[Any], figures: dict[str, Estimate], cards: dict[str, list[Card]]) -> str:
    lead = (
        "A small Stable Diffusion model was trained with some pictures shown again and again. MemGuard scores each "
        "prompt at the first of 50 denoising steps, from predictions that sampling computes anyway."
    )
    summary = Section(
        f"First-step score, {stage} checkpoint", header=("prompts", "number", "mean score", "flagged"), rows=rows
    )
    roc = Section(
        "How well the score tells them apart",
        "Against all prompts that were never trained; 95 % bootstrap intervals over prompts.",
        header=("figure", "value"),
        rows=[(name, str(value)) for name, value in figures.items()],
    )
    sections = [summary, roc] + [Section(LABELS[kind].capitalize(), cards=group) for kind, group in cards.items()]
    return page("MemGuard demo", lead, sections)
