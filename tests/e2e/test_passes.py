"""Several runs of one prompt in the real page: what stands on top, one toast, a copied or bypassed node, colours."""

from __future__ import annotations

import json

import pytest

from memguard.records import Attempt, Attribution, Finding, Report, TokenSpan

from .conftest import SEEDS
from .driving import badge_of, errors_of_memguard, needs_badges, open_example, press_run

GUARD, REPORT = badge_of("MemGuard"), badge_of("MemGuard_Report")
SPANS = tuple(TokenSpan(word, (i,)) for i, word in enumerate(("Halley", "breakfast", "at", "noon", "kit")))
WEIGHTS = (4.0, 2.0, 1.0, 0.5, 0.0)
# the contrast of every text of an element with the ground that it lies on, as WCAG 2 defines it
CONTRASTS = """(() => {
    const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
    const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const over = (top, below) => top.slice(0, 3).map((v, i) => v * top[3] + below[i] * (1 - top[3]));
    const ground = (node) => {
        const chain = [];
        for (let one = node; one; one = one.parentElement) chain.push(parse(getComputedStyle(one).backgroundColor));
        return chain.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
    };
    return (badge) => {
        const walk = document.createTreeWalker(badge, NodeFilter.SHOW_TEXT);
        const found = [];
        while (walk.nextNode()) {
            const owner = walk.currentNode.parentElement;
            if (!walk.currentNode.textContent.trim() || !owner.checkVisibility()) continue;
            const below = ground(owner);
            const letters = over(parse(getComputedStyle(owner).color), below);
            const [low, high] = [luminance(letters), luminance(below)].sort((a, b) => a - b);
            found.push([walk.currentNode.textContent, (high + 0.05) / (low + 0.05)]);
        }
        return found;
    };
})()"""


def report(run, verdict="memorized", created="2026-01-02T03:04:05+00:00", **facts):
    finding = Finding(
        "text_noise_norm", (2.5,), (0.08,), verdict=verdict, percentile=99.2, threshold_source="a profile"
    )
    words = Attribution("gradient", SPANS, WEIGHTS, unit="slope")
    return Report(run=run, findings=(finding,), attribution=words, created=created, policy="warn", **facts).to_dict()


def tell(page, *reports, prompt="p"):
    """Let the server's events come in."""
    page.run(
        f"""const home = String(app.graph.nodes.find((node) => node.type === "MemGuard").id);
        for (const report of {json.dumps(reports)}) app.api.dispatchEvent(new CustomEvent("memguard.report", {{
            detail: {{ home, node_id: home, prompt_id: {prompt!r}, workflow: null, report }} }}));
        await new Promise((done) => setTimeout(done, 300));"""
    )


@pytest.fixture
def opened(page):
    open_example(page, "watch_a_run_and_warn", 2, next(SEEDS))
    needs_badges(page, 2)
    return page


def test_the_gravest_run_stays_on_top_in_one_toast_and_no_copy_shows_it(opened, tmp_path):
    page = opened
    tried = (Attempt("Padding, as in the first pass", ("padded",), kept=True),)
    tell(
        page,
        report("1", width=512, height=512),
        report("2", "unknown", width=1024, height=1024),
        report("3", "suspicious", width=768, height=768, attempts=tried),
    )
    assert page.run(f"return {GUARD}.querySelector('.memguard-words').textContent") == "Looks memorized"
    lines = page.run(f"return [...{GUARD}.querySelectorAll('.memguard-line')].map((line) => line.textContent)")
    assert "? No verdict, 1024 × 1024" in lines
    assert "? Mitigated, not scored again, 768 × 768" in lines
    page.run("await new Promise((done) => setTimeout(done, 2000));")
    page.screenshot(tmp_path / "toast.png")
    # frontends have toasts of their own kinds, and some say them once more for screen readers
    said = page.run(
        """const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        const found = [];
        while (walk.nextNode()) {
            const box = walk.currentNode.parentElement.getBoundingClientRect();
            if (walk.currentNode.textContent.startsWith("MemGuard warning") && box.width > 1 && box.height > 1)
                found.push(walk.currentNode.textContent);
        }
        return found;"""
    )
    assert said == ["MemGuard warning: 2 runs"]

    page.run(
        """const node = app.graph.nodes.find((node) => node.type === "MemGuard");
        const copy = node.clone();
        app.graph.add(copy);
        window.copied = copy;"""
    )
    shown = "window.copied.widgets.find((widget) => widget.name === 'memguard_verdict').element"
    page.wait(f"Boolean({shown}.querySelector('.memguard-words'))", 10)
    assert page.run(f"return {shown}.querySelector('.memguard-words').textContent") == "No run yet"
    assert page.run("return window.copied.properties.memguard ?? null") is None
    # the workflow itself keeps it
    page.run("await app.loadGraphData(app.graph.serialize(), true, false);")
    page.wait(f"{GUARD}?.querySelector('.memguard-words')?.textContent === 'Looks memorized'", 20)
    assert errors_of_memguard(page) == []


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_everything_can_be_read_in_both_themes_and_weight_is_the_strongest_ink(opened, theme, tmp_path):
    page = opened
    page.run(f"await app.extensionManager.setting.set('Comfy.ColorPalette', {theme!r});")
    tried = (Attempt("Padding", ("padded",), (2.0,), "memorized"),)
    tell(page, report("1", attempts=tried), report("2", "unknown"))
    page.run("await new Promise((done) => setTimeout(done, 700));")
    page.screenshot(tmp_path / f"{theme}.png")
    for badge in (GUARD, REPORT):
        poor = [row for row in page.run(f"return ({CONTRASTS})({badge})") if row[1] < 4.5]
        assert poor == [], tmp_path
    inks = page.run(
        f"""const lights = [...{GUARD}.querySelectorAll('.memguard-chip')].map((chip) => {{
            const [r, g, b] = getComputedStyle(chip).backgroundColor.match(/[\\d.]+/g).map(Number);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; }});
        return lights;"""
    )
    assert len(inks) == 5 and inks == sorted(inks, reverse=theme == "dark")
    page.run("await app.extensionManager.setting.set('Comfy.ColorPalette', 'dark');")


@pytest.mark.slow
def test_a_bypassed_guard_breaks_nothing(opened):
    page = opened
    page.run("app.graph.nodes.find((node) => node.type === 'MemGuard').mode = 4;")
    press_run(page)
    page.wait(f"{REPORT}.innerText.includes('not watched')", 20)
    assert [entry for entry in errors_of_memguard(page) if "resolveOutput" not in entry[1]] == []  # ComfyUI's own
