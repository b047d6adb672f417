"""The MemGuard tab: calibrate the checkpoint, see its profiles, look after the memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from threading import Thread
from typing import Any

import gradio as gr

from ..memguard.calibration import store
from ..memguard.hosts.webui import listed
from ..memguard.hosts.webui.calibrating import TOGETHER
from ..memguard.hosts.webui.fields import PIXELS
from ..memguard.troubles import Told, in_words
from . import calibrate, host

log = logging.getLogger("memguard")

TICK = 0.5  # seconds between two words on the progress


def tabs() -> list[tuple[Any, str, str]]:
    """Return the tab as the WebUI asks for it."""
    with gr.Blocks(analytics_enabled=False) as tab:
        with gr.Row():
            with gr.Column():
                done = _calibration()
            with gr.Column():
                profiles, sets, refresh = _files()
                _memory(tab)
        outputs = [profiles, sets]
        for event in (done, refresh.click):
            event(fn=_found, inputs=[], outputs=outputs, show_progress=False)
        tab.load(fn=_found, inputs=[], outputs=outputs, show_progress=False)
    return [(tab, "MemGuard", "memguard_tab")]


def _calibration() -> Any:
    gr.HTML(
        "<h3>Calibrate</h3><p>Scores ordinary prompts on the loaded checkpoint, once for each picture size. "
        "A profile of batch size 4 judges 4 images and more of one prompt.</p>"
    )
    with gr.Row():
        sides = {"minimum": PIXELS.least, "maximum": PIXELS.most, "value": PIXELS.default, "step": PIXELS.multiple}
        width = gr.Slider(**sides, label="Width", elem_id="memguard_tab_width")
        height = gr.Slider(**sides, label="Height", elem_id="memguard_tab_height")
        images = gr.Slider(1, TOGETHER, value=1, step=1, label="Batch size", elem_id="memguard_tab_batch_size")
    negative = gr.Textbox("", label="Negative prompt", lines=1, elem_id="memguard_tab_negative")
    prompts = gr.Textbox(
        "",
        label="Ordinary prompts",
        lines=6,
        max_lines=12,
        placeholder="One per line, at least 50. Empty: those that MemGuard ships.",
        elem_id="memguard_tab_prompts",
    )
    with gr.Row():
        start = gr.Button("Calibrate", variant="primary", elem_id="memguard_tab_calibrate")
        stop = gr.Button("Interrupt", elem_id="memguard_tab_interrupt")
    answer = gr.HTML("", elem_id="memguard_tab_answer")
    stop.click(fn=calibrate.interrupt, inputs=[], outputs=[], show_progress=False)
    asked = [width, height, images, negative, prompts]
    return start.click(fn=_calibrate, inputs=asked, outputs=[answer], show_progress=False).then


def _files() -> tuple[Any, Any, Any]:
    gr.HTML("<h3>Profiles of the checkpoint</h3>")
    profiles = gr.HTML("", elem_id="memguard_tab_profiles")
    gr.HTML("<h3>Neuron sets</h3>")
    sets = gr.HTML("", elem_id="memguard_tab_neurons")
    return profiles, sets, gr.Button("Refresh", elem_id="memguard_tab_refresh")


def _memory(tab: Any) -> None:
    gr.HTML("<h3>Memory of known prompts</h3>")
    enabled = gr.Checkbox(True, label="Remember runs", elem_id="memguard_tab_remember")
    enabled.do_not_save_to_config = True  # the memory's file knows it
    held = gr.HTML("", elem_id="memguard_tab_memory")
    clear = gr.Button("Clear", elem_id="memguard_tab_clear")
    # "input" is what a person does; "change" would write down what was only shown
    enabled.input(fn=_remember, inputs=[enabled], outputs=[enabled, held], show_progress=False)
    clear.click(fn=_clear, inputs=[], outputs=[enabled, held], show_progress=False)
    tab.load(fn=_held, inputs=[], outputs=[enabled, held], show_progress=False)


def _calibrate(width: float, height: float, images: float, negative: str, prompts: str) -> Iterator[str]:
    """Calibrate in a thread, and say how far it is: in Forge the page is lost to what samples."""
    given = {"width": width, "height": height, "batch_size": images}
    given |= {"negative_prompt": negative, "prompts": prompts.splitlines()}
    said = ["Waiting for the generation in progress."]

    def work() -> None:
        try:
            made = calibrate.calibrate(given, lambda done, of: said.append(f"{done} of {of} prompts are scored."))
            said.append(" ".join(f"Saved {profile.source}." for profile in made))
        except Exception as error:
            if not isinstance(error, Told):  # none of ours: the sampling's
                log.exception("calibration failed")
            said.append(f"No profile: {in_words(error)}.")

    thread, shown = Thread(target=work, daemon=True), 0
    thread.start()
    while thread.is_alive() or shown < len(said):
        if shown < len(said):
            shown = len(said)
            yield listed.line(said[shown - 1])
        thread.join(TICK)


def _found() -> tuple[str, str]:
    model = host.peek()
    table = listed.profiles(model, store.of_model(model), host.loaded(), host.chosen())
    return table, listed.neuron_sets(host.folder())


def _held() -> tuple[bool, str]:
    facts = host.memory().facts()
    return facts.enabled, listed.memory(facts)


def _remember(enabled: bool) -> tuple[bool, str]:
    host.memory().enable(enabled)
    return _held()


def _clear() -> tuple[bool, str]:
    host.memory().clear()
    return _held()
