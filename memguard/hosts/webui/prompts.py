"""Which texts act at the first step of a pass: prompts are joined by AND, and change during a run ([cat:dog:0.5]).

Part of the WebUI hosts; may import: the standard library.
"""

from __future__ import annotations

from typing import Any

SHOWN = 3  # later texts


def spoken(parser: Any, p: Any) -> list[list[str]]:
    """Return, for each image, the texts of its sub-prompts as they are at the first step.

    Args:
        parser: the WebUI's module prompt_parser.
        p: the host's StableDiffusionProcessing.

    """
    hires = bool(getattr(p, "is_hr_pass", False))
    prompts = list((getattr(p, "hr_prompts", None) if hires else None) or p.prompts or ())
    steps = getattr(p, "hr_second_pass_steps", 0) or p.steps if hires else None
    indexes, texts, _ = parser.get_multicond_prompt_list(prompts)

    def first(text: str) -> str:
        return str(parser.get_learned_conditioning_prompt_schedules([text], p.steps, steps)[0][0][1])

    known = {text: first(text) for text in texts}
    return [[known[texts[index]] for index, _ in image] for image in indexes]


def unscored(parser: Any, p: Any) -> tuple[str, ...]:
    """Return a line for the parts of prompts that begin later than the first step, which is the one that is scored."""
    hires = bool(getattr(p, "is_hr_pass", False))
    prompts = list((getattr(p, "hr_prompts", None) if hires else None) or p.prompts or ())
    steps = getattr(p, "hr_second_pass_steps", 0) or p.steps if hires else None
    _, texts, _ = parser.get_multicond_prompt_list(prompts)
    found = []
    for schedule in parser.get_learned_conditioning_prompt_schedules(list(texts), p.steps, steps):
        for (ended, _), (_, text) in zip(schedule, schedule[1:], strict=False):
            found.append(f"from step {int(ended) + 1} on {text!r}")
    if not found:
        return ()
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return (f"the prompt changes during the run, and what comes later is not scored: {', '.join(found[:SHOWN])}{more}",)
