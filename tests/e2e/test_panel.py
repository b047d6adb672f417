"""What a person does with a report in the real page: curve, words, maps over the picture, a spot, the clipboard."""

from __future__ import annotations

import json

import pytest

from .conftest import SEEDS
from .driving import badge_of, errors_of_memguard, needs_badges, open_example, press, press_run

STEPS = 3
GUARD, REPORT = badge_of("MemGuard"), badge_of("MemGuard_Report")
CHIPS = f"[...{GUARD}.querySelectorAll('.memguard-chip')]"
PICTURE = f"{GUARD}.querySelector('.memguard-picture')"
RANKED = f"{GUARD}.querySelector('.memguard-ranked').innerText"
PIXELS = f"""(() => {{ const map = {GUARD}.querySelector('canvas');
    return [...map.getContext('2d').getImageData(0, 0, map.width, map.height).data]; }})()"""


@pytest.fixture
def explained(page, flagging):
    """The page after a flagged run whose words are known."""
    open_example(page, "watch_a_run_and_warn", STEPS, next(SEEDS))
    needs_badges(page, 2)
    page.run(
        """const loader = app.graph.nodes.find((node) => node.type === "CheckpointLoaderSimple");
        const guard = app.graph.nodes.find((node) => node.type === "MemGuard");
        loader.connect(1, guard, guard.inputs.findIndex((input) => input.name === "clip"));"""
    )
    press_run(page)
    page.wait(f"{CHIPS}.length > 0", 30)
    return page


@pytest.mark.slow
def test_a_run_is_explained_and_everything_is_reached_by_keyboard(explained, server):
    page = explained
    for badge in (GUARD, REPORT):
        assert page.run(f"return {badge}.querySelectorAll('.memguard-point').length") == STEPS
        label = page.run(f"return {badge}.querySelector('svg').getAttribute('aria-label')")
        assert label.startswith(f"Noise gap over {STEPS} model calls, RMS: starts at ")
    words = page.run(f"return {CHIPS}.map((chip) => chip.firstChild.textContent)")
    assert [word for word in words if not word.startswith("[")] == "Halley breakfast at noon - press kit".split()
    assert {"[BOS]", "[EOS]", "[padding]"} <= set(words)

    # the word, by keyboard: its map over the picture of the same run
    page.run(f"{CHIPS}.find((chip) => chip.firstChild.textContent === 'breakfast').focus()")
    page.key("Enter", 13)
    page.wait(f"Boolean({PICTURE})", 30)
    assert page.run("return document.activeElement.getAttribute('aria-pressed')") == "true"
    assert "“breakfast”" in page.run(f"return {PICTURE}.getAttribute('aria-label')")
    page.wait(f"{PICTURE}.querySelector('img')?.naturalWidth === 128", 20)
    assert "/view?" in page.run(f"return {PICTURE}.querySelector('img').src")
    scale = page.run(
        f"return [...{GUARD}.querySelectorAll('.memguard-scale span')].map((one) => Number(one.innerText))"
    )
    assert 0 <= scale[0] < scale[1]
    assert len(page.run(f"return {PIXELS}")) == 16 * 16 * 4

    # a spot, by keyboard: the words ranked there
    page.run(f"{PICTURE}.focus()")
    page.key("ArrowRight", 39)
    page.key("ArrowRight", 39)
    page.wait(f"{RANKED}.includes('row 9 of 16, column 10 of 16')", 10)
    listed = page.run(f"return [...{GUARD}.querySelectorAll('.memguard-list li')].map((one) => one.innerText)")
    values = [float(line.rpartition(": ")[2]) for line in listed]
    assert len(values) > 1 and values == sorted(values, reverse=True)

    # the other maps, and none
    opaque = page.run(f"return {PIXELS}")
    press(page, GUARD, "Where it copies")
    page.wait(f"{PICTURE}.getAttribute('aria-label').startsWith('Where it copies')", 10)
    assert page.run(f"return {PIXELS}") != opaque
    press(page, GUARD, "Noise gap")
    page.wait(f"{PICTURE}.getAttribute('aria-label').startsWith('Noise gap')", 10)
    press(page, GUARD, "Noise gap")
    page.wait(f"{PICTURE} === null", 10)
    assert errors_of_memguard(page) == []


@pytest.mark.slow
def test_a_click_opacity_colours_and_the_clipboard(explained):
    page = explained
    press(page, GUARD, "Where it copies")
    page.wait(f"Boolean({PICTURE})", 30)
    page.run(
        f"""const box = {PICTURE}.getBoundingClientRect();
        const at = {{ clientX: box.left + 0.99 * box.width, clientY: box.top + 0.01 * box.height, bubbles: true }};
        {PICTURE}.dispatchEvent(new MouseEvent("click", at));"""
    )
    page.wait(f"{RANKED}.includes('row 1 of 16, column 16 of 16')", 10)

    slider = f"{GUARD}.querySelector('input[type=range]')"
    page.run(f"{slider}.value = '0'; {slider}.dispatchEvent(new Event('input'))")
    assert max(page.run(f"return {PIXELS}")[3::4]) == 0

    backgrounds = f"{CHIPS}.map((chip) => chip.style.background)"
    before = page.run(f"return {backgrounds}")
    page.run("await app.extensionManager.setting.set('MemGuard.Colours', 'grey')")
    page.wait(f"JSON.stringify({backgrounds}) !== {json.dumps(json.dumps(before, separators=(',', ':')))}", 10)
    pixels = page.run(f"return {PIXELS}")
    assert pixels[0::4] == pixels[1::4] == pixels[2::4]
    page.run("await app.extensionManager.setting.set('MemGuard.Colours', 'colour')")

    page.send("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    press(page, GUARD, "Copy JSON")
    page.wait(f"{GUARD}.innerText.includes('✓ Copied')", 10)
    copied = json.loads(page.run("return navigator.clipboard.readText()"))
    assert copied["verdict"] == "memorized" and len(copied["curve"]) == STEPS
    page.wait(f"{GUARD}.innerText.includes('Copy JSON')", 10)

    # on plain http a browser has no such clipboard
    page.run("Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })")
    page.run(f"[...{GUARD}.querySelectorAll('button')].find((one) => one.textContent === 'Copy JSON').focus()")
    page.key("Enter", 13)
    page.wait(f"{GUARD}.innerText.includes('✓ Copied')", 10)
    page.run("delete navigator.clipboard")
    again = page.run("return navigator.clipboard.readText()")
    assert json.loads(again) == copied
    assert errors_of_memguard(page) == []


@pytest.mark.slow
def test_maps_that_are_gone_are_said_to_be_gone(explained):
    page = explained
    guard = "app.graph.nodes.find((node) => node.type === 'MemGuard')"
    kept = json.loads(page.run(f"return JSON.stringify({guard}.properties.memguard.report)"))
    kept["run"] = "of-another-server"
    page.run(
        f"""const report = {json.dumps(kept)};
        const detail = {{ home: "6", node_id: "7", prompt_id: null, workflow: null, report }};
        app.api.dispatchCustomEvent("memguard.report", detail);"""
    )
    press(page, GUARD, "Noise gap")
    page.wait(
        f"{GUARD}.innerText.includes('The server no longer keeps the maps of this run. Run the workflow again')", 20
    )
    assert page.run(f"return {PICTURE}") is None
