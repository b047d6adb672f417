"""Which texts act at the first step of a pass: prompts are joined by AND, and change during a run ([cat:dog:0.5]).

Part of the WebUI hosts; may import: the standard library.
"""

from __future__ import annotations

from typing import Any


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
