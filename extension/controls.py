"""The accordion's controls. May import: gradio, the WebUI, memguard.hosts."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr
from modules.ui_common import create_refresh_button
from modules.ui_components import InputAccordion

from ..memguard.hosts.webui.settings import AUTOMATIC, CHOICES, DEFAULTS, ENABLED, NAMES, NONE, files, restored
from . import host

TITLE = "MemGuard"
HELD = "_memguard"  # attribute of a StableDiffusionProcessing: the host's Watch of its session
CHANGED = "_memguard_changed"  # attribute: settings of an XYZ axis, by name

SLIDERS = {"sensitivity": (50.0, 99.99, 0.01), "steps": (1, 10, 1), "strength": (0.0, 1.0, 0.05)}
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
SAY = {
    "policy": "observe: score and report. warn: show a warning, too. stop: end a run that looks memorized. mitigate: "
    "make it anew, so that it is no copy.",
    "sensitivity": "percentile of ordinary prompts above which a prompt is suspicious",
    "steps": "1 is enough",
    "detector": "text_noise_norm: the strongest. attention_entropy: weaker, SD1, SD2, SDXL.",
    "reference": "negative: your negative prompt, free. empty: the empty prompt, one row more."
    " In Forge: a score at CFG 1.",
    "explain": "words and map; a pass forward and back at the first step",
    "profile": "what ordinary prompts score; automatic: the one that fits",
    "mitigation": "of policy mitigate; auto: the cheapest that helps",
    "strength": "not of auto",
    "neurons": "of neuron_mask",
    "wording": "of paraphrase: the prompt in other words",
    "parameters": "name=value, separated by commas, for example bos_scale=1.5",
}
ROWS = (
    ("policy", "sensitivity", "steps"),
    ("detector", "reference", "explain", "profile"),
    ("mitigation", "strength", "neurons"),
    ("wording", "parameters"),
)
FILES = {"profile": (AUTOMATIC, ".json"), "neurons": (NONE, ".safetensors")}  # first choice, and the others' ending


def build(is_img2img: bool) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """Return the controls in the order of the settings, and which keys of the infotext restore each."""
    tab = "img2img" if is_img2img else "txt2img"
    made: dict[str, Any] = {}
    with InputAccordion(False, label=TITLE, elem_id=f"memguard_{tab}") as enabled:
        for row in ROWS:
            with gr.Row():
                for name in row:
                    made[name] = _control(name, f"memguard_{tab}_{name}")
    fields: list[tuple[Any, Any]] = [(enabled, lambda known: ENABLED in known or None)]
    fields += [(made[name], partial(restored, name=name)) for name in NAMES]
    return [enabled, *(made[name] for name in NAMES)], fields


def _control(name: str, elem_id: str) -> Any:
    named = {"label": TITLES[name], "info": SAY[name], "elem_id": elem_id, "value": DEFAULTS[name]}
    if name in SLIDERS:
        low, high, step = SLIDERS[name]
        return gr.Slider(low, high, step=step, **named)
    if name in CHOICES:
        return gr.Dropdown(list(CHOICES[name]), **named)
    if name not in FILES:
        return gr.Textbox(lines=1, **named)
    first, ending = FILES[name]

    def choices() -> dict[str, Any]:
        return {"choices": [first, *files(host.folder(), ending)]}

    with gr.Row():
        dropdown = gr.Dropdown(**choices(), **named)
        create_refresh_button(dropdown, lambda: None, choices, f"{elem_id}_refresh")
    return dropdown
