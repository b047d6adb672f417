"""``memguard merge``: put the files of a scan together, and say which prompts stand out at a false-discovery rate."""

from __future__ import annotations

import argparse
import heapq
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..lists import BadInput, files
from ..lists.merging import Damaged, Part, Row, parts
from ..lists.rows import difference
from ..lists.shards import Shard
from ..lists.table import COLUMNS, check, is_merged
from ..lists.whole import Whole
from ..texts import shown
from . import common

if TYPE_CHECKING:
    from .ranking import Ranking

SHOWN = 20  # rows of the table on stdout
NAMED = 5  # shards that one line names


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "merge",
        help="put the files of a scan together and find what stands out",
        description="Merge shards, rank all prompts among ordinary ones, and find those that stand out.",
        epilog="The false-discovery rate is the share of the found prompts that may be ordinary ones.",
    )
    parser.add_argument("results", type=Path, metavar="PATH", help="a folder of shards, or a file of memguard scan")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=".jsonl, .csv or .parquet: all rows with p and q values"
    )
    parser.add_argument("--force", action="store_true", help="replace --out")
    parser.add_argument("--found-only", action="store_true", help="--out holds the found prompts alone")
    parser.add_argument("--fdr", type=float, default=0.1, metavar="Q", help="false-discovery rate (default 0.1)")
    parser.add_argument(
        "--ordinary-share", type=float, metavar="S", help="of the prompts, 0..1; default: estimated; 1 assumes nothing"
    )
    parser.add_argument("--profile", type=Path, metavar="FILE", help="rank by this one; default: as they were scanned")
    parser.add_argument("--detector", metavar="NAME", help="whose scores; default: the first of the scan")
    parser.add_argument(
        "--tail",
        choices=("generalized-pareto",),
        help="assume this beyond the highest ordinary prompt; needs --profile and scipy",
    )
    parser.add_argument("--same-noise", action="store_true", help="rank although the scan was without --own-seeds")
    parser.add_argument("--settings", metavar="HEX", help="which scan, where a folder holds several")
    parser.add_argument("--partial", action="store_true", help="merge what is there although shards are missing")
    parser.add_argument("--fail-on-found", action="store_true", help="exit code 1 if there are any")
    parser.add_argument("--json", action="store_true", help="a summary as JSON, with the found prompts at the top")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Merge; return 0, or 1 for found prompts with --fail-on-found."""
    from .ranking import NOISE, Ranking

    if not 0 < args.fdr < 1:
        raise BadInput(f"--fdr: {args.fdr} is not between 0 and 1; 0.1 lets a tenth of the found ones be ordinary")
    if args.ordinary_share is not None and not 0 < args.ordinary_share <= 1:
        raise BadInput(f"--ordinary-share: {args.ordinary_share} is not above 0 and at most 1")
    if args.found_only and args.out is None:
        raise BadInput("--found-only needs --out")
    if args.out is not None:
        check(args.out)
        files.target(args.out, is_merged, (args.results, args.profile))
        if args.out.exists() and not args.force:
            raise BadInput(f"{args.out}: is there already; replace it with --force")
    there, problems = parts(args.results, args.settings)
    ranking = Ranking(args)
    merge = _Merge(args, there, problems, ranking)
    merge.count_all()
    if merge.problems:
        said = "; ".join(merge.problems[:NAMED]) + ("; ..." if len(merge.problems) > NAMED else "")
        if not args.partial:
            raise BadInput(f"{args.results}: {said}; {merge.remedy()}, or merge the rest with --partial")
        print(f"memguard merge: {args.results}: {said}", file=sys.stderr)
    if not merge.rows:
        raise BadInput(f"{args.results}: holds no rows")
    if not ranking.tests:
        raise BadInput(f"{args.results}: no row has a score, for example because {merge.reason}")
    own_noise = isinstance((merge.settings or {}).get("seed"), str)
    if not (own_noise or args.same_noise):
        raise BadInput(f"{args.results}: {NOISE}; scan with --own-seeds, or rank all the same with --same-noise")
    ranking.conclude(own_noise)
    merge.write()
    merge.tell()
    return int(args.fail_on_found and ranking.found > 0)


class _Merge:
    """What is counted in the first reading of the rows and written in the second; no row is kept in between."""

    def __init__(self, args: argparse.Namespace, there: list[Part], problems: list[str], ranking: Ranking) -> None:
        self.args, self.there, self.problems, self.ranking = args, there, problems, ranking
        self.whole: list[Part] = []
        self.damaged: list[Shard] = []
        self.cut = common.Cut()
        self.rows = self.unscored = 0
        self.reason = ""
        self.settings: dict[str, Any] | None = None
        self.top: list[tuple[float, int, str]] = []

    def count_all(self) -> None:
        """Read everything once; a damaged part counts for nothing."""
        for part in common.progress(self.there, len(self.there), " shards"):
            rows = unscored = 0
            reason, counted, looks, cut = "", Counter[float](), Counter[bool](), common.Cut()
            try:
                for row in part.rows(self.args.detector):
                    self._agree(part, row)
                    rows += 1
                    cut.add(row.notes)
                    if row.promoted is not None:
                        looks[row.promoted] += 1
                    p = self.ranking.p_value(row)
                    if p is None:
                        unscored, reason = unscored + 1, row.status
                    else:
                        counted[p] += 1
            except Damaged as error:
                self.problems.append(f"{part.called} is damaged, {error}")
                self.damaged += [] if part.shard is None else [part.shard]
                continue
            self.whole.append(part)
            self.ranking.counts.update(counted)
            self.ranking.looks.update(looks)
            self.cut = common.Cut(self.cut.count + cut.count, cut.example or self.cut.example)
            self.rows, self.unscored, self.reason = self.rows + rows, self.unscored + unscored, reason or self.reason

    def remedy(self) -> str:
        """Return how what is missing is scored."""
        damaged = [f"--shard {s.number}/{s.of}" for s in self.damaged]
        return f"scan again ({', '.join(damaged[:NAMED])} scores what is damaged anew)" if damaged else "scan again"

    def _agree(self, part: Part, row: Row) -> None:
        if row.settings == self.settings:
            return
        if self.settings is None:
            self.settings = row.settings
            return
        differs = difference(self.settings, row.settings)
        if differs:
            raise BadInput(f"{part.path}: {differs.replace('its rows', 'rows before', 1)}; scan these again")

    def _ranked(self) -> Iterator[tuple[Row, dict[str, Any]]]:
        for part in self.whole:
            for row in part.rows(self.args.detector):
                p = self.ranking.p_value(row)
                q = None if p is None else self.ranking.q_values[p]
                more = {"p_value": p, "q_value": q, "found": self.ranking.is_found(p)}
                yield row, {name: more[name] if name in more else getattr(row, name) for name in COLUMNS}

    def write(self) -> None:
        """Read everything again, rank it, and write what is asked for."""
        if self.args.out is None:
            self._write(None)
            return
        with Whole(self.args.out, COLUMNS) as file:
            self._write(file)

    def _write(self, file: Whole | None) -> None:
        for row, cells in self._ranked():
            if file is not None and (cells["found"] or not self.args.found_only):
                file.add(cells)
            if cells["found"]:
                entry = (row.rms or 0.0, -row.index, f"{cells['q_value']:<8.3g}{row.score or 0:>8.3f}  {_short(row)}")
                (heapq.heappush if len(self.top) < SHOWN else heapq.heappushpop)(self.top, entry)

    def tell(self) -> None:
        """Print what was found."""
        top = sorted(self.top, reverse=True)
        self.cut.tell("merge", self.rows)
        if self.args.json:
            values = {"rows": self.rows, "without_score": self.unscored, "shards": len(self.whole)}
            values |= {"problems": self.problems} | self.ranking.values()
            common.print_json(values | {"top": [-index for _, index, _ in top]})
            return
        if top:
            print(f"{'q-value':<8}{'score':>8}  prompt")
        for _, _, line in top:
            print(line)
        if self.ranking.found > len(top):
            print(f"... and {self.ranking.found - len(top)} more; --out has them all")
        without = f", {self.unscored} without a score (for example because {self.reason})" if self.unscored else ""
        print(f"{self.args.out or self.args.results}: {self.rows} rows{without}")
        for sentence in self.ranking.sentences():
            print(sentence)


def _short(row: Row) -> str:
    prompt = shown(" ".join((row.prompt or "").split()))
    return prompt if len(prompt) <= 60 else f"{prompt[:59]}…"
