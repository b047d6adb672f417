"""The numbers of benchmarks/mitigation.py as a table in Markdown, and its pictures as a figure.

    python benchmarks/mitigation_table.py DIR [--figure OUT.jpg]

Columns: mean similarity to the training picture and share of copies (above .8), at guidance 7.5 / 5; the same for
templates; first-step score of the duplicates; correlation of ordinary pictures with their unmodified ones; epsilon loss
of ordinary pictures under their captions. What they cost is measured by benchmarks/mitigation_cost.py.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mitigation import SHOWN, mitigations, originals

COPY = 0.8


def table(folder: Path) -> str:
    """Return the numbers of all mitigations as a table in Markdown."""
    head = "| mitigation | similarity 7.5 / 5 | copied 7.5 / 5 | templates: similarity | copied | score | agreement | "
    head += "caption loss |\n|" + "---|" * 8
    lines = [head]
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
        score = _mean(r["score"] for r in rows if r["kind"] == "verbatim")
        agreement = _mean(a for r in ordinary for a in r["agreement"])
        loss = _mean(r["caption loss"] for r in ordinary)
        cells = [
            " / ".join(f"{_mean(v):.2f}" for v in verbatim),
            " / ".join(_share(v) for v in verbatim),
            f"{_mean(template):.2f}",
            _share(template),
            f"{score:.2f}",
            f"{agreement:.2f}",
            f"{loss:.3f}",
        ]
        sscd = [s for r in rows if r["kind"] == "verbatim" for s in r.get("sscd", [])]
        cells[1] += f" (SSCD {_mean(sscd):.2f})" if sscd else ""
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


def _mean(values: Iterable[float]) -> float:
    given = list(values)
    return statistics.fmean(given) if given else math.nan


def _share(values: list[float]) -> str:
    return f"{_mean(v > COPY for v in values):.0%}"


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
    parser.add_argument("folder", type=Path)
    parser.add_argument("--figure", type=Path, metavar="OUT.jpg")
    args = parser.parse_args()
    print(table(args.folder))
    if args.figure is not None:
        figure(args.folder, args.figure)


if __name__ == "__main__":
    main()
