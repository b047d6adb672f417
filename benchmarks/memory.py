"""Time and size of the memory of known prompts: one run remembered, texts looked up in a full memory.

    python -m benchmarks.memory [--rows 10000] [--folder FOLDER]

The memory is filled first, one run at a time; a folder in main memory (/dev/shm) makes that quick, and then no disk is
waited for.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

from memguard.memory import PromptMemory
from memguard.records import Attribution, Finding, Report, TokenSpan

WORDS = [f"word{i}" for i in range(5000)]


def report(number: int, random_: random.Random) -> Report:
    """Return a flagged run with eight driving words."""
    spans = tuple(TokenSpan(word, (i,)) for i, word in enumerate(random_.sample(WORDS, 8)))
    finding = Finding("text_noise_norm", (2.5,), (0.08,), percentile=99.9, verdict="memorized")
    attribution = Attribution("attention", spans, (1.0,) * 8)
    facts = {"model": "00000000cafe0001", "seeds": (number,), "created": "2026-01-02T03:04:05+00:00"}
    return Report("r", findings=(finding,), attribution=attribution, prompt=f"a prompt of number {number}", **facts)


def clock(action, times: int) -> str:
    """Return the median and the 90th percentile of an action's time on the wall and of its time on the processor."""
    wall, cpu = [], []
    for _ in range(times):
        start = time.perf_counter(), time.process_time()
        action()
        wall.append((time.perf_counter() - start[0]) * 1e3)
        cpu.append((time.process_time() - start[1]) * 1e3)
    shown = (f"{statistics.median(x):.1f} ms (90 % below {sorted(x)[int(times * 0.9)]:.1f})" for x in (wall, cpu))
    return " wall, ".join(shown) + " processor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--folder")
    asked = parser.parse_args()
    random_ = random.Random(0)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        memory = PromptMemory(Path(folder) / "prompts.sqlite3", max_rows=asked.rows)
        for number in range(asked.rows):
            assert memory.remember(report(number, random_), "bed.safetensors") == "ok"
        print(f"{memory.facts().rows} runs, {memory.facts().bytes / 1e6:.1f} MB")
        text = " ".join(random_.sample(WORDS, 40))
        long = " ".join(random_.choices(WORDS, k=2500))[:20_000]
        print("look, 1 text of 40 words:", clock(lambda: memory.look([text], ["bed.safetensors"]), 50))
        print("look, 8 such texts:", clock(lambda: memory.look([text] * 8, ["bed.safetensors"]), 50))
        print("look, 1 text of 20000 characters:", clock(lambda: memory.look([long], ["bed.safetensors"]), 20))
        print("remember:", clock(lambda: memory.remember(report(0, random_), "bed.safetensors"), 50))


if __name__ == "__main__":
    main()
