"""The panel of Audit LoRA in the real page: what the node sends, a workflow that is saved and opened, a copied node."""

from __future__ import annotations

import json

import pytest

from .driving import errors_of_memguard, needs_badges

NODES = "app.graph.nodes.filter((node) => node.comfyClass === 'MemGuard_AuditLora')"
SHOWN = {
    "verdict": "This LoRA copies 1 of 2 pictures.",
    "tone": "memorized",
    "table": [["checkpoint", "copied", "Z"], ["<b>x</b>.safetensors", "1 of 2", "-4.20"]],
    "lines": ["copied: a.png (likeness 0.82): <i>a cup</i>"],
}


def panel(index: int = 0) -> str:
    return f"{NODES}[{index}].widgets.find((widget) => widget.name === 'memguard_audit').element"


def load(page, workflow) -> None:
    page.run(f"await app.loadGraphData({json.dumps(workflow)}, true, true)")
    needs_badges(page, 1)


@pytest.mark.slow
def test_an_audit_is_shown_and_stays_with_its_workflow(page):
    page.run("app.graph.clear(); app.graph.add(LiteGraph.createNode('MemGuard_AuditLora'));")
    needs_badges(page, 1)
    assert page.run(f"return {panel()}.textContent") == "No audit yet"
    detail = f"{{ node: String({NODES}[0].id), output: {{ memguard_audit: [{json.dumps(SHOWN)}] }} }}"
    page.run(f"app.api.dispatchEvent(new CustomEvent('executed', {{ detail: {detail} }}))")
    assert page.run(f"return {panel()}.dataset.tone") == "memorized"
    cells = page.run(f"return [...{panel()}.querySelectorAll('th, td')].map((cell) => cell.textContent)")
    assert cells == [cell for row in SHOWN["table"] for cell in row]
    text = page.run(f"return {panel()}.textContent")
    assert text.startswith(f"■{SHOWN['verdict']}") and text.endswith(SHOWN["lines"][0])

    saved = page.run("return (await app.graphToPrompt()).workflow")
    load(page, saved)
    text = page.run(f"return {panel()}.textContent")
    assert SHOWN["verdict"] in text and "From the saved workflow" in text
    (node,) = saved["nodes"]
    load(page, saved | {"nodes": [node | {"id": node["id"] + 1}]})  # a copy made no audit
    assert page.run(f"return {panel()}.textContent") == "No audit yet"
    node["properties"]["memguardAudit"]["shown"]["table"] = "edited by hand"
    load(page, saved)
    assert page.run(f"return {panel()}.textContent") == "No audit yet"
    assert errors_of_memguard(page) == []
