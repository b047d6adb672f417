"""Warnings while typing, from the memory of a real run: seen at the text and in the badge, and gone without a trace."""

from __future__ import annotations

import pytest

from .conftest import SEEDS
from .driving import badge_of, errors_of_memguard, needs_badges, open_example, press_run, type_into

PROMPT = "Halley breakfast at noon - press kit"
HARMLESS = "a wooden boat on a quiet lake"
LINE = "This prompt looked memorized before"
GUARD = badge_of("MemGuard")
FLAGS = "[...document.querySelectorAll('.memguard-flag')].map((flag) => flag.innerText)"
# what must not change: values, places and sizes of all nodes but those whose panel shows a result
LAYOUT = """app.graph.serialize().nodes.filter((node) => !node.type.startsWith("MemGuard"))
    .map(({ id, type, pos, size, widgets_values }) => [id, type, [...pos], [...size], widgets_values]).sort()"""


@pytest.fixture
def remembering(page, server, flagging):
    """The page with an example whose prompt was flagged in a run."""
    open_example(page, "watch_a_run_and_warn", 2, next(SEEDS))
    needs_badges(page, 2)
    press_run(page)
    page.wait(f"{GUARD}.innerText.includes('Looks memorized')", 30)
    yield page
    page.run("await app.api.fetchApi('/memguard/v1/memory', { method: 'DELETE' })")


@pytest.mark.slow
def test_a_known_prompt_is_flagged_and_a_harmless_one_is_not(remembering):
    page = remembering
    page.wait(f"({FLAGS}).length === 1", 20)
    type_into(page, PROMPT, HARMLESS)
    page.wait(f"({FLAGS}).length === 0", 20)
    assert LINE not in page.run(f"return {GUARD}.innerText")
    before = page.run(f"return {LAYOUT}")

    toasts = page.run("return document.querySelectorAll('.p-toast-message').length")
    type_into(page, HARMLESS, PROMPT)
    page.wait(f"({FLAGS}).length === 1", 20)
    assert page.run(f"return {FLAGS}") == [f"▲ {LINE}"]
    shown = page.run(f"return {GUARD}.innerText")
    assert "Looks memorized" in shown and LINE not in shown, "the very run that the flag reminds of is shown there"
    owner = page.run(
        "return app.graph.nodes.filter((node) => node.widgets?.some((w) => w.name === 'memguard_known'))[0].title"
    )
    assert owner == "Prompt"
    assert page.run("return document.querySelectorAll('.p-toast-message').length") <= toasts
    flagged = page.run("return app.graph.serialize().nodes.map((node) => node.widgets_values)")
    assert [values for values in flagged if values and PROMPT in values] == [[PROMPT]]
    prompt = page.run("return (await app.graphToPrompt()).output")
    assert [node for node in prompt.values() if "memguard_known" in node["inputs"]] == []

    type_into(page, PROMPT, HARMLESS)
    page.wait(f"({FLAGS}).length === 0", 20)
    page.run("await new Promise((done) => setTimeout(done, 500))")
    assert page.run(f"return {LAYOUT}") == before
    assert errors_of_memguard(page) == []


@pytest.mark.slow
def test_it_can_be_switched_off(remembering, server):
    page = remembering
    page.wait(f"({FLAGS}).length === 1", 20)
    page.run("await app.extensionManager.setting.set('MemGuard.WarnWhileTyping', false)")
    page.wait(f"({FLAGS}).length === 0", 20)
    page.run("await app.extensionManager.setting.set('MemGuard.WarnWhileTyping', true)")
    page.wait(f"({FLAGS}).length === 1", 20)
    assert errors_of_memguard(page) == []
