"""Scans in parts that are killed, or whose disk is full: is a row lost, doubled or another one afterwards?

Each try is a process of its own that gets SIGKILL at a random moment while it scores; the last one is left alone. Then
the shards' rows are compared with those of one undisturbed scan, and what ``memguard merge`` makes of both.
With --full-disk (root only) the folder is a file system of 24 KiB that is enlarged afterwards.

    python benchmarks/shard_faults.py --prompts 192 --shards 3 --kills 6 [--full-disk] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from memguard.calibration import ordinary_prompts

LIMIT = 600  # seconds until a process that does nothing is given up


def start(words: list[object]) -> subprocess.Popen:
    """Run a command of memguard in a process group of its own."""
    line = [sys.executable, "-m", "memguard.cli", *map(str, words)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def writes(folder: Path) -> bool:
    """Whether somebody has begun to write rows."""
    return any(path.stat().st_size for path in folder.glob(".*.part"))


def killed(words: list[object], folder: Path, delay: float) -> bool:
    """Start a scan and kill it some time after its first rows; return whether it was still at work."""
    process = start(words)
    ends = time.monotonic() + LIMIT
    while process.poll() is None and not writes(folder) and time.monotonic() < ends:
        time.sleep(0.01)
    time.sleep(delay)
    alive = process.poll() is None
    if alive:
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return alive


def finished(words: list[object], code: int = 0) -> tuple[str, str]:
    """Run a command to its end and return what it says."""
    process = start(words)
    said, errors = process.communicate(timeout=LIMIT)
    if process.returncode != code:
        raise SystemExit(f"memguard {words}: exit {process.returncode}, not {code}: {errors}")
    return said, errors


def rows(paths: list[Path]) -> list[dict]:
    """Return the rows of files, one after the other."""
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def compared(whole: Path, folder: Path) -> dict:
    """Return how the rows of shards differ from those of one scan."""
    one, many = rows([whole]), rows(sorted(folder.glob("*.jsonl")))
    numbers = [row["index"] for row in many]
    other = sum(a["findings"] != b["findings"] or a["prompt"] != b["prompt"] for a, b in zip(one, many, strict=False))
    for source, name in ((whole, "a.csv"), (folder, "b.csv")):
        finished(["merge", source, "--out", whole.with_name(name), "--force", "--same-noise"])
    return {
        "rows": len(many),
        "lost": len(set(range(len(one))) - set(numbers)),
        "doubled": len(numbers) - len(set(numbers)),
        "other": other,
        "merged alike": whole.with_name("a.csv").read_bytes() == whole.with_name("b.csv").read_bytes(),
        "left behind": sorted(p.name for p in folder.iterdir() if p.suffix != ".jsonl"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="testbed")
    parser.add_argument("--prompts", type=int, default=192)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--kills", type=int, default=6, help="of all shards together")
    parser.add_argument("--longest", type=float, default=3.0, help="seconds of work before a kill")
    parser.add_argument("--full-disk", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    draw, texts = random.Random(0), ordinary_prompts()
    with tempfile.TemporaryDirectory() as place:
        source, whole, folder = Path(place) / "list.txt", Path(place) / "whole.jsonl", Path(place) / "shards"
        source.write_text("\n".join(f"{texts[i % len(texts)]} {i}" for i in range(options.prompts)), encoding="utf-8")
        common: list[object] = ["scan", source, "--model", options.model]
        finished([*common, "--out", whole])
        folder.mkdir()
        said = {"kills": 0, "tries": 0}
        if options.full_disk:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", folder], check=True)
        try:
            for number in range(1, options.shards + 1):
                words = [*common, "--out", folder, "--shard", f"{number}/{options.shards}", "--tries", 1000]
                if options.full_disk:
                    said["full"] = finished(words, 2)[1].strip().replace(str(folder), "DIR")
                    said["left by a full disk"] = sorted(p.name for p in folder.iterdir())
                    subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
                for _ in range(options.kills // options.shards):
                    said["tries"] += 1
                    said["kills"] += killed(words, folder, draw.uniform(0, options.longest))
                finished(words)
                if options.full_disk and number < options.shards:
                    used = sum(-(-p.stat().st_size // 4096) * 4 for p in folder.iterdir())
                    subprocess.run(["mount", "-o", f"remount,size={used + 12}k", folder], check=True)
            said |= compared(whole, folder)
        finally:
            if options.full_disk:
                subprocess.run(["umount", folder], check=True)
    print(json.dumps(said) if options.json else "\n".join(f"{name}: {value}" for name, value in said.items()))


if __name__ == "__main__":
    main()
