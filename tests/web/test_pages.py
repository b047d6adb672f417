"""Every node has a help page and English words, and nothing is left over of a node that is gone."""

import ast
import json
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = json.loads((REPOSITORY / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))


def node_ids() -> set[str]:
    """Return the ids of all schemas, read as text: their modules import ComfyUI."""
    found = set()
    for file in (REPOSITORY / "nodes").glob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "Schema":
                found |= {word.value.value for word in call.keywords if word.arg == "node_id"}
    return found


def test_there_are_nodes():
    assert "MemGuard" in node_ids()


def test_every_node_has_a_help_page_and_every_page_a_node():
    assert {page.stem for page in (REPOSITORY / "web/docs").glob("*.md")} == node_ids()


def test_every_node_has_words_and_all_words_a_node():
    assert set(WORDS) == node_ids()


@pytest.mark.parametrize("node_id", sorted(WORDS))
def test_help_page_names_every_input_and_output(node_id):
    page = (REPOSITORY / f"web/docs/{node_id}.md").read_text(encoding="utf-8")
    slots = [*WORDS[node_id].get("inputs", {}), *(output["name"] for output in WORDS[node_id]["outputs"].values())]
    assert [slot for slot in slots if f"**{slot}**" not in page] == []
    assert "## What it costs" in page
    assert "## What it cannot" in page


@pytest.mark.parametrize("node_id", sorted(WORDS))
def test_every_slot_has_a_tooltip(node_id):
    slots = {**WORDS[node_id].get("inputs", {}), **WORDS[node_id]["outputs"]}
    assert [name for name, words in slots.items() if not words.get("tooltip")] == []
