"""Render the JSON of ``python -m testbed evaluate`` as markdown tables for the model card."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a markdown table."""
    head = list(header)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def render(results: list[dict[str, Any]]) -> str:
    """Return one section per stage and part that was measured."""
    parts = []
    for result in results:
        parts.append(f"## Stage: {result['stage']}\n")
        for name, section in (("losses", _losses), ("reproduction", _reproduction), ("detection", _detection)):
            if name in result:
                parts.append(section(result[name]))
        if "phenomena" in result:
            parts.append(_phenomena(result["phenomena"]))
    return "\n".join(parts)


def _losses(values: dict[str, dict[str, float]]) -> str:
    keys = ("n", "own", "standard error", "wrong", "empty")
    rows = ([name, *(row[key] for key in keys)] for name, row in values.items())
    return "### Epsilon loss with own, wrong and empty caption\n\n" + table(
        ("group", "n", "own", "± s.e.", "wrong", "empty"), rows
    )


def _reproduction(values: dict[str, Any]) -> str:
    keys = ("pictures", "mean correlation", "share above .8", "share above .9")
    keys += ("correlation with another picture", "seed to seed")
    rows = [
        [name, *(row[key] for key in keys), *row["own is nearest, d1/d50"]] for name, row in values["groups"].items()
    ]
    held = values["held out"]
    rows.append(["held-out prompts", *["–"] * 5, held["seed to seed"], "–", held["d1/d50"]])
    title = (
        f"### Reproduction from fresh noise (guidance {values['guidance']:g}, {values['steps']} steps, "
        f"{values['seeds']} seeds)\n\n"
    )
    return title + table(
        (
            "group",
            "pictures",
            "corr",
            "> .8",
            "> .9",
            "corr, other picture",
            "seed to seed",
            "own is nearest",
            "d1/d50",
        ),
        rows,
    )


def _detection(values: dict[str, Any]) -> str:
    text = f"### text_noise_norm at step 0 against {values['negatives']} prompts that were never trained\n\n"
    keys = ("prompts", "AUC", "TPR@1%FPR", "AUC, same caption grammar")
    text += table(("positives", *keys), ([name, *(row[k] for k in keys)] for name, row in values["figures"].items()))
    means = ", ".join(f"{name} {value:.2f}" for name, value in values["mean score"].items())
    return text + f"\nMean score: {means}.\n"


def _phenomena(values: dict[str, Any]) -> str:
    attention = values["attention"]
    keys = list(next(iter(attention.values())))
    text = "### Cross-attention at the first step\n\n"
    text += table(("layer", *keys), ([name, *(row[k] for k in keys)] for name, row in attention.items()))
    text += "\n### Trigger words\n\n" + table(("", "share"), values["triggers"].items())
    neurons = {k: v for k, v in values["neurons"].items() if isinstance(v, dict)}
    text += f"\n### Zeroing value neurons (of {values['neurons']['value neurons']})\n\n"
    return text + table(
        ("neurons", "score", "correlation with own picture"),
        ([name, row["score"], row["correlation"]] for name, row in neurons.items()),
    )
