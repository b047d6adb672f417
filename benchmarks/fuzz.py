"""Odd input for every reader and command of the command line, from a seed: what must hold, and how often it did.

    python benchmarks/fuzz.py --inputs 2000 --seed 1

For each input: exit code 0, 1 or 2; no traceback; one line for one fault; a row for every prompt that a list holds;
every file that was there and is not the command's own is byte for byte what it was. The model is a tiny random one.
Some inputs run in processes of their own with little memory and small files allowed.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.fuzz import hostile
from tests.fuzz.bench import Bench, Broken
from tests.fuzz.cases import CASES
from tests.fuzz.running import prepared


def main() -> int:
    """Run the inputs; return 1 if something did not hold."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="kind of input")
    args = parser.parse_args()
    started, kinds, codes, broken = time.monotonic(), Counter(), Counter(), []
    with tempfile.TemporaryDirectory() as root:
        os.environ["MEMGUARD_HOME"] = str(Path(root) / "home")
        bench: Bench = prepared(Path(root))
        number = 0
        while bench.inputs < args.inputs:
            case = CASES[number % len(CASES)]
            number += 1
            if args.only and case.__name__ != args.only:
                continue
            before = bench.inputs
            with bench.fresh(codes):
                try:
                    case(Random(f"{args.seed} {number}"), bench)
                except Broken as error:
                    broken.append(error)
                    print(f"{case.__name__} {args.seed} {number}: {error!s:.1500}", flush=True)
            kinds[case.__name__] += bench.inputs - before
        if not args.only:
            broken += hostile.run(Path(root), kinds, codes)
    for kind, count in sorted(kinds.items()):
        print(f"{kind:<16}{count:>6}")
    ended = ", ".join(f"{count} ended with {code}" for code, count in sorted(codes.items()))
    print(f"{sum(kinds.values())} inputs, seed {args.seed}: {len(broken)} broken; {ended}")
    print(f"{time.monotonic() - started:.0f} s")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
