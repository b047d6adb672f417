"""The accordion's controls, and the settings that they mean. May import: gradio, the WebUI, memguard.hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from modules.ui_components import InputAccordion

from ..memguard.hosts.webui.settings import AUTO, MITIGATIONS, POLICIES, guard_of

TITLE = "MemGuard"
HELD = "_memguard"  # attribute of a StableDiffusionProcessing: the host's Watch of its session
CHANGED = "_memguard_changed"  # attribute: settings of an XYZ axis, by name
# of the infotext, in the order of the controls
LABELS = (
    "MemGuard",
    "MemGuard policy",
    "MemGuard sensitivity",
    "MemGuard steps",
    "MemGuard mitigation",
    "MemGuard strength",
)
NAMES = ("policy", "sensitivity", "steps", "mitigation", "strength")


@dataclass(frozen=True)
class Settings:
    """What the controls say."""

    policy: str
    sensitivity: float
    steps: int
    mitigation: str
    strength: float

    @classmethod
    def of(cls, args: Sequence[Any], changed: Mapping[str, Any] | None = None) -> Settings | None:
        """Return the settings of a script's arguments, None where the box is not ticked.

        Args:
            args: in the order of the controls.
            changed: settings of an XYZ axis, by name, in their place; they tick the box.

        """
        enabled, *values = args
        given = dict(zip(NAMES, values, strict=True)) | dict(changed or {})
        if not enabled and not changed:
            return None
        numbers = float(given["sensitivity"]), int(given["steps"])
        return cls(str(given["policy"]), *numbers, str(given["mitigation"]), float(given["strength"]))

    def guard(self) -> Any:
        """Return the guard that they mean."""
        return guard_of(self.policy, self.sensitivity, self.steps, self.mitigation, self.strength)

    def infotext(self) -> dict[str, Any]:
        """Return what saved pictures say, so that pasting them restores the controls."""
        told = dict(zip(LABELS, (True, *(getattr(self, name) for name in NAMES)), strict=True))
        return told if self.policy == "mitigate" else {key: told[key] for key in LABELS[:4]}


def build(is_img2img: bool) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """Return the controls, and which key of the infotext restores each."""
    tab = "img2img" if is_img2img else "txt2img"
    with InputAccordion(False, label=TITLE, elem_id=f"memguard_{tab}") as enabled, gr.Row():
        policy = gr.Dropdown(
            list(POLICIES), value="warn", label="Policy", elem_id=f"memguard_{tab}_policy", info=POLICIES_SAY
        )
        sensitivity = gr.Slider(
            50.0,
            99.99,
            value=99.0,
            step=0.01,
            label="Sensitivity",
            elem_id=f"memguard_{tab}_sensitivity",
            info="percentile of ordinary prompts above which a prompt is suspicious",
        )
        steps = gr.Slider(
            1, 10, value=1, step=1, label="Scored steps", elem_id=f"memguard_{tab}_steps", info="1 is enough"
        )
        mitigation = gr.Dropdown(
            list(MITIGATIONS),
            value=AUTO,
            label="Mitigation",
            elem_id=f"memguard_{tab}_mitigation",
            info="of policy mitigate; auto: the cheapest that helps",
        )
        strength = gr.Slider(
            0.0, 1.0, value=1.0, step=0.05, label="Strength", elem_id=f"memguard_{tab}_strength", info="not of auto"
        )
    made = [enabled, policy, sensitivity, steps, mitigation, strength]
    fields = [(enabled, lambda known: LABELS[0] in known or None), *zip(made[1:], LABELS[1:], strict=True)]
    return made, fields


POLICIES_SAY = (
    "observe: score and report. warn: show a warning, too. stop: end a run that looks memorized. "
    "mitigate: make it anew, so that it is no copy."
)
