"""What ``memguard scan --prescan`` saves and loses on the test bed: speed, the share promoted, copies kept.

A profile at 64 px is made by ``memguard calibrate``. speed: the command with and without it takes turns on a short and
on a long list; the difference of both is what prompts cost without the start (imports, the model), and the ratio is the
median over rounds. Seconds are those of the processor, of which a command takes one: where others use the machine, too,
those of the clock say little. The long list is fresh ordinary prompts, each on some noises, with a few duplicates.
copies: every duplicate on many noises, scanned both ways; of those that the scan flags, those that are kept.
Every prompt is on noise of its own (--own-seeds).

    python benchmarks/prescan_speed.py [--promote 0.1 0.2] [--repeats 3] [--noises 8] [--rounds 3] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from false_positives import DUPLICATES, command, groups, interval
from scan_engines import Command

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

    def scan(self, source: Path, promote: float | None) -> tuple[float, list[dict]]:
        """Scan a list, with a pre-scan where a share is given; return seconds of the processor and rows."""
        out = self.folder / "out.jsonl"
        more = [] if promote is None else ["--prescan", self.profile, "--promote", promote]
        words = ["scan", source, *WAY, "--seed", SEED, "--batch-size", self.batch, "--out", out, "--force", *more]
        done = Command(words, self.threads)
        done.finished()
        return done.busy, rows(out)

    def speed(self, long: Path, short: Path, shares: Sequence[float], rounds: int) -> list[dict]:
        """Print and return prompts per second with and without pre-scans."""
        ways: dict[float | None, list[float]] = {None: [], **{share: [] for share in shares}}
        promoted: dict[float | None, list[bool]] = {}
        for turn in range(rounds):
            for share, rates in ways.items():
                (brief, few), (whole, many) = self.scan(short, share), self.scan(long, share)
                rates.append((len(many) - len(few)) / (whole - brief))
                promoted[share] = [(row["findings"][0].get("prescan") or {}).get("promoted", True) for row in many]
                print(f"round {turn + 1}, promote {share}: {brief:.1f} s, {whole:.1f} s", flush=True)
        table = []
        for share, rates in ways.items():
            ratios = [a / b for a, b in zip(rates, ways[None], strict=True)]
            row = {"promote": share, "prompts per second": statistics.median(rates), "ratios": ratios}
            row |= {"ratio": statistics.median(ratios), "promoted": [sum(promoted[share]), len(promoted[share])]}
            table.append(row)
            print(
                f"promote {share}: {row['prompts per second']:.2f} prompts/s, ratio {row['ratio']:.2f} (rounds"
                f" {min(ratios):.2f}..{max(ratios):.2f}); promoted {said(*row['promoted'])}"
            )
        return table

    def copies(self, source: Path, shares: Sequence[float]) -> list[dict]:
        """Print and return how many of the duplicates that a scan flags are kept by pre-scans."""
        _, plain = self.scan(source, None)
        flagged = [row["verdict"] in ("suspicious", "memorized") for row in plain]
        print(f"duplicates flagged by the scan: {said(sum(flagged), len(flagged))}")
        table = []
        for share in shares:
            _, sifted = self.scan(source, share)
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
    parser.add_argument("--promote", type=float, nargs="+", default=[0.1, 0.2], help="shares to compare")
    parser.add_argument("--repeats", type=int, default=3, help="noises of each fresh prompt in the long list")
    parser.add_argument("--noises", type=int, default=8, help="of each duplicate, for the share kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16, help="prompts per forward")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="figures as JSON")
    options = parser.parse_args()
    known = groups()
    ordinary, copied = known["fresh"], known[DUPLICATES]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.threads, options.batch)
        short = written(Path(folder) / "short.jsonl", ordinary[:64])
        long = written(Path(folder) / "long.jsonl", ordinary * options.repeats + copied)
        many = written(Path(folder) / "copies.jsonl", copied * options.noises)
        figures = {"copies": bench.copies(many, options.promote)}
        figures["speed"] = bench.speed(long, short, options.promote, options.rounds)
    if options.out:
        options.out.write_text(json.dumps({**vars(options), **figures}, indent=1, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
