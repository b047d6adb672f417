"""``memguard scan --shard I/N``: score one row range of a list into a file of its own."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..lists import BadInput, files, shards
from ..lists.listing import Listing, listed
from ..lists.merging import is_whole
from ..lists.rows import FLAT, flat, whole
from ..lists.whole import Whole
from ..records import VERDICTS, Report
from ..texts import unfit
from . import common, promoting
from .scanner import Scanner, named

TRIES = 3
# after such an error every further call of the process fails as well, so its rows are not the prompts' fault
DEVICE = re.compile(r"AcceleratorError|CUDA error|HIP error|CUDA-capable device|cudaError|device-side assert")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what belongs to a scan in parts."""
    group = parser.add_argument_group("a scan in parts")
    group.add_argument(
        "--shard",
        metavar="I/N",
        help="score part I of N; --out is a folder, memguard merge puts its files together",
    )
    group.add_argument("--engine", choices=("local", "ray"), default="local", help="ray: all parts, on a Ray cluster")
    group.add_argument("--shards", type=int, metavar="N", help="parts with --engine ray; default: of 2048 rows")
    group.add_argument("--workers", type=int, metavar="W", help="models at once with --engine ray; default: all GPUs")
    group.add_argument("--format", choices=("jsonl", "parquet"), default="jsonl", help="of the files in --out")
    group.add_argument(
        "--tries",
        type=int,
        default=TRIES,
        metavar="K",
        help=f"a part that fails K times is set apart (default {TRIES})",
    )


@dataclass(frozen=True)
class Plan:
    """A scan in parts: what every process that takes part agrees on without asking another.

    Attributes:
        args: of the command.
        folder: of the files.
        listing: the list.
        kept: the settings that rows keep.
        settings: hex digits that name the list and what its rows are scored with.

    """

    args: argparse.Namespace
    folder: Path
    listing: Listing
    kept: dict[str, Any]
    settings: str


@dataclass
class Outcome:
    """What came of one shard."""

    number: int
    of: int
    file: str = ""
    scanned: int = 0
    skipped: bool = False
    failed: int = 0
    left_out: int = 0  # by a pre-scan
    reason: str = ""
    empty: str = ""  # why it has no rows
    cut: int = 0  # prompts whose end was not read
    cut_note: str = ""
    verdicts: Counter[str] = field(default_factory=Counter)


def planned(args: argparse.Namespace, source: Path | None, kept: dict[str, Any]) -> Plan:
    """Return the plan of a scan; the list is read once, and no model is loaded.

    Raises:
        BadInput: for a list or a folder that cannot be used.

    """
    if source is None:
        raise BadInput("a scan in parts needs a file of prompts; stdin has no rows that others know")
    if args.out is None:
        raise BadInput("a scan in parts needs --out, a folder for its files")
    if args.fail_on is not None:
        raise BadInput("--fail-on is for whole scans; memguard merge has --fail-on-found")
    for name, most in (("tries", 1000), ("shards", 10**6), ("workers", 10**5)):
        value = getattr(args, name)
        if value is not None and not 1 <= value <= most:
            raise BadInput(f"--{name}: {value} is not between 1 and {most}")
    listing = listed(source, args.column, args.encoding)
    if listing.count == 0:
        raise BadInput(f"{source}: holds no prompts")
    profile = "" if args.profile is None else common.digest_file(args.profile)
    facts = kept | {"list": listing.digest, "model": named(args.model), "dtype": args.dtype, "profile": profile}
    facts |= {"batch size": args.batch_size}
    mark = common.long_digest(json.dumps(facts, sort_keys=True, default=str))
    files.folder(args.out)
    return Plan(args, args.out, listing, kept, mark)


