"""A report is there again: after a reload of the page, also in mid-run, and from a saved workflow."""

from __future__ import annotations

import json

import pytest

from .conftest import SEEDS
from .driving import badge_of, errors_of_memguard, needs_badges, open_example, open_page, press_run

GUARD, REPORT = badge_of("MemGuard"), badge_of("MemGuard_Report")
QUEUE = """window.judged = false;
    app.api.addEventListener("memguard.report", () => { window.judged = true; });
    app.api.addEventListener("progress", () => { window.judged = true; });
    await app.extensionManager.command.execute("Comfy.QueuePrompt");"""


@pytest.mark.slow
def test_a_page_that_reloads_in_mid_run_gets_the_report(page, server, flagging):
    open_example(page, "watch_a_run_and_warn", 4, next(SEEDS))
    needs_badges(page, 2)
    page.run("await new Promise((done) => setTimeout(done, 1500))")  # the page stores its workflow after a pause
    page.run(QUEUE)
    page.wait("window.judged", 200)
    open_page(page, server)  # the same tab: the page is the same client again
    page.wait("app.graph.nodes.some((node) => node.comfyClass === 'MemGuard')", 60)
    page.wait(f"{GUARD}.innerText.includes('Looks memorized')", 200)
    # comes at the end of the run; from the history where the page was away just then
    page.wait(f"{REPORT}.innerText.includes('Looks memorized')", 120)
    assert "From the saved workflow" not in page.run(f"return {REPORT}.innerText")
    assert errors_of_memguard(page) == []


@pytest.mark.slow
def test_a_page_that_was_away_fetches_what_it_missed(page, server, flagging):
    open_example(page, "watch_a_run_and_warn", 2, next(SEEDS))
    needs_badges(page, 2)
    saved = json.dumps(page.run("return (await app.graphToPrompt()).workflow"))
    press_run(page)
    open_page(page, server)
    page.run(f"await app.loadGraphData({saved}, true, true)")
    page.wait(f"{GUARD}.innerText.includes('Looks memorized')", 30)
    assert "From the saved workflow" not in page.run(f"return {GUARD}.innerText")
    assert errors_of_memguard(page) == []


@pytest.mark.slow
def test_a_saved_workflow_brings_its_report_and_says_so(page, server, flagging):
    open_example(page, "watch_a_run_and_warn", 2, next(SEEDS))
    needs_badges(page, 2)
    press_run(page)
    page.wait(f"{GUARD}.innerText.includes('Looks memorized')", 30)
    saved = page.run("return (await app.graphToPrompt()).workflow")
    saved["id"] = "00000000-0000-4000-8000-00000000abcd"  # a workflow of which this server knows nothing
    kept = [node["properties"]["memguard"] for node in saved["nodes"] if node["type"].startswith("MemGuard")]
    assert [entry["report"]["verdict"] for entry in kept] == ["memorized", "memorized"]
    open_page(page, server)
    page.run(f"await app.loadGraphData({json.dumps(saved)}, true, true)")
    for badge in (GUARD, REPORT):
        page.wait(f"{badge}.innerText.includes('Looks memorized')", 30)
        assert "From the saved workflow, until the next run." in page.run(f"return {badge}.innerText")
    assert errors_of_memguard(page) == []
