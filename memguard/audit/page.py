"""An audit as one self-contained HTML page: the verdict, the checkpoints, and a row of pictures for each caption."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..pages.report import Section, Strip, page
from ..records import Verdict
from .folder import Folder, pixels
from .record import Audit, Checked, Checkpoint
from .three_samples import ThreeSamples

SIDE = 192  # pixels of a picture on the page
MOST = 200  # rows of pictures; more would make a page that no browser opens
LIKELIHOOD = (
    "Likelihood, not guilt: a picture is called a copy when it is more like one training picture than pictures that"
    " only follow the same kind of caption are. What was not generated here is not judged."
)


def html(audit: Audit, folder: Folder, out: Path) -> str:
    """Return the page.

    Args:
        audit: with the files of its images inside ``out``.
        folder: of the training pictures.
        out: folder of the report.

    """
    sections = [Section("Checkpoints", HELP, header=HEADER, rows=list(map(row, audit.checkpoints)))]
    if len(audit.checkpoints) > 1:
        bars = [(_short(each, audit), _share(each), _said(each)) for each in audit.checkpoints]
        sections.append(Section("Copied over the training", bars=bars))
    failed = [(_label(each), reason(each)) for each in audit.checkpoints if each.error]
    if failed:
        sections.append(Section("Not audited", header=("checkpoint", "why"), rows=failed))
    shown = _most(audit)
    if shown is not None:
        sections += _pictures(shown, folder, out)
        if shown.test is not None:
            sections.append(_test(shown, shown.test))
    if audit.duplicates:
        rows = [("; ".join(g.names), str(g.captions), g.keep, g.caption) for g in audit.duplicates]
        sections.append(
            Section(
                "Near duplicates among the training pictures",
                "What is there several times is trained on several times as often and copied first; keep one of each.",
                header=("pictures", "captions", "keep", "caption to keep"),
                rows=rows,
            )
        )
    if audit.notes:
        sections.append(Section("Left out", header=("what",), rows=[(note,) for note in audit.notes]))
    settings = [(name, str(value)) for name, value in sorted(audit.settings.items())]
    sections.append(Section("Settings", header=("setting", "value"), rows=settings))
    return page("MemGuard audit", f"This training {audit.verdict}. {LIKELIHOOD}", sections)


BADGES: dict[str, tuple[Verdict, str]] = {
    "copied": ("memorized", "copied"),
    "near": ("suspicious", "nearer than any held-out picture"),
    "not copied": ("ordinary", "not copied"),
}
HEADER = ("checkpoint", "copied", "threshold", "Z", "p", "p of own pictures", "score", "without")
HELP = (
    "copied: training pictures that came out. threshold: the likeness above which a picture is called a copy,"
    " --threshold or, where it is higher, the highest that an image of a held-out caption has to that caption's own"
    " picture. Z of the three-sample test (Meehan et al., 2020) is far below 0 for a model that copies; p is the chance"
    " of a U as small for a model that did not learn these pictures, and p of own pictures that of pictures coming as"
    " near to their own captions' images, which sees a few copies better. score: mean text-conditional noise norm of"
    " the first step, with the training and without it, on the same noise."
)


def row(each: Checkpoint) -> tuple[str, ...]:
    """Return a checkpoint as cells of HEADER."""
    if each.error:
        return (_label(each), _said(each), *[""] * (len(HEADER) - 2))
    test, scores = each.test, [(p.score, p.score_before) for p in each.pictures]
    z = "" if test is None else f"{test.z:.2f}"
    p, own_p = ("" if value is None else f"{value:.4f}" for value in ((test and test.p), (test and test.own_p)))
    limit = "" if each.threshold is None else f"{each.threshold.value:.2f}"
    means = [_mean([pair[i] for pair in scores]) for i in (0, 1)]
    return (_label(each), _said(each), limit, z, p, own_p, *means)


def reason(each: Checkpoint) -> str:
    """Return why a checkpoint could not be audited, with its name."""
    return each.error if each.error.startswith(f"{each.name}: ") else f"{each.name}: {each.error}"


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else ""


def _label(each: Checkpoint) -> str:
    return each.name if each.age.number is None else f"{each.name} ({each.age.said('')})"


def _short(each: Checkpoint, audit: Audit) -> str:
    """Return an age where it names a checkpoint, which fits beside a bar, or else the name with it."""
    alone = each.age.number is not None and [other.age for other in audit.checkpoints].count(each.age) == 1
    return each.age.said("") if alone else _label(each)


def _said(each: Checkpoint) -> str:
    return "not audited" if each.error else f"{each.copied} of {len(each.pictures)}"


def _share(each: Checkpoint) -> float:
    return each.copied / len(each.pictures) if each.pictures else 0.0


def _most(audit: Audit) -> Checkpoint | None:
    """Return the checkpoint that copies most, the later of equal ones."""
    return max(reversed(audit.done), key=lambda each: each.copied, default=None)


def _pictures(checkpoint: Checkpoint, folder: Folder, out: Path) -> Iterator[Section]:
    paths = {each.name: each for each in folder.pictures}

    def training(name: str) -> np.ndarray | None:
        return _opened(lambda: pixels(paths[name], SIDE)) if name in paths else None

    worst = sorted(checkpoint.pictures, key=lambda each: (not each.copied, not each.near, -max(each.own, default=0.0)))
    strips = [_strip(each, training, out) for each in worst[:MOST]]
    more = len(worst) - len(strips)
    text = "Sorted by likeness." + (f" {more} more are in audit.json." if more else "")
    yield Section(f"Pictures of {_label(checkpoint)}", text, strips=strips)


def _strip(each: Checked, training: Callable[[str], np.ndarray | None], out: Path) -> Strip:
    before = f", {max(each.own_before):.2f} without the training" if each.own_before else ""
    also = f"; also comes out of the captions of {', '.join(each.captions)}" if each.captions else ""
    images = "1 image" if len(each.own) == 1 else f"{len(each.own)} images"
    says = (
        f"{each.copies} of {images}; likeness {max(each.own):.2f}{before}; "
        f"nearest other picture {each.other or 'none'} {each.other_similarity:.2f}{also}"
    )
    named = [
        ("training picture", training(each.name)),
        ("generated from its caption", _opened(lambda: Image.open(out / each.image)) if each.image else None),
        ("nearest other picture", training(each.other)),
    ]
    pictures = [(caption, picture) for caption, picture in named if picture is not None]
    return Strip(
        f"{each.name}: {each.caption}",
        *BADGES["copied" if each.copied else "near" if each.near else "not copied"],
        says,
        pictures,
    )


def _opened(opening: Callable[[], Image.Image]) -> np.ndarray | None:
    """Return a picture at the size of the page, uint8 [H, W, 3]; None where its file is gone."""
    try:
        picture = opening().convert("RGB")
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
        return np.asarray(picture)
    except OSError:
        return None


def _test(checkpoint: Checkpoint, test: ThreeSamples) -> Section:
    names = [each.name for each in checkpoint.pictures]
    rows = [
        (
            ", ".join(names[i] for i in cell.pictures if i < len(names)),
            str(cell.generated),
            str(cell.held),
            "too few" if cell.z is None else f"{cell.z:.2f}",
        )
        for cell in test.cells
    ]
    p = "" if test.p is None else f", p = {test.p:.4f} ({test.deals} deals)"
    average = "" if test.average is None else f", mean Z of the cells {test.average:.2f}"
    text = (
        f"{test.form}: {test.generated} generated, {test.held} held-out and {test.trained} training pictures; "
        f"U = {test.u:g}, Z = {test.z:.2f}{average}{p}. {test.note}"
    )
    return Section(
        "Three-sample test", text.strip(), header=("training pictures", "generated", "held out", "Z"), rows=rows
    )
