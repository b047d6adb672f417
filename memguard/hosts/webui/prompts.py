"""Which texts act at the first step of a pass: prompts are joined by AND, and change during a run ([cat:dog:0.5]).

Part of the WebUI hosts.
"""

from __future__ import annotations

from typing import Any

from . import model

SHOWN = 3  # later texts


def spoken(parser: Any, p: Any) -> list[list[str]]:
    """Return, for each image, the texts of its sub-prompts as they are at the first step.

    Args:
        parser: the WebUI's module prompt_parser.
        p: the host's StableDiffusionProcessing.

    """
    steps = _second_steps(p)
    indexes, texts, _ = parser.get_multicond_prompt_list(model.prompts(p))

    def first(text: str) -> str:
        return str(parser.get_learned_conditioning_prompt_schedules([text], p.steps, steps)[0][0][1])

    known = {text: first(text) for text in texts}
    return [[known[texts[index]] for index, _ in image] for image in indexes]


def unscored(parser: Any, p: Any) -> tuple[str, ...]:
    """Return a line for the parts of prompts that begin later than the first step, which is the one that is scored."""
    steps = _second_steps(p)
    _, texts, _ = parser.get_multicond_prompt_list(model.prompts(p))
    found = []
    for schedule in parser.get_learned_conditioning_prompt_schedules(list(texts), p.steps, steps):
        for (ended, _), (_, text) in zip(schedule, schedule[1:], strict=False):
            found.append(f"from step {int(ended) + 1} on {text!r}")
    if not found:
        return ()
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return (f"the prompt changes during the run, and what comes later is not scored: {', '.join(found[:SHOWN])}{more}",)


def _second_steps(p: Any) -> int | None:
    """Return the number of steps of a second pass, None for the first."""
    return int(getattr(p, "hr_second_pass_steps", 0) or p.steps) if getattr(p, "is_hr_pass", False) else None
