"""The example workflow in the real page: the warning is seen, in words, and the scripts make no error."""

from __future__ import annotations

import pytest

from .conftest import SEEDS
from .driving import errors_of_memguard, needs_badges, open_example, press_run

# Fewer steps than the example has: the score is known after the first one, and a CPU takes seconds for each.
STEPS = 2
# elements of that text alone; a hidden announcement for screen readers holds the whole sentence
TITLES = """[...document.querySelectorAll("body *")].filter((part) => part.children.length === 0)
    .map((part) => part.textContent.trim()).filter((text) => text === "MemGuard warning")"""
BADGES = "[...document.querySelectorAll('.memguard-badge')].map((badge) => badge.innerText)"


@pytest.mark.slow
def test_the_warning_is_seen(page, flagging):
    open_example(page, "watch_a_run_and_warn", STEPS, next(SEEDS))
    press_run(page)
    page.wait("document.body.innerText.includes('MemGuard: looks memorized (score')", 30)
    assert page.run(f"return {TITLES}") == ["MemGuard warning"]
    assert errors_of_memguard(page) == []
    needs_badges(page, 2)
    for text in page.run(f"return {BADGES}"):
        assert "Looks memorized" in text
        assert "Higher than all 320 ordinary prompts" in text


@pytest.mark.slow
def test_a_stop_says_so(page, flagging):
    open_example(page, "stop_a_memorized_run", STEPS, next(SEEDS))
    press_run(page)
    page.wait("document.body.innerText.includes('MemGuard stopped this run')", 30)
    assert errors_of_memguard(page) == []
    needs_badges(page, 1)
    assert "Looks memorized" in page.run(f"return {BADGES}")[0]


@pytest.mark.slow
def test_a_guard_inside_a_subgraph_gets_its_verdict(page, flagging):
    open_example(page, "watch_a_run_and_warn", STEPS, next(SEEDS))
    inside = "app.graph.nodes.find((node) => node.subgraph)?.subgraph.nodes[0]"
    page.run("app.graph.convertToSubgraph(new Set(app.graph.nodes.filter((node) => node.type === 'MemGuard')))")
    assert page.run(f"return {inside}.comfyClass") == "MemGuard"
    press_run(page)
    page.wait(f"{inside}.widgets.some((widget) => widget.element?.textContent.includes('Looks memorized'))", 30)
    assert errors_of_memguard(page) == []


def test_calibrating_again_gives_the_same_seed(page):
    open_example(page, "calibrate_a_checkpoint")
    node = "app.graph.nodes.find((node) => node.type === 'MemGuard_Calibrate')"
    assert page.run(f"return {node}.widgets.map((w) => [w.name, w.value])") == [
        ["seed", 0],
        ["note", "test bed"],
        ["prompts", ""],
    ]


def test_the_badge_is_reached_by_keyboard_and_named(page):
    open_example(page, "watch_a_run_and_warn")
    needs_badges(page, 2)
    badge = "document.querySelector('.memguard-badge')"
    page.run(f"{badge}.focus()")
    assert page.run(f"return document.activeElement === {badge}")
    assert page.run(f"return [{badge}.tabIndex, {badge}.getAttribute('aria-label')]") == [0, "MemGuard"]
    assert page.run(f"return {badge}.querySelector('[role=status]').innerText").endswith("No run yet")
    assert "No run yet" in page.run(f"return {badge}.innerText")


def test_a_verdict_is_no_value_of_the_workflow_nor_of_the_prompt(page):
    open_example(page, "watch_a_run_and_warn")
    ours = "app.graph.nodes.filter((node) => node.type.startsWith('MemGuard'))"
    counts = page.run(
        f"""return {ours}.map((node) => [node.serialize().widgets_values?.length ?? 0,
            node.widgets.filter((widget) => !widget.name.startsWith("memguard_")).length])"""
    )
    assert len(counts) == 2 and all(saved == widgets for saved, widgets in counts)
    prompt = page.run("return (await app.graphToPrompt()).output")
    assert [key for node in prompt.values() for key in node["inputs"] if key.startswith("memguard_")] == []
