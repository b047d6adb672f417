"""The accordion's controls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import gradio as gr
from modules.ui_common import create_refresh_button
from modules.ui_components import InputAccordion

from ..memguard.hosts.webui.settings import ENABLED, KNOWN, NAMES, files, restored
from . import host

TITLE = "MemGuard"
HELD = "_memguard"  # attribute of a StableDiffusionProcessing: the host's Watch of its session
CHANGED = "_memguard_changed"  # attribute: settings of an XYZ axis, by name

TITLES = {
    "policy": "Policy",
    "sensitivity": "Sensitivity",
    "steps": "Scored steps",
    "detector": "Detector",
    "reference": "Compare with",
    "explain": "Explain prompts",
    "profile": "Profile",
    "mitigation": "Mitigation",
    "strength": "Strength",
    "neurons": "Neuron set",
    "wording": "Second wording",
    "parameters": "Parameters of the mitigation",
}
ROWS = (
    ("policy", "sensitivity", "steps"),
    ("detector", "reference", "explain", "profile"),
    ("mitigation", "strength", "neurons"),
    ("wording", "parameters"),
)
FILES = {"profile": ".json", "neurons": ".safetensors"}  # what they end in


def build(is_img2img: bool) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """Return the controls in the order of the settings, and which keys of the infotext restore each."""
    tab = "img2img" if is_img2img else "txt2img"
    made: dict[str, Any] = {}
    with _accordion(f"memguard_{tab}") as enabled:
        for row in ROWS:
            with gr.Row():
                for name in row:
                    made[name] = _control(name, f"memguard_{tab}_{name}")
    fields: list[tuple[Any, Any]] = [(enabled, lambda known: ENABLED in known or None)]
    fields += [(made[name], partial(restored, name=name)) for name in NAMES]
    return [enabled, *(made[name] for name in NAMES)], fields


@contextmanager
def _accordion(elem_id: str) -> Iterator[Any]:
    """Open the accordion, and yield the box that is to be ticked; SD.Next shows none in the accordion's own line."""
    if not host.SDNEXT:
        with InputAccordion(False, label=TITLE, elem_id=elem_id) as enabled:
            yield enabled
        return
    with gr.Accordion(TITLE, open=False, elem_id=elem_id):
        yield gr.Checkbox(False, label="Watch every generation", elem_id=f"{elem_id}-checkbox")


def _control(name: str, elem_id: str) -> Any:
    known = KNOWN[name]
    named = {"label": TITLES[name], "info": known.text, "elem_id": elem_id, "value": known.default}
    if known.choices:
        return gr.Dropdown(list(known.choices), **named)
    if known.kind in (int, float):
        low, high = known.span
        return gr.Slider(low, high, step=known.step or 1, **named)
    if name not in FILES:
        return gr.Textbox(lines=1, **named)

    def choices() -> dict[str, Any]:
        return {"choices": [known.default, *files(host.folder(), FILES[name])]}

    with gr.Row():
        dropdown = gr.Dropdown(**choices(), **named)
        create_refresh_button(dropdown, lambda: None, choices, f"{elem_id}_refresh")
    return dropdown
