"""Lists of prompts as files, whole ones with what they hold, and damaged ones."""

import csv
import io
import json
from pathlib import Path
from random import Random
from typing import Any

from . import odd

ENCODINGS = ("rot13", "hex", "undefined", "utf-32", "cp1252", "\x00", "idna")
SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")


def whole(random: Random, folder: Path) -> tuple[Path, list[Any], list[str]]:
    """Write a list; return the file, its prompts as results must hold them, and the options that it needs."""
    suffix = random.choice(SUFFIXES)
    prompts: list[Any] = [odd.prompt(random) for _ in range(random.randint(1, 12))]
    path = folder / f"list{suffix}"
    end = random.choice(("\n", "\r\n", "\r"))
    encoding = random.choice(("utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig"))
    options = [] if encoding.startswith("utf-8") else ["--encoding", encoding]
    column = random.choice(("prompt", "Prompts", "CAPTION", "text"))
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        prompts = [None if random.random() < 0.1 else prompt.encode("utf-8", "replace").decode() for prompt in prompts]
        pyarrow.parquet.write_table(pyarrow.table({"id": range(len(prompts)), column: prompts}), path)
        return path, prompts, []
    if suffix == ".jsonl":
        prompts = [odd.value(random) if random.random() < 0.2 else prompt for prompt in prompts]
        prompts = [str(prompt)[:40] if isinstance(prompt, dict) else prompt for prompt in prompts]
        lines = [json.dumps(prompt if random.random() < 0.5 else {"id": 1, column: prompt}) for prompt in prompts]
        lines = [line for line in lines if len(line) < 4000]
        prompts = [read[column] if isinstance(read := json.loads(line), dict) else read for line in lines]
        text = end.join(lines)
    elif suffix == ".txt":
        prompts = [
            " ".join(prompt.encode("utf-8", "replace").decode().split()).strip("\ufeff\x00") for prompt in prompts
        ]
        prompts = [prompt for prompt in prompts if prompt.strip()] or ["a cat"]
        text = end.join(prompts)
    else:
        prompts = [prompt.encode("utf-8", "replace").decode().replace("\x00", "") for prompt in prompts]
        rows = io.StringIO()
        delimiter = "\t" if suffix == ".tsv" else random.choice(",;\t")
        writer = csv.writer(rows, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
        hint = f"sep={delimiter}{end}" if random.random() < 0.2 else ""
        writer.writerow(["id", column, "note"])
        writer.writerows([number, prompt, "x"] for number, prompt in enumerate(prompts))
        text = random.choice(("", end, f" {end}{end}")) + hint + rows.getvalue()
    path.write_bytes(text.encode(encoding))
    return path, prompts, options


def any_list(random: Random, folder: Path) -> tuple[Path, list[Any] | None, list[str]]:
    """The same, or a damaged list, whose prompts are not known: None."""
    path, prompts, options = whole(random, folder)
    if random.random() < 0.5:
        path.write_bytes(odd.damaged(random, path.read_bytes()))
        return path, None, options
    if random.random() < 0.1:
        return (
            path,
            None,
            ["--encoding", random.choice(("rot13", "hex", "undefined", "utf-32", "cp1252", "\x00", "idna"))],
        )
    if random.random() < 0.05:
        return path, None, [*options, "--column", odd.prompt(random)]
    return path, prompts, options
