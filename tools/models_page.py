"""Write docs/models.md: what works with which model, from the rows of the two matrices.

    python tools/models_page.py --comfyui comfyui.jsonl --diffusers diffusers.jsonl

The rows come from ``benchmarks/matrix_comfyui.py --out comfyui.jsonl`` and ``benchmarks/matrix_diffusers.py --out
diffusers.jsonl``. A mark says that a number was given or that the picture changed; else there is the number of the
reason that MemGuard gave, and the reasons stand below the table.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from memguard.mitigations import available

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
METHODS = {"gradient": "g", "ablation": "a", "attention": "c"}
YES = "●"
NAMES = re.compile(
    r"^\w+(?= has no cross-attention| is not called)|(?<=know how )\w+(?= makes)|(?<=attention of )\w+(?=,)| \(\w+\)$"
)
TEXTS = re.compile(r"the prompt became '[^']*'")
UNTRIED = {
    "neuron_mask",
    "random_tokens",
}  # with diffusers' recipes: they need neurons of this very model, and a tokenizer of words
INTRO = """# What works with which model

Each model is built small, with random weights, and run with MemGuard and without. A mark says that a score was given or
that a mitigation changed the picture, and not that it helps; a number is that of the reason which MemGuard gives in
place of it, below the table. Watching changed no picture of any of them.

Score: `text_noise_norm`. Entropy: `attention_entropy`. Words: by which methods `explain` and *MemGuard Token
Attribution* give them (g gradient, a ablation, c cross-attention). The others are mitigations, applied by themselves.

Made by `tools/models_page.py` from the rows of `benchmarks/matrix_comfyui.py` and `benchmarks/matrix_diffusers.py`;
the latter builds diffusers' own tiny recipes, which guide where the recipe does.

"""

Row = Mapping[str, Any]


def comfyui(row: Row) -> dict[str, str]:
    """Return what a row of ComfyUI's matrix says: column -> "" where it works, else the reason."""
    watched = row["watched"]
    found = {"score": watched["text_noise_norm"], "entropy": watched["attention_entropy"]}
    found |= {method: row[method] for method in METHODS}
    found |= {name: row.get(name, "not run") for name in available()}
    return {name: "" if reason == "ok" else _first(reason) for name, reason in found.items()}


def diffusers(row: Row) -> dict[str, str]:
    """Return the same of a row of the matrix of diffusers."""
    (score, _), (entropy, _) = row["watch"]
    found = {"score": score, "entropy": entropy}
    for method in METHODS:
        words = row.get(f"explain {method}", "not run")
        found[method] = words if isinstance(words, str) else words[0]
    said = {"changed": "ok", "nothing": "it changed nothing, and nothing was said of it"}
    found |= {name: said.get(row.get(name), row.get(name, "not run")) for name in available()}
    return {name: "" if reason == "ok" else _first(reason) for name, reason in found.items()}


def _first(reason: str) -> str:
    """Return the reason of a line of the log without what it names: one of each kind is enough below a table."""
    line = reason.split("; ")[0] if "was left out: " in reason else reason
    line = line.split("was left out: ", 1)[-1].removeprefix("refused: ")
    line = NAMES.sub(lambda found: "" if found[0].startswith(" ") else "this model", line)
    return TEXTS.sub("the prompt became another", line)


def table(title: str, rows: Mapping[str, Mapping[str, str]], left: Collection[str] = ()) -> str:
    """Return one host's table as Markdown, with its reasons below.

    Args:
        title: of the host.
        rows: name of a model, and what works with it.
        left: mitigations that were not tried.

    """
    reasons: dict[str, int] = {}
    columns = ["score", "entropy", "words", *(name for name in available() if name not in left)]
    lines = [f"## {title}", "", f"| model | {' | '.join(each.replace('_', ' ') for each in columns)} |"]
    lines += ["|---" * (len(columns) + 1) + "|"]

    def cell(reason: str | None) -> str:
        return YES if not reason else str(reasons.setdefault(reason, len(reasons) + 1))

    def words(found: Mapping[str, str]) -> str:
        methods = "".join(letter for method, letter in METHODS.items() if found.get(method) == "")
        return methods or cell(next((found[method] for method in METHODS if method in found), "not run"))

    for name, found in sorted(rows.items()):
        cells = [words(found) if each == "words" else cell(found.get(each)) for each in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for reason, number in reasons.items()), ""])


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="rows of matrix_comfyui.py")
    parser.add_argument("--diffusers", type=Path, required=True, help="rows of matrix_diffusers.py")
    parser.add_argument("--names", nargs=2, default=("ComfyUI", "diffusers"), help="titles, with versions")
    asked = parser.parse_args()
    ours = {row["class"]: comfyui(row) for row in _rows(asked.comfyui) if "watched" in row}
    theirs = {row["pipeline"]: diffusers(row) for row in _rows(asked.diffusers) if row.get("watch")}
    tables = [table(asked.names[0], ours), table(asked.names[1], theirs, UNTRIED)]
    PAGE.write_text(INTRO + "\n".join(tables), encoding="utf-8")


def _rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
