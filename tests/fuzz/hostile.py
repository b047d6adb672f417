"""Sizes that fill memory or disk, each in a process of its own with limits: the command ends in one line."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
MEMORY, FILE = 6 << 30, 64 << 10  # bytes of address space, and of a file
LIMITS = """
import resource, signal, sys
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
resource.setrlimit(resource.RLIMIT_FSIZE, ({file}, {file}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from memguard.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run(root: Path, kinds: Counter, codes: Counter) -> list[AssertionError]:
    """Run them; return what did not hold."""
    folder = root / "hostile"
    folder.mkdir()
    broken = []
    for name, words, file in inputs(root, folder):
        kinds["hostile"] += 1
        script = LIMITS.format(memory=MEMORY, file=file)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", script, *words], env=environment, capture_output=True, text=True, cwd=folder
        )
        codes[done.returncode] += 1
        if done.returncode != 2 or "Traceback" in done.stderr or done.stderr.count("\n") != 1:
            broken.append(AssertionError(f"{name}: {done.returncode} {done.stderr[-1000:]}"))
            print(broken[-1], flush=True)
    return broken


def inputs(root: Path, folder: Path):
    """Yield name, words and the largest file that may be written."""
    model = ["--model", str(root / "model"), "--num-inference-steps", "2"]
    unlimited = 1 << 40

    def file(name: str, *parts: tuple[bytes, int]) -> str:
        with (folder / name).open("wb") as out:
            for data, times in parts:
                for _ in range(times):
                    out.write(data)
        return str(folder / name)

    megabyte = b"a" * (1 << 20)
    yield "a line of 512 MB", ["scan", file("long.txt", (megabyte, 512)), *model], unlimited
    yield "a cell of 64 MB", ["scan", file("long.csv", (b'prompt\n"', 1), (megabyte, 64), (b'"', 1)), *model], unlimited
    yield "a value of 64 MB", ["scan", file("v.jsonl", (b'"', 1), (megabyte, 64), (b'"\n', 1)), *model], unlimited
    yield "a nest of 16 MB", ["scan", file("n.jsonl", (b"[" * (1 << 20), 15)), *model], unlimited
    yield (
        "a profile of 64 MB",
        [*("scan", file("p.txt", (b"a fox\n", 1)), "--profile", file("p.json", (b"[" * (1 << 20), 64)), *model)],
        unlimited,
    )
    header = (1 << 40).to_bytes(8, "little")
    yield "a header of 1 TB", ["neurons", "show", file("h.safetensors", (header, 1), (b"{}", 1))], unlimited
    many = file("many.txt", *((b"a red fox on the roof %d\n" % i, 1) for i in range(64)))
    for suffix in ("jsonl", "csv", "parquet"):
        yield f"a full disk, {suffix}", ["scan", many, "--out", str(folder / f"full.{suffix}"), *model], FILE
    yield "a disk that is full from the start", ["scan", many, "--out", str(folder / "none.csv"), *model], 10
    yield (
        "pictures of 16,384 pixels",
        [
            *("generate", "a fox", "--height", "16384", "--width", "16384", "--num-images", "512"),
            *("--out", str(folder / "pictures"), *model),
        ],
        unlimited,
    )
