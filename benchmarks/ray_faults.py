"""``memguard scan --engine ray`` whose actors and drivers are killed: is a row lost, doubled or another one afterwards?

First actors get SIGKILL while they score and the driver is left alone; then, in another folder, the driver gets it and
is started again. Rows are compared with those of one undisturbed scan, as in ``shard_faults.py``.

    python benchmarks/ray_faults.py --prompts 192 --shards 6 --workers 2 --actors 2 --drivers 1 [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from shard_faults import LIMIT, compared, finished, killed, start, writes

from memguard.calibration import ordinary_prompts

ACTOR = b"MapWorker"  # in the title of a process of Ray Data's pool


def actors(driver: int) -> list[int]:
    """Return the processes of a pool, of this driver's session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and ACTOR in (entry / "cmdline").read_bytes():
                environment = (entry / "environ").read_bytes()
                if f"MEMGUARD_DRIVER={driver}".encode() in environment:
                    found.append(int(entry.name))
        except OSError:
            continue
    return found


def without_actors(words: list[object], folder: Path, kills: int, draw: random.Random) -> tuple[int, str]:
    """Run a driver, kill actors while rows are written, and return how many and what the driver says at its end."""
    os.environ["MEMGUARD_DRIVER"] = str(os.getpid())
    process, count, ends = start(words), 0, time.monotonic() + LIMIT
    while process.poll() is None and count < kills and time.monotonic() < ends:
        pids = actors(os.getpid())
        if pids and writes(folder):
            time.sleep(draw.uniform(0, 1))
            os.kill(draw.choice(pids), signal.SIGKILL)
            count += 1
            time.sleep(3)  # for another actor to take the shard over
        time.sleep(0.05)
    try:
        said, errors = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise SystemExit(f"the driver hangs after {count} killed actors") from None
    return count, f"exit {process.returncode}: {said.strip()} {errors.strip()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="testbed")
    parser.add_argument("--prompts", type=int, default=192)
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--actors", type=int, default=2, help="to be killed under one driver")
    parser.add_argument("--drivers", type=int, default=1, help="to be killed")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    draw, texts = random.Random(0), ordinary_prompts()
    with tempfile.TemporaryDirectory() as place:
        source, whole = Path(place) / "list.txt", Path(place) / "whole.jsonl"
        source.write_text("\n".join(f"{texts[i % len(texts)]} {i}" for i in range(options.prompts)), encoding="utf-8")
        common: list[object] = ["scan", source, "--model", options.model]
        finished([*common, "--out", whole])
        ray = [*common, "--engine", "ray", "--shards", options.shards, "--workers", options.workers, "--out"]
        said: dict[str, object] = {}
        for kind in ("actors", "drivers"):
            folder = Path(place) / kind
            folder.mkdir()
            begun = time.perf_counter()
            if kind == "actors":
                said["killed actors"], said["driver"] = without_actors([*ray, folder], folder, options.actors, draw)
            else:
                kills = [killed([*ray, folder], folder, draw.uniform(0, 2)) for _ in range(options.drivers)]
                said["killed drivers"] = sum(kills)
                finished([*ray, folder])
            said[kind] = compared(whole, folder) | {"seconds": round(time.perf_counter() - begun)}
            print(json.dumps(said) if options.json else "\n".join(f"{k}: {v}" for k, v in said.items()), flush=True)


if __name__ == "__main__":
    main()
