"""``memguard scan --engine ray``: the shards of a list on a Ray cluster, or on the cores and GPUs of this machine.

Ray Data hands the shards' numbers to a pool of actors, each with a model of its own; it replaces actors that die and
gives their shard to another. What is done is known from the shards' files alone, so a driver that is killed is simply
started again. Actors are told only numbers: they read the rows and write the files themselves, on storage that all
nodes share.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..lists import BadInput, shards
from ..lists.merging import has_end
from ..records import VERDICTS
from . import common, promoting
from .scanner import Scanner
from .sharding import DEVICE, Outcome, Plan, planned, score

ROWS = 2048  # of a shard, unless the number of shards is given: some minutes of work, which a dead actor costs at most


class Worker:
    """Scores shards by their numbers; one actor of the pool."""

    def __init__(self, plan: Plan, of: int) -> None:
        self.plan, self.of = plan, of
        self.scanner = Scanner(plan.args)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score the shards of a batch; what became of each is a row."""
        return {"outcome": [json.dumps(vars(self.outcome(int(number)))) for number in batch["number"]]}

    def outcome(self, number: int) -> Outcome:
        """Score one shard; a failure is an outcome, too, and ends nothing."""
        try:
            return score(self.plan, self.scanner, number, self.of, bar=False)
        except shards.ShardFailed as error:
            if DEVICE.search(str(error)):
                os._exit(1)  # no call of this process will work again; Ray starts another and asks it for this shard
            return Outcome(number, self.of, reason=str(error))
        except BadInput as error:
            return Outcome(number, self.of, reason=str(error))
        except Exception as error:  # kept with the shard's tries
            return Outcome(number, self.of, reason=f"{type(error).__name__}: {common.first_line(error)}")


def run(args: argparse.Namespace, source: Path | None, kept: dict[str, Any]) -> int:
    """Score all shards; return 0.

    Raises:
        BadInput: if shards are left that could not be scored; what is done stays.

    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # memguard sends nothing to anybody, nor does what it starts
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its log files have it all
    import ray

    args.out = None if args.out is None else args.out.absolute()
    plan = planned(args, None if source is None else source.absolute(), kept)
    of = args.shards or max(1, -(-plan.listing.count // ROWS))
    if args.force:
        for number in range(1, of + 1):
            shards.forget(plan.folder, number, of, plan.settings)
    todo = list(range(1, of + 1)) if args.force else _left(plan, of)
    done = of - len(todo)
    with _in_a_line():
        if not ray.is_initialized():
            # an address from RAY_ADDRESS or a running cluster, else a cluster on this machine
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
    tally, reasons = _Tally(), dict[int, str]()
    for _ in range(args.tries):  # a shard that failed has some tries left, on another actor
        reasons = {}
        for outcome in common.progress(_outcomes(plan, of, todo), len(todo), " shards"):
            tally.add(outcome)
            if not outcome.file:
                reasons[outcome.number] = outcome.reason
        plan = replace(plan, args=argparse.Namespace(**vars(args) | {"force": False}))
        todo = _left(plan, of)
        if not todo:
            break
    return tally.conclude(args, of, done, {number: reasons.get(number, "it was not scored") for number in todo})


@contextmanager
def _in_a_line() -> Iterator[None]:
    """Turn what Ray raises in the block into one line; it raises bare ``Exception`` and ``ConnectionError``, too.

    Raises:
        BadInput: that says what Ray says, in the last line of it; above are its traces.

    """
    try:
        yield
    except ModuleNotFoundError:  # the command line says which extra brings it
        raise
    except Exception as error:
        lines = (str(error).strip() or type(error).__name__).splitlines()
        raise BadInput(f"ray: {lines[-1].strip().rstrip('.')}; start again to go on") from None


def _left(plan: Plan, of: int) -> list[int]:
    """Return the shards that are not there, or were cut; to read all rows of all shards would take too long."""
    files = {number: shards.there(plan.folder, number, of, plan.settings) for number in range(1, of + 1)}
    return [number for number, file in files.items() if file is None or not has_end(file)]


def _outcomes(plan: Plan, of: int, todo: list[int]) -> Iterator[Outcome]:
    import ray.data

    if not todo:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with _in_a_line():
        has = ray.cluster_resources()
        gpus = int(has.get("GPU", 0)) if plan.args.device in ("auto", "cuda") else 0
        most = gpus or int(has.get("CPU", 1))
        size = min(plan.args.workers or most, most, len(todo))
        numbers = ray.data.from_items([{"number": number} for number in todo], override_num_blocks=len(todo))
        rows = numbers.map_batches(
            Worker,
            fn_constructor_args=(plan, of),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1),
            num_gpus=1 if gpus else 0,
            num_cpus=1,
        )
        for row in rows.iter_rows():
            yield Outcome(**json.loads(row["outcome"]))


class _Tally:
    """What came of the shards."""

    def __init__(self) -> None:
        self.verdicts: Counter[str] = Counter()
        self.scanned = self.failed = self.left_out = 0
        self.reason = ""
        self.cut = common.Cut()

    def add(self, outcome: Outcome) -> None:
        if outcome.file and not outcome.skipped:
            self.verdicts.update(outcome.verdicts)
            self.scanned, self.failed = self.scanned + outcome.scanned, self.failed + outcome.failed
            self.left_out += outcome.left_out
            self.reason = outcome.reason or self.reason
            self.cut = common.Cut(self.cut.count + outcome.cut, outcome.cut_note or self.cut.example)

    def conclude(self, args: argparse.Namespace, of: int, done: int, left: dict[int, str]) -> int:
        counts = {name: self.verdicts[name] for name in (*reversed(VERDICTS), "unknown")}
        if args.json:
            values = {"out": str(args.out), "shards": of, "done_before": done, "scanned": self.scanned}
            values |= {} if args.prescan is None else {"promoted": self.scanned - self.left_out}
            common.print_json(values | {"without_score": self.failed, "verdicts": counts, "left": left})
        else:
            found = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
            before = f", {done} shards were done before" if done else ""
            promoted = promoting.said(args, self.scanned - self.left_out)
            scanned = f"{self.scanned} prompts scanned{promoted} in {of} shards{before}"
            print(f"{args.out}: {scanned}{': ' + found if found else ''}")
        if self.failed:
            print(f"memguard scan: {self.failed} without a score, for example because {self.reason}", file=sys.stderr)
        self.cut.tell("scan", self.scanned)
        if left:
            number, reason = next(iter(left.items()))
            raise BadInput(f"{args.out}: {len(left)} of {of} shards are not done, for example {number}: {reason}")
        return 0
