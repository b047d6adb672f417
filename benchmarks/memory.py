"""The memory of known prompts: its time and size, and whom it flags on the test bed.

Time: one run remembered, texts looked up in a full memory. It is filled first, one run at a time; a folder in main
memory (/dev/shm) makes that quick, and then no disk is waited for.
Flags: the test bed's duplicated captions and one prompt of each template family are scanned, the flagged ones explained
and remembered; then other prompts are looked up.
    python benchmarks/memory.py time [--rows 10000] [--folder FOLDER]
    python benchmarks/memory.py flags
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import memguard
from memguard import testbed
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


def clock(action: Callable[[], object], times: int) -> str:
    """Return the median and the 90th percentile of an action's time on the wall and of its time on the processor."""
    wall, cpu = [], []
    for _ in range(times):
        start = time.perf_counter(), time.process_time()
        action()
        wall.append((time.perf_counter() - start[0]) * 1e3)
        cpu.append((time.process_time() - start[1]) * 1e3)
    shown = (f"{statistics.median(x):.1f} ms (90 % below {sorted(x)[int(times * 0.9)]:.1f})" for x in (wall, cpu))
    return " wall, ".join(shown) + " processor"


def measure_time(rows: int, parent: str | None) -> None:
    """Print how long remembering and looking up take in a full memory."""
    random_ = random.Random(0)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        memory = PromptMemory(Path(folder) / "prompts.sqlite3", max_rows=rows)
        for number in range(rows):
            assert memory.remember(report(number, random_), "bed.safetensors") == "ok"
        print(f"{memory.facts().rows} runs, {memory.facts().bytes / 1e6:.1f} MB")
        text = " ".join(random_.sample(WORDS, 40))
        long = " ".join(random_.choices(WORDS, k=2500))[:20_000]
        print("look, 1 text of 40 words:", clock(lambda: memory.look([text], ["bed.safetensors"]), 50))
        print("look, 8 such texts:", clock(lambda: memory.look([text] * 8, ["bed.safetensors"]), 50))
        print("look, 1 text of 20000 characters:", clock(lambda: memory.look([long], ["bed.safetensors"]), 20))
        print("remember:", clock(lambda: memory.remember(report(0, random_), "bed.safetensors"), 50))


def measure_flags() -> None:
    """Print how many prompts of each kind a memory of flagged runs flags for their words."""
    pipe = testbed.pipeline("final")
    pipe.set_progress_bar_config(disable=True)
    captions, template = [original.caption for original in testbed.originals()], testbed.prompts("template")
    with tempfile.TemporaryDirectory() as folder:
        memory = PromptMemory(Path(folder) / "prompts.sqlite3")
        flagged = [run for run in memguard.scan(pipe, [*captions, *template[::3]]) if run.flagged]
        for run in flagged:
            found = replace(run, attribution=memguard.explain(pipe, run.prompt))
            assert memory.remember(found) == "ok"
        print(f"{len(flagged)} flagged of {len(captions)} captions and {len(template[::3])} template prompts")
        others = [text for i, text in enumerate(template) if i % 3]
        kinds = {"others of the same templates": others}
        kinds["flagged prompts with a new ending"] = [f"a quick sketch of {run.prompt}, in pencil" for run in flagged]
        kinds |= {name: testbed.prompts(name) for name in ("ordinary", "held", "single", "single_held")}
        for name, texts in kinds.items():
            hits = [warning for warning in memory.look(texts)[1] if warning]
            words = sorted({" ".join(warning.words) for warning in hits})
            print(f"{name}: {len(hits)} of {len(texts)} flagged; by {words[:12]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "flags"])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--folder")
    asked = parser.parse_args()
    if asked.what == "time":
        measure_time(asked.rows, asked.folder)
    else:
        measure_flags()


if __name__ == "__main__":
    main()
