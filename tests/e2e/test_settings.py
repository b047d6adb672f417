"""MemGuard's settings and its about badge in the real page, in both frontends."""

from __future__ import annotations

from .driving import errors_of_memguard, open_example

ENTRIES = """[...document.querySelectorAll("li, nav button, nav [role=button], nav div")]
    .filter((one) => one.innerText.trim() === "{name}").at(-1)"""


def show(page, name: str) -> None:
    page.run("await app.extensionManager.command.execute('Comfy.ShowSettingsDialog')")
    entry = ENTRIES.replace("{name}", name)
    page.wait(f"Boolean({entry})", 30)
    page.run(f"{entry}.click()")


def test_the_settings_are_shown_and_the_memory_is_switched(page):
    show(page, "MemGuard")
    page.wait("document.querySelector('.memguard-memory')?.innerText.includes('remembered')", 30)
    shown = page.run("return document.body.innerText")
    for name in (
        "Sensitivity of new MemGuard nodes",
        "Colours of words and maps",
        "Show a toast when a run is flagged",
        "Warn while typing a prompt that looked memorized before",
        "Remember finished runs",
    ):
        assert name in shown
    box = "document.querySelector('.memguard-memory input')"
    for enabled in (False, True):
        page.run(f"{box}.click()")
        page.wait(f"{box}.checked === {str(enabled).lower()}", 10)
        state = "(await (await app.api.fetchApi('/memguard/v1/memory')).json()).enabled"
        page.wait(f"{state} === {str(enabled).lower()}", 10)
    assert errors_of_memguard(page) == []


def test_the_about_badge_is_shown(page):
    show(page, "About")
    link = "document.querySelector('a[href=\"https://github.com/memguard/memguard\"]')"
    page.wait(f"{link}?.innerText.includes('MemGuard')", 30)


def test_new_nodes_get_the_sensitivity_of_the_settings_and_loaded_ones_their_own(page):
    sensitivity = "widgets.find((widget) => widget.name === 'sensitivity').value"
    page.run("await app.extensionManager.setting.set('MemGuard.Sensitivity', 97.7)")
    assert page.run(f"const node = LiteGraph.createNode('MemGuard'); return node.{sensitivity}") == 97.7
    open_example(page, "watch_a_run_and_warn")
    loaded = "app.graph.nodes.find((node) => node.comfyClass === 'MemGuard')"
    assert page.run(f"return {loaded}.{sensitivity}") == 99
    page.run("await app.extensionManager.setting.set('MemGuard.Sensitivity', 99)")
