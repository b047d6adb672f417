"""``memguard scan``: score a list of prompts."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from ..lists import BadInput, Results, open_results, read_prompts
from ..records import VERDICTS, Report
from ..table import GUARD
from ..texts import json_line, shown
from ..wording import message
from . import common, promoting, sharding
from .scanner import Scanner

KEPT = (
    "detector num_images steps num_inference_steps guidance_scale height width seed reference negative_prompt"
    " sensitivity"
)

SHOWN = 60  # characters of a prompt in the table


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "scan",
        help="score a list of prompts on a model",
        description="Score prompts at the first step of a run, several in one forward.",
        epilog="A prompt that cannot be scored is reported with the reason, and the scan goes on.",
    )
    parser.add_argument(
        "prompts",
        nargs="?",
        default="-",
        metavar="FILE",
        help=".txt, .jsonl, .csv, .parquet or .tar (WebDataset); - or nothing is stdin",
    )
    parser.add_argument("--column", metavar="NAME", help="of the prompts; default prompt, caption or text")
    parser.add_argument("--encoding", default="utf-8", help="of text files (default utf-8)")
    parser.add_argument("--out", type=Path, metavar="FILE", help=".jsonl, .csv or .parquet; default: a table on stdout")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="continue --out: skip the prompts that it holds")
    how.add_argument("--force", action="store_true", help="replace --out")
    parser.add_argument(
        "--fail-on", choices=VERDICTS[1:], metavar="VERDICT", help="suspicious or memorized: exit code 1"
    )
    parser.add_argument("--profile", type=Path, metavar="FILE", help="default: found by the model's fingerprint")
    common.add(parser, "sensitivity", GUARD["sensitivity"], metavar="P")
    parser.add_argument("--json", action="store_true", help="reports as JSON lines; with --out one summary")
    promoting.add_arguments(parser)
    sharding.add_arguments(parser)
    common.add_model(parser)
    common.add_settings(parser).add_argument(
        "--own-seeds",
        action="store_true",
        help="row i starts from noise of its own, that of seed + i, as in calibrate",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Scan; return 0, or 1 for a finding at --fail-on."""
    source = None if args.prompts == "-" else Path(args.prompts)
    if source is None and args.resume:
        raise BadInput("--resume needs a file of prompts; stdin cannot be compared with what is done")
    if args.resume and args.out is None:
        raise BadInput("--resume needs --out, the file to continue")
    common.check(args)
    promoting.check(args)
    if args.engine == "ray":
        if args.shard is not None:
            raise BadInput("--engine ray scores all parts by itself; give --shards N, or --shard without --engine")
        from . import on_ray

        return on_ray.run(args, source, kept(args))
    if args.shard is not None:
        return sharding.run(args, source, kept(args))
    results = None
    if args.out is not None:
        results = open_results(args.out, args.resume, args.force, (source, args.profile, args.prescan))
    try:
        return _run(args, source, results)
    finally:
        if results is not None:
            results.close()


