"""Prompts per second of ``memguard scan``: one at a time, batched, two shards at once, two Ray workers; its memory.

speed: every way is the command itself, with --own-seeds. It runs on a short and on a long list, and the difference of
both is what prompts cost without the start: imports, the model, Ray. The ways take turns, so that a busy machine slows
all of them; ratios are medians over rounds, to one prompt at a time. How far scores differ is said, too.
memory: one long scan as a command; its resident memory every so many rows, and the most that ``memguard merge`` took.
``--model random-sd15`` is a model of Stable Diffusion 1.5's sizes with random weights: its scores mean nothing.

    python benchmarks/scan_engines.py speed [--device cuda] [--prompts 512] [--rounds 5] [--batch 16 64]
    python benchmarks/scan_engines.py memory [--device cuda] [--prompts 20000]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from memguard.calibration import ordinary_prompts

RANDOM = "random-sd15"
PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20


class Command:
    """A command of memguard that runs, its libraries with so many threads."""

    def __init__(self, words: Sequence[object], threads: int) -> None:
        number = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        self.words = [str(word) for word in words]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as it runs; a pipe that nobody reads would stop its writer
        self.process = subprocess.Popen(
            [sys.executable, "-m", "memguard.cli", *self.words],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=os.environ | number,
        )

    def resident(self) -> float | None:
        """Return its resident memory, MiB; None once it has ended."""
        try:
            return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * PAGE / MIB or None
        except (OSError, IndexError):
            return None

    def finished(self) -> float:
        """Wait for its end; return its highest resident memory, MiB."""
        _, status, used = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.log.seek(0)
        if self.process.returncode:
            raise SystemExit(f"memguard {' '.join(self.words)}: exit {self.process.returncode}: {self.log.read()}")
        self.log.close()
        return used.ru_maxrss / 1024


def written(path: Path, count: int) -> Path:
    """Write a list of so many prompts, no two of them alike."""
    texts = ordinary_prompts()
    path.write_text("".join(f"{texts[i % len(texts)]} {i}\n" for i in range(count)), encoding="utf-8")
    return path


@contextmanager
def model(name: str) -> Iterator[str]:
    """Hand out what --model takes; a model of random weights lies in a folder as long as it is used."""
    if name != RANDOM:
        yield name
        return
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    from memguard import testbed
    from memguard.testbed.model import text_config

    torch.manual_seed(0)
    pipe = testbed.pipeline()
    unet = UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8
    )  # the other defaults are SD1's
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
    )
    pipe.register_modules(unet=unet, vae=vae, text_encoder=CLIPTextModel(text_config(768, 12, 12)))
    with tempfile.TemporaryDirectory() as folder:
        pipe.to(torch.float16).save_pretrained(folder)
        yield folder


def ways(batches: Sequence[int]) -> dict[str, list[list[object]]]:
    """Return what is compared: name -> the commands that run at the same time."""
    largest = ["--batch-size", batches[-1]]
    found: dict[str, list[list[object]]] = {"one at a time": [["--batch-size", 1]]}
    found |= {f"batches of {size}": [["--batch-size", size]] for size in batches}
    found["2 shards"] = [["--shard", f"{i}/2", *largest] for i in (1, 2)]
    if importlib.util.find_spec("ray"):
        found["2 Ray workers"] = [["--engine", "ray", "--workers", 2, "--shards", 2, *largest]]
    return found


class Race:
    """Ways to scan the same list, in turns."""

    def __init__(self, options: argparse.Namespace, name: str) -> None:
        self.threads = options.threads
        self.given = ["--model", name, "--device", options.device, "--dtype", options.dtype, "--own-seeds"]
        self.scores: dict[str, list[float]] = {}

    def seconds(self, source: Path, name: str, way: list[list[object]]) -> float:
        """Run one way on a list; return how long it takes until all of its commands have ended."""
        with tempfile.TemporaryDirectory() as folder:
            whole = way[0][0] == "--batch-size"
            out = Path(folder) / "rows.jsonl" if whole else Path(folder)
            begun = time.perf_counter()
            commands = [Command(["scan", source, *self.given, *each, "--out", out], self.threads) for each in way]
            for each in commands:
                each.finished()
            took = time.perf_counter() - begun
            files = [out] if whole else sorted(out.glob("*.jsonl"))
            rows = [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
        self.scores[name] = [row["findings"][0]["scores"][0] for row in rows]
        if len(rows) != len(source.read_text(encoding="utf-8").splitlines()):
            raise SystemExit(f"{name}: {len(rows)} rows are not those of {source}")
        return took

    def difference(self, name: str, other: str) -> float:
        """Return the largest relative difference of scores of the last lists."""
        return max(abs(a - b) / b for a, b in zip(self.scores[name], self.scores[other], strict=True))


def speed(options: argparse.Namespace) -> dict:
    """Print and return prompts per second of all ways, and their ratios."""
    compared = ways(options.batch)
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in compared}
    with tempfile.TemporaryDirectory() as folder, model(options.model) as name:
        race = Race(options, name)
        short = written(Path(folder) / "short.txt", options.short)
        long = written(Path(folder) / "long.txt", options.short + options.prompts)
        for turn in range(options.rounds):
            for way, commands in compared.items():
                took[way].append((race.seconds(short, way, commands), race.seconds(long, way, commands)))
                print(
                    f"round {turn + 1}, {way}: " + " s, ".join(f"{each:.1f}" for each in took[way][-1]) + " s",
                    flush=True,
                )
    if any(b <= a for pairs in took.values() for a, b in pairs):
        raise SystemExit("the long list took no longer than the short one; give more --prompts")
    rates = {way: [options.prompts / (b - a) for a, b in pairs] for way, pairs in took.items()}
    first, table = next(iter(rates)), []
    for way, values in rates.items():
        ratios = [a / b for a, b in zip(values, rates[first], strict=True)]
        row = {"way": way, "prompts per second": statistics.median(values), "ratio": statistics.median(ratios)}
        row |= {"ratios": ratios, "start": statistics.median(a for a, _ in took[way])}
        row |= {"difference to the largest batches": race.difference(way, f"batches of {options.batch[-1]}")}
        table.append(row)
        print(
            f"{way:16} {row['prompts per second']:8.2f} prompts/s, ratio {row['ratio']:5.2f}"
            f" (rounds {min(ratios):.2f}..{max(ratios):.2f}); {options.short} prompts take {row['start']:.1f} s;"
            f" scores differ by at most {row['difference to the largest batches']:.1e}"
        )
    if "2 Ray workers" not in rates:
        print("2 Ray workers: left out, ray is not installed")
    return {"what": "speed", **vars(options), "rows": table}


def memory(options: argparse.Namespace) -> dict:
    """Print and return resident memory over one long scan, and of merging its rows."""
    table: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as folder, model(options.model) as name:
        source, out = written(Path(folder) / "list.txt", options.prompts), Path(folder) / "rows.jsonl"
        given = ["--model", name, "--device", options.device, "--dtype", options.dtype, "--own-seeds"]
        scan = Command(["scan", source, *given, "--batch-size", options.batch[-1], "--out", out], options.threads)
        read = rows = 0
        while (size := scan.resident()) is not None:
            if out.exists():
                with out.open("rb") as file:
                    file.seek(read)
                    piece = file.read()
                read, rows = read + len(piece), rows + piece.count(b"\n")
            if rows >= options.every * (len(table) + 1):
                table.append((rows, size))
                print(f"{rows:>8} rows: {size:8.1f} MiB", flush=True)
            time.sleep(0.05)
        most = scan.finished()
        words = ["merge", out, "--out", Path(folder) / "table.csv"]
        merged = None if options.model == RANDOM else Command(words, options.threads).finished()
    if len(table) < 3:
        raise SystemExit(f"only {len(table)} readings; give more --prompts or a smaller --every")
    tenth = table[len(table) // 10][1]
    slope = statistics.linear_regression(*zip(*table[len(table) // 10 :], strict=True)).slope
    print(f"scan: at most {most:.1f} MiB; after a tenth of the rows {tenth:.1f}, at the end {table[-1][1]:.1f} MiB;")
    print(
        f"after the first tenth {1000 * slope:+.2f} MiB per 1000 rows"
        + ("" if merged is None else f"; merge: {merged:.1f} MiB")
    )
    found = {"tenth": tenth, "end": table[-1][1], "most": most, "merge": merged, "slope per row": slope}
    return {"what": "memory", **vars(options), "readings": table, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "memory"))
    parser.add_argument("--model", default="testbed", help=f"testbed, {RANDOM}, or what memguard scan takes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prompts", type=int, default=512, help="beside the short list's")
    parser.add_argument("--short", type=int, help="prompts of the short list; default two forwards")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[8], help="prompts per forward")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--every", type=int, default=1000, help="rows between two readings of the memory")
    parser.add_argument("--out", type=Path, help="figures as JSON")
    options = parser.parse_args()
    options.short = options.short or 2 * options.batch[-1]  # one for each of two shards
    figures = {"speed": speed, "memory": memory}[options.what](options)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