def score(plan: Plan, scanner: Scanner, number: int, of: int, bar: bool = True) -> Outcome:
    """Score one shard, unless its file is there.

    Raises:
        BadInput: if it cannot be scored, is being scored by another process, or is set apart.

    """
    args = plan.args
    outcome = Outcome(number, of)
    unknown = shards.Shard(number, of, 0, 0, plan.settings)  # where its rows begin, a model may have to say
    # a model is loaded by none but the process that has the shard; if it cannot be, it is not the shard's fault
    with shards.attempt(plan.folder, unknown, args.tries, lambda: scanner.pipe):
        start, stop = shards.bounds(plan.listing.count, number, of, scanner.grain)
        shard = replace(unknown, start=start, stop=stop)
        done = shards.there(plan.folder, number, of, plan.settings)
        if done is not None and not args.force and is_whole(done):  # by somebody who was faster
            return Outcome(number, of, str(done), skipped=True)
        if start == stop:
            blocks = -(-plan.listing.count // scanner.grain)
            outcome.empty = f"{plan.listing.count} prompts make {blocks} blocks of {scanner.grain} that stay together"
        path = plan.folder / shard.name(args.format)
        outcome.file = str(path)
        settings = {**scanner.made, **plan.kept}
        reports = scanner.reports(plan.listing.rows(start, stop), start)
        cut = common.Cut()
        with Whole(path, FLAT if args.format == "parquet" else None) as file:
            shown = common.progress(_sound(reports), stop - start, " prompts") if bar else _sound(reports)
            for index, report in enumerate(shown, start):
                file.add((flat if args.format == "parquet" else whole)(report, index, settings))
                outcome.scanned += 1
                cut.add(report.notes)
                if not report.findings[0].promoted:
                    outcome.left_out += 1
                    continue
                outcome.verdicts[report.verdict] += 1
                if not report.findings[0].scores:
                    outcome.failed += 1
                    outcome.reason = report.findings[0].status
            if outcome.scanned != stop - start:
                raise BadInput(f"the list has fewer rows than before: {outcome.scanned} of {stop - start} were there")
        outcome.cut, outcome.cut_note = cut.count, cut.example
        if done is not None and done != path:
            done.unlink(missing_ok=True)  # the same shard in the other format
    return outcome


def _sound(reports: Iterable[Report]) -> Iterator[Report]:
    """Hand reports on; raise ShardFailed where it is the device or the model that fails, not a prompt."""
    usable = broken = ranked = left_out = 0
    last = ""
    for report in reports:
        if report.error and DEVICE.search(report.error):
            raise shards.ShardFailed(report.error.splitlines()[0])
        finding = report.findings[0]
        left_out += not finding.promoted
        if finding.promoted and not unfit(report.prompt):
            usable, broken = usable + 1, broken + bool(report.error)
            ranked += promoting.seen(finding)
            last = report.error or last
        yield report
    # those that failed at the first look as well, and others did not, are themselves at fault
    if usable and broken == usable and (ranked or not left_out):
        raise shards.ShardFailed(f"the model failed at each of its {usable} prompts: {last.splitlines()[0]}")


def run(args: argparse.Namespace, source: Path | None, kept: dict[str, Any]) -> int:
    """Score one shard; return 0."""
    number, of = shards.parse(args.shard)
    plan = planned(args, source, kept)
    done = shards.there(plan.folder, number, of, plan.settings)
    if args.force:
        shards.forget(plan.folder, number, of, plan.settings)
    if done is not None and not args.force and is_whole(done):
        outcome = Outcome(number, of, str(done), skipped=True)
    else:
        if done is not None and not args.force:
            print(f"memguard scan: {done}: is damaged, and is scored again", file=sys.stderr)
        try:
            outcome = score(plan, Scanner(args), number, of)
        except KeyboardInterrupt:
            print(f"memguard scan: shard {number}/{of} leaves no file; run it again", file=sys.stderr)
            raise
    told(args, outcome)
    return 0


def told(args: argparse.Namespace, outcome: Outcome) -> None:
    """Print what came of a shard."""
    common.Cut(outcome.cut, outcome.cut_note).tell("scan", outcome.scanned)
    counts = {name: outcome.verdicts[name] for name in (*reversed(VERDICTS), "unknown")}
    if args.json:
        shard = {"shard": outcome.number, "of": outcome.of, "out": outcome.file, "scanned": outcome.scanned}
        shard |= {} if args.prescan is None else {"promoted": outcome.scanned - outcome.left_out}
        common.print_json(shard | {"done_before": outcome.skipped, "without_score": outcome.failed, "verdicts": counts})
        return
    if outcome.skipped:
        print(f"{outcome.file}: is there, nothing to do")
        return
    if outcome.empty:
        print(f"{outcome.file}: no rows: {outcome.empty}, so fewer shards are enough")
        return
    without = f"; {outcome.failed} without a score, for example because {outcome.reason}" if outcome.failed else ""
    found = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    scanned = f"{outcome.scanned} prompts scanned{promoting.said(args, outcome.scanned - outcome.left_out)}"
    print(f"{outcome.file}: {scanned}{': ' + found if found else ''}{without}")