def kept(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that rows keep."""
    settings = common.kept(args, KEPT) | {"detector": common.detectors(args)} | promoting.kept(args)
    return settings | ({"seed": f"{args.seed} + row"} if args.own_seeds else {})


def _run(args: argparse.Namespace, source: Path | None, results: Results | None) -> int:
    # the whole list is read once before the model is loaded, so that a bad line costs no computing
    total = None if source is None else sum(1 for _ in read_prompts(source, args.column, args.encoding))
    if total == 0:
        raise BadInput(f"{source}: holds no prompts")
    prompts = read_prompts(source, args.column, args.encoding)
    start = 0
    if results is not None:
        results.settings = kept(args)
        if args.resume:
            start = common.skip(prompts, results)
            results.agree(results.settings)
    tally = _Tally()
    try:
        # the model first: what is wrong with it must not cost the file that --force replaces
        reports = _reports(args, source, prompts, results, start) if total is None or start < total else iter(())
        with results or nullcontext():
            for report in common.progress(reports, total, " prompts", start):
                tally.add(report)
                if results is not None:
                    results.add(report)
                elif args.json:
                    print(json_line(report.to_json()), flush=True)
                else:
                    print(line(report), flush=True)
    except KeyboardInterrupt:
        if results is not None:
            goes_on = f"{args.out} holds {results.count} prompts; --resume continues"
            print(f"memguard scan: {goes_on if results.count else 'nothing was scored yet'}", file=sys.stderr)
        raise
    if tally.count == 0 and start == 0:
        raise BadInput("stdin: holds no prompts")
    # after a pre-scan those count that were promoted, unless the fault is their own, as that of no text is
    if tally.failed == tally.count - tally.left_out > 0 and (tally.ranked or not tally.left_out):
        raise BadInput(f"no prompt could be scored: {tally.reason}")
    return _conclude(args, tally, start)


def _reports(
    args: argparse.Namespace, source: Path | None, prompts: Iterable[Any], results: Results | None, start: int
) -> Iterator[Report]:
    """Return the reports from row ``start`` on, which ``prompts`` goes on with."""
    scanner = Scanner(args)
    if results is not None:
        results.agree({**results.settings, **scanner.made})
        results.settings = {**scanner.made, **results.settings}
    # a few rows are scored again, so that those behind them share a forward with the same rows as without the break
    begin = start - start % scanner.grain
    if begin < start:
        prompts = read_prompts(source, args.column, args.encoding, begin)
    return islice(scanner.reports(prompts, begin), start - begin, None)


class _Tally:
    """Counts of verdicts, and the prompts without a score."""

    def __init__(self) -> None:
        self.verdicts: Counter[str] = Counter()
        self.count = self.failed = self.left_out = 0
        self.ranked = False  # whether the first look could score one that the scan could not
        self.reason = ""
        self.uncalibrated = ""
        self.cut = common.Cut()

    def add(self, report: Report) -> None:
        finding = report.findings[0]
        self.cut.add(report.notes)
        self.count += 1
        if not finding.promoted:
            self.left_out += 1
            return
        self.verdicts[report.verdict] += 1
        if not finding.scores:
            self.failed += 1
            if promoting.seen(finding) or not self.ranked:
                self.reason = finding.status
            self.ranked |= promoting.seen(finding)
        elif report.verdict == "unknown":
            self.uncalibrated = finding.threshold_source


def _conclude(args: argparse.Namespace, tally: _Tally, start: int) -> int:
    counts = {name: tally.verdicts[name] for name in (*reversed(VERDICTS), "unknown")}
    if args.out is not None:
        if args.json:
            scanned = {"out": str(args.out), "scanned": tally.count, "skipped": start, "without_score": tally.failed}
            scanned |= {} if args.prescan is None else {"promoted": tally.count - tally.left_out}
            common.print_json(scanned | {"verdicts": counts})
        else:
            skipped = f", {start} were done before" if start else ""
            found = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
            said = f"{tally.count} prompts scanned{promoting.said(args, tally.count - tally.left_out)}{skipped}"
            print(f"{args.out}: {said}{': ' + found if found else ''}")
    elif args.prescan is not None and not args.json:
        said = f"{tally.count} prompts scanned{promoting.said(args, tally.count - tally.left_out)}"
        print(f"memguard scan: {said}", file=sys.stderr)
    if tally.failed:
        print(f"memguard scan: {tally.failed} without a score, for example because {tally.reason}", file=sys.stderr)
    tally.cut.tell("scan", tally.count)
    if tally.uncalibrated:
        idle = ", so --fail-on has nothing to go by" if args.fail_on else ""
        print(f"memguard scan: no verdict{idle}: {tally.uncalibrated}", file=sys.stderr)
    if args.fail_on is None:
        return 0
    return int(any(counts[name] for name in VERDICTS[VERDICTS.index(args.fail_on) :]))


def line(report: Report) -> str:
    """Return one row of the table on stdout: verdict, score, rank, prompt."""
    finding = report.findings[0]
    prompt = shown(" ".join((report.prompt or "").split()))
    short = prompt if len(prompt) <= SHOWN else prompt[: SHOWN - 1] + "…"
    if finding.prescan is not None and not finding.promoted:
        first = finding.prescan
        size = f"{first.height}x{first.width}"  # its rank is of another size than those of scores
        return f"{'not promoted':<12}{size:>8}  {f'above {first.below} of {first.count}':>18}  {short}"
    if finding.score is None:
        return f"{'no score':<12}{'':>8}  {'':>18}  {short}  ({shown(message(report))})"
    rank = "" if finding.count is None else f"above {finding.below} of {finding.count}"
    return f"{report.verdict:<12}{finding.score:>8.3f}  {rank:>18}  {short}"
