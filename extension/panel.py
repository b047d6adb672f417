"""What is shown under the gallery, the toast, and the button that checks. May import: gradio, memguard.hosts.

Components are placed when the host makes the log below the gallery. They follow the hidden generation info, which both
hosts change once per generation; a toast can only be raised in a function of the page itself.
"""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from ..memguard.hosts.webui.shown import html, warning
from . import api, check

# settings of a check, by the end of their component's id
ASKED = {
    "prompt": "prompt",
    "neg_prompt": "negative_prompt",
    "steps": "steps",
    "width": "width",
    "height": "height",
    "cfg_scale": "cfg_scale",
    "sampling": "sampler_name",
    "scheduler": "scheduler",
    "seed": "seed",
}


def place(script: Any, tab: str) -> None:
    """Place the panel of a tab, and in txt2img the button; the host may ask for it several times."""
    made: dict[str, Any] = {}

    def button(_: Any) -> None:
        made["button"] = gr.Button("Check prompt", elem_id=f"memguard_{tab}_check", size="sm")

    def below(_: Any) -> None:
        made["panel"] = gr.HTML("", elem_id=f"memguard_{tab}_panel")
        asked = {name: made[name] for name in ASKED.values() if name in made}
        if "button" in made:
            made["button"].click(
                fn=lambda *values: _check(dict(zip(asked, values, strict=True))),
                inputs=list(asked.values()),
                outputs=[made["panel"]],
            )

    def follow(on: Any) -> None:
        if "panel" in made:
            on.component.change(fn=_show, inputs=[on.component], outputs=[made["panel"]], show_progress=False)

    def keep(name: str) -> Any:
        return lambda on: made.__setitem__(name, on.component)

    if tab == "txt2img":
        for end, name in ASKED.items():
            script.on_after_component(keep(name), elem_id=f"{tab}_{end}")
        script.on_after_component(button, elem_id=f"{tab}_generate")
    script.on_after_component(below, elem_id=f"html_log_{tab}")
    script.on_after_component(follow, elem_id=f"generation_info_{tab}")


def _show(info: str) -> str:
    session = api.session_of(info)
    if session is None:
        return ""
    text = warning(session)
    if text:
        gr.Warning(text)
    return html(session)


def _check(asked: dict[str, Any]) -> str:
    try:
        return html(check.check(**{name: value for name, value in asked.items() if value is not None}))
    except Exception as error:
        return f'<div class="memguard-panel"><p>MemGuard: no score, because {escape(str(error))}</p></div>'
