"""MemGuard's part of the settings page."""

from __future__ import annotations

import gradio as gr
from modules import shared

from ..memguard.hosts.webui.pictures import NONE, SHOWN

SECTION = ("memguard", "MemGuard")
OVERLAY = "memguard_overlay"
KNOWN = "memguard_known"


def add() -> None:
    """Add the settings; at once and not when the page is made, since the API alone needs them, too."""
    overlay = shared.OptionInfo(
        NONE, "Overlay of explained runs in the gallery", gr.Radio, {"choices": [NONE, *SHOWN]}, section=SECTION
    )
    shared.opts.add_option(OVERLAY, overlay)
    known = shared.OptionInfo(True, "Say when a prompt is typed that looked memorized before", section=SECTION)
    shared.opts.add_option(KNOWN, known)
