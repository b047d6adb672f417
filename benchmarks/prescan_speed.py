"""What ``memguard scan --prescan`` saves and loses on the test bed: speed, the share promoted, copies kept.

A profile at 64 px is made by ``memguard calibrate``; every prompt is on noise of its own.
copies: every duplicate on several noises, by the command with and without --prescan; of those that the scan flags, what
is kept. speed: both ways take turns in this process on fresh ordinary prompts with some duplicates behind them.
Seconds are those of the processor: where others use the machine, too, those of the clock say little. Ratios are medians
over rounds.

    python benchmarks/prescan_speed.py [copies] [speed] [--promote 0.1 0.2] [--noises 8] [--rounds 3] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from false_positives import DUPLICATES, command, groups, interval
from scan_engines import Command

import memguard
from memguard import testbed
from memguard.calibration import Profile

SIDE = 64  # pixels of the first look, half of the model's own
WAY = ("--model", "testbed", "--own-seeds", "--device", "cpu", "--dtype", "float32")
SEED = 900_000  # none of a calibration's


def written(path: Path, prompts: Sequence[str]) -> Path:
    """Write a list."""
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts), encoding="utf-8")
    return path


def rows(path: Path) -> list[dict]:
    """Return the rows of a scan."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Bench:
    """A folder with lists and a profile, and commands that run there."""

    def __init__(self, folder: Path, threads: int, batch: int) -> None:
        self.folder, self.threads, self.batch = folder, threads, batch
        made = command("calibrate", *WAY[:2], *WAY[3:], "--height", SIDE, "--width", SIDE, "--out", folder, "--json")
        self.profile = json.loads(made)["file"]

    def scan(self, source: Path, promote: float | None) -> list[dict]:
        """Scan a list, with a pre-scan where a share is given; return the rows."""
        out = self.folder / "out.jsonl"
        more = [] if promote is None else ["--prescan", self.profile, "--promote", promote]
        words = ["scan", source, *WAY, "--seed", SEED, "--batch-size", self.batch, "--out", out, "--force", *more]
        Command(words, self.threads).finished()
        return rows(out)

    def speed(self, prompts: Sequence[str], shares: Sequence[float], rounds: int) -> list[dict]:
        """Print and return prompts per second with and without pre-scans, in this process."""
        torch.set_num_threads(self.threads)
        pipe, first = testbed.pipeline(), Profile.read(self.profile)
        settings = {"seed": SEED, "own_seeds": True, "batch_size": self.batch}
        ways: dict[float | None, list[float]] = {None: [], **{share: [] for share in shares}}
        promoted: dict[float | None, int] = {}
        list(memguard.prescan(pipe, prompts[: self.batch], first, 0.999, **settings))  # what a process does only once
        for turn in range(rounds):
            for share, rates in ways.items():
                started = time.process_time()
                if share is None:
                    reports = memguard.scan(pipe, prompts, **settings)
                else:
                    reports = memguard.prescan(pipe, prompts, first, share, **settings)
                promoted[share] = sum(report.findings[0].promoted for report in reports)
                rates.append(len(prompts) / (time.process_time() - started))
                print(f"round {turn + 1}, promote {share}: {rates[-1]:.2f} prompts/s", flush=True)
        table = []
        for share, rates in ways.items():
            ratios = [a / b for a, b in zip(rates, ways[None], strict=True)]
            row = {"promote": share, "prompts per second": statistics.median(rates), "ratios": ratios}
            row |= {"ratio": statistics.median(ratios), "promoted": [promoted[share], len(prompts)]}
            table.append(row)
            print(
                f"promote {share}: {row['prompts per second']:.2f} prompts/s, ratio {row['ratio']:.2f} (rounds"
                f" {min(ratios):.2f}..{max(ratios):.2f}); promoted {said(*row['promoted'])}"
            )
        return table

    def copies(self, source: Path, shares: Sequence[float]) -> list[dict]:
        """Print and return how many of the duplicates that a scan flags are kept by pre-scans."""
        plain = self.scan(source, None)
        flagged = [row["verdict"] in ("suspicious", "memorized") for row in plain]
        print(f"duplicates flagged by the scan: {said(sum(flagged), len(flagged))}")
        table = []
        for share in shares:
            sifted = self.scan(source, share)
            kept = [row["verdict"] in ("suspicious", "memorized") for row in sifted]
            both = [row for row in zip(plain, sifted, strict=True) if row[1]["findings"][0]["prescan"]["promoted"]]
            off = [abs(a["findings"][0]["rms"][0] / b["findings"][0]["rms"][0] - 1) for a, b in both]
            hits = sum(a and b for a, b in zip(flagged, kept, strict=True))
            row = {"promote": share, "flagged": sum(flagged), "kept": hits, "promoted": len(both), "of": len(flagged)}
            row |= {"flagged by the pre-scan's alone": sum(kept) - hits, "largest difference of scores": max(off)}
            table.append(row)
            print(
                f"promote {share}: kept {said(hits, sum(flagged))}; flagged besides {sum(kept) - hits};"
                f" scores of promoted ones differ by at most {max(off):.1e}"
            )
        return table


def said(hits: int, count: int) -> str:
    """Return a rate with its interval."""
    low, high = interval(hits, count)
    return f"{hits} of {count} = {hits / count:.1%} [{low:.1%}, {high:.1%}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="copies, speed; default both")
    parser.add_argument("--promote", type=float, nargs="+", default=[0.1, 0.2], help="shares to compare")
    parser.add_argument("--noises", type=int, default=8, help="of each duplicate, for the share kept")
    parser.add_argument("--copied", type=int, default=9, help="duplicates behind the 303 fresh prompts, for the speed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16, help="prompts per forward")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="figures as JSON")
    options = parser.parse_args()
    known, figures = groups(), {}
    ordinary, copied = known["fresh"], known[DUPLICATES]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.threads, options.batch)
        if not options.what or "copies" in options.what:
            many = written(Path(folder) / "copies.jsonl", copied * options.noises)
            figures["copies"] = bench.copies(many, options.promote)
        if not options.what or "speed" in options.what:
            figures["speed"] = bench.speed(ordinary + copied[: options.copied], options.promote, options.rounds)
    if options.out:
        options.out.write_text(json.dumps({**vars(options), **figures}, indent=1, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
