"""The MemGuard tab of real WebUIs in headless Chromium: profiles are listed, Calibrate makes one, memory is switched.

Screenshots go to MEMGUARD_SCREENSHOTS, where that is set.
"""

import time

import pytest

from memguard_pack.memguard.calibration import ordinary_prompts
from memguard_pack.tests.hosts.webui.test_webui_page import PATIENCE, picture, put, shown  # noqa: F401 a fixture

COUNT = 64  # prompts; all that ship take minutes


def said(browser, name):
    return browser.run(f"return gradioApp().querySelector('#memguard_tab_{name}').innerText") or ""


def holds(name, text):
    return f"gradioApp().querySelector('#memguard_tab_{name}').innerText.includes({text!r})"


def press(browser, name):
    browser.run(f"gradioApp().querySelector('#memguard_tab_{name}').click()")


@pytest.fixture
def tab(shown):  # noqa: F811
    """The server and its page, on our tab."""
    server, browser = shown
    browser.run(
        """const tabs = [...gradioApp().querySelectorAll("#tabs > .tab-nav button, #tabs > .tab-nav > button")];
        tabs.find((each) => each.textContent.trim() === "MemGuard").click();
        await new Promise((done) => setTimeout(done, 500));"""
    )
    return server, browser


def test_profiles_and_neuron_sets_are_listed(tab):
    server, browser = tab
    folder = server.folder / "models" / "memguard"
    (folder / "nemo.safetensors").touch()
    try:
        press(browser, "refresh")
        browser.wait(holds("neurons", "nemo.safetensors"), PATIENCE)
    finally:
        (folder / "nemo.safetensors").unlink()
    assert "-test.json" in said(browser, "profiles")  # the one that the fixture wrote
    assert "128x128" in said(browser, "profiles") and "negative prompt" in said(browser, "profiles")


def test_bad_input_is_one_line(tab):
    _, browser = tab
    put(browser, "memguard_tab_prompts", "a fox\na house")
    press(browser, "calibrate")
    browser.wait(holds("answer", "No profile: prompts holds 2; a profile needs at least 50, or none for ours."), 60)
    put(browser, "memguard_tab_prompts", "")


def of_size(server):
    """The profiles of 128x128 by conditions; Forge's page is served from its own folder, which may hold some."""
    return set((server.folder / "models" / "memguard").glob("*-16x16-*.json"))


def test_calibrate(tab):
    server, browser = tab
    before = of_size(server)
    for name in ("width", "height"):
        put(browser, f"memguard_tab_{name}", 128)
    put(browser, "memguard_tab_prompts", "\n".join(ordinary_prompts()[:COUNT]))
    press(browser, "calibrate")
    browser.wait(holds("answer", f"of {COUNT} prompts are scored."), PATIENCE)
    picture(browser, f"{server.host}-calibrating")
    browser.wait(holds("answer", "Saved"), PATIENCE)
    made = sorted(of_size(server) - before)
    try:
        assert len(made) == 2 and all(path.name in said(browser, "answer") for path in made)
        browser.wait(holds("profiles", made[0].name), 60)  # the list follows by itself
        assert all(path.name in said(browser, "profiles") for path in made)
        picture(browser, f"{server.host}-calibrated")
    finally:
        put(browser, "memguard_tab_prompts", "")
        for path in made:
            path.unlink()


def test_interrupt(tab):
    server, browser = tab
    before = of_size(server)
    press(browser, "calibrate")
    browser.wait(holds("answer", "of 634 prompts are scored."), PATIENCE)
    press(browser, "interrupt")
    browser.wait(holds("answer", "No profile: interrupted after"), PATIENCE)
    assert "of 634 prompts; no profile was saved." in said(browser, "answer")
    assert of_size(server) == before


@pytest.fixture
def memory(tab):
    """Afterwards the memory's file is as it was."""
    path = tab[0].folder / "memguard" / "prompts.sqlite3"
    before = path.read_bytes() if path.is_file() else None
    yield
    if before is not None:
        path.write_bytes(before)


def test_the_memory_is_switched_and_cleared(tab, memory):
    server, browser = tab
    server.post("/memguard/v1/memory", {"enabled": True, "clear": True})
    server.generate({})
    assert server.get("/memguard/v1/memory")["rows"] == 1
    box = "gradioApp().querySelector('#memguard_tab_remember input')"
    browser.run(f"{box}.click()")
    browser.wait(holds("memory", "1 run is remembered."), 60)
    assert server.get("/memguard/v1/memory")["enabled"] is False
    press(browser, "clear")
    browser.wait(holds("memory", "0 runs are remembered."), 60)
    assert browser.run(f"return {box}.checked") is False
    browser.run(f"{box}.click()")
    until = time.monotonic() + 60
    while not server.get("/memguard/v1/memory")["enabled"] and time.monotonic() < until:
        time.sleep(0.3)
    assert server.get("/memguard/v1/memory") | {"bytes": 0} == {"enabled": True, "status": "ok", "rows": 0, "bytes": 0}


def test_our_scripts_logged_no_error(shown):  # noqa: F811
    _, browser = shown
    assert not [line for line in browser.console if line[0] == "error" and "memguard" in " ".join(line).lower()]
