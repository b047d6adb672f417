"""The button "Check prompt" in the real page: a score without sampling, in the badge of the same node."""

from __future__ import annotations

import pytest

from .conftest import SEEDS
from .driving import badge_of, errors_of_memguard, needs_badges, open_example, press

GUARD = badge_of("MemGuard")


@pytest.mark.slow
def test_a_prompt_is_checked_without_sampling(page, flagging):
    open_example(page, "watch_a_run_and_warn", seed=next(SEEDS))
    needs_badges(page, 2)
    page.run(
        """window.ran = [];
        app.api.addEventListener("executing", ({ detail }) => window.ran.push(detail));"""
    )
    press(page, GUARD, "Check prompt")
    page.wait(f"{GUARD}.innerText.includes('Looks memorized')", 200)
    shown = page.run(f"return {GUARD}.innerText")
    assert "Prompt check, not a run" in shown
    assert "Higher than all 320 ordinary prompts" in shown
    page.wait("window.ran.includes(null)", 30)
    sampler = page.run("return String(app.graph.nodes.find((node) => node.type === 'KSampler').id)")
    ran = page.run("return window.ran")
    assert sampler not in ran and "memguard_check_6" in ran
    assert page.run(f"return {badge_of('MemGuard_Report')}.innerText").endswith("No run yet")
    assert page.run("return app.graph.nodes.length") == 10
    assert errors_of_memguard(page) == []


def test_without_a_sampler_it_says_so(page):
    open_example(page, "watch_a_run_and_warn")
    needs_badges(page, 2)
    page.run("app.graph.remove(app.graph.nodes.find((node) => node.type === 'KSampler'))")
    press(page, GUARD, "Check prompt")
    page.wait(f"{GUARD}.innerText.includes('No sampler gets this node')", 20)
    assert errors_of_memguard(page) == []


def test_the_plain_reading_of_a_workflow_is_the_one_that_is_queued(page):
    """The typing warnings read the graph without serializing its widgets; the links must be the same."""
    open_example(page, "watch_a_run_and_warn")
    page.run(
        """const guard = app.graph.nodes.filter((node) => ["MemGuard", "CLIPTextEncode"].includes(node.type));
        app.graph.convertToSubgraph(new Set(guard));
        const sampler = app.graph.nodes.find((node) => node.type === "KSampler");
        const reroute = LiteGraph.createNode("Reroute");
        app.graph.add(reroute);
        const loader = app.graph.nodes.find((node) => node.type === "EmptyLatentImage");
        loader.connect(0, reroute, 0);
        reroute.connect(0, sampler, sampler.inputs.findIndex((input) => input.name === "latent_image"));"""
    )
    different = page.run(
        """const { plainPrompt } = await import("/extensions/memguard/js/graph.js");
        const plain = plainPrompt(app.rootGraph ?? app.graph);
        const { output } = await app.graphToPrompt();
        const text = (node) => JSON.stringify([node?.class_type, Object.entries(node?.inputs ?? {}).sort()]);
        const ids = new Set([...Object.keys(plain), ...Object.keys(output)]);
        const pairs = [...ids].map((id) => [id, text(plain[id]), text(output[id])]);
        return pairs.filter(([, mine, queued]) => mine !== queued);"""
    )
    assert different == []
    assert (
        page.run("return Object.keys((await app.graphToPrompt()).output).filter((id) => id.includes(':')).length") == 3
    )
