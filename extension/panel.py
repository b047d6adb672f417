"""What is shown under the gallery, the toast, the button that checks, and the line about a prompt that is typed.

Components are placed when the host makes the log below the gallery. They follow the hidden generation info, which both
hosts change once per generation; a toast can only be raised in a function of the page itself.
"""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr
from modules import shared

from ..memguard.hosts.webui.settings import NAMES
from ..memguard.hosts.webui.shown import failed, html, warning
from ..memguard.hosts.webui.shown import known as known_line
from ..memguard.troubles import Told, in_words
from . import api, check, host, options

if host.SDNEXT:
    from . import sdnext

log = logging.getLogger("memguard")

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
OF_GUARD = {f"memguard_{{}}_{name}": name for name in NAMES if name in check.OF_GUARD}  # and those of the accordion


def place(script: Any, tab: str) -> None:
    """Place the panel of a tab, and in txt2img the button; the host may ask for it several times."""
    made: dict[str, Any] = {}

    def button(_: Any) -> None:
        made["button"] = gr.Button("Check prompt", elem_id=f"memguard_{tab}_check", size="sm")
        made["known"] = gr.HTML("", elem_id=f"memguard_{tab}_known")

    def below(_: Any) -> None:
        made["panel"] = gr.HTML("", elem_id=f"memguard_{tab}_panel")
        asked = {name: made[name] for name in (*ASKED.values(), *OF_GUARD.values()) if name in made}
        if "button" in made:
            made["button"].click(
                fn=lambda *values: _check(dict(zip(asked, values, strict=True))),
                inputs=list(asked.values()),
                outputs=[made["panel"]],
            )
        if "known" in made and "prompt" in made:
            made["prompt"].blur(fn=_known, inputs=[made["prompt"]], outputs=[made["known"]], show_progress=False)

    def follow(on: Any) -> None:
        if "panel" in made:
            on.component.change(fn=_show, inputs=[on.component], outputs=[made["panel"]], show_progress=False)

    def keep(name: str) -> Any:
        return lambda on: made.__setitem__(name, on.component)

    if tab == "txt2img":
        for end, name in ASKED.items():
            script.on_after_component(keep(name), elem_id=f"{tab}_{end}")
        for elem_id, name in OF_GUARD.items():
            script.on_after_component(keep(name), elem_id=elem_id.format(tab))
        script.on_after_component(button, elem_id=f"{tab}_generate")
    script.on_after_component(below, elem_id=f"html_log_{tab}")
    script.on_after_component(follow, elem_id=f"generation_info_{tab}")


def _show(info: str) -> str:
    sessions = api.sessions_of(info)
    text = next(filter(None, map(warning, sorted(sessions, key=lambda each: each.gravity, reverse=True))), "")
    if text:
        gr.Warning(text)
    return "".join(map(html, sessions))


def _check(asked: dict[str, Any]) -> str:
    try:
        given = {name: value for name, value in asked.items() if value is not None}
        return html(check.check(sdnext.asked(given) if host.SDNEXT else given))
    except Exception as error:
        if not isinstance(error, Told):
            log.exception("a check failed")
        return failed(in_words(error))


def _known(prompt: str) -> str:
    """Return the line about a prompt that looked memorized before; looking costs no model call."""
    if not getattr(shared.opts, options.KNOWN, True) or not prompt.strip():
        return ""
    _, (found,) = host.memory().look([prompt], [name for name in [host.checkpoint()] if name])
    return known_line(found)
