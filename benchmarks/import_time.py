"""How long ``import memguard`` takes, beside ``import torch``: the budget is 0.1 s over torch (DESIGN section 7).

Fresh processes, torch and memguard timed in the same one, so that a slow machine slows both.
    python benchmarks/import_time.py --runs 11
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROBE = """
import json, time
a = time.perf_counter()
import torch
b = time.perf_counter()
import memguard
c = time.perf_counter()
print(json.dumps([b - a, c - b]))
"""


def measure(runs: int) -> dict[str, float]:
    """Return median seconds of both imports and the median ratio (torch + memguard) / torch of one process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROBE]
    rows = []
    for _ in range(runs + 1):
        rows.append(json.loads(subprocess.check_output(command, env=environment, text=True)))
    rows = rows[1:]  # the first run fills the disk cache and writes bytecode
    return {
        "runs": runs,
        "torch_seconds": statistics.median(torch for torch, _ in rows),
        "memguard_seconds": statistics.median(own for _, own in rows),
        "ratio": statistics.median((torch + own) / torch for torch, own in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=11, help="fresh processes, after one that is not counted")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    figures = measure(options.runs)
    if options.json:
        print(json.dumps(figures))
        return
    print(f"import torch     {figures['torch_seconds']:.3f} s (median of {figures['runs']} processes)")
    print(f"import memguard  {figures['memguard_seconds']:.3f} s more; budget 0.100 s")
    print(f"ratio            {figures['ratio']:.3f}")


if __name__ == "__main__":
    main()
