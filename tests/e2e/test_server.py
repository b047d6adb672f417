"""What the real server hands to the page: schemas, help pages, words, templates."""

from __future__ import annotations

import json
import urllib.request

import pytest

from .comfyui import REPOSITORY

WORDS = json.loads((REPOSITORY / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
WORKFLOWS = sorted((REPOSITORY / "example_workflows").glob("*.json"))
PAGE_ONLY = {"MarkdownNote"}  # nodes that the page has and the server does not


def status(server, path: str) -> int:
    with urllib.request.urlopen(server.url + path, timeout=60) as reply:
        return reply.status


@pytest.fixture(scope="module")
def schemas(server) -> dict:
    return server.get("/object_info")


def test_the_words_are_those_of_the_schemas(schemas):
    ours = {name: schema for name, schema in schemas.items() if schema["category"] == "memguard"}
    assert set(ours) == set(WORDS)
    for name, schema in ours.items():
        inputs = {**schema["input"].get("required", {}), **schema["input"].get("optional", {})}
        tooltips = {key: spec[1]["tooltip"] for key, spec in inputs.items()}
        outputs = dict(zip(schema["output_name"], schema["output_tooltips"], strict=True))
        words = WORDS[name]
        assert words["display_name"] == schema["display_name"]
        assert words["description"] == schema["description"]
        assert {key: value["tooltip"] for key, value in words.get("inputs", {}).items()} == tooltips
        assert {value["name"]: value["tooltip"] for value in words["outputs"].values()} == outputs


def test_every_script_is_listed_once(server):
    listed = [path for path in server.get("/extensions") if path.endswith("/memguard.js")]
    assert listed == ["/extensions/memguard/js/memguard.js"]


@pytest.mark.parametrize("node_id", sorted(WORDS))
def test_help_pages_are_served(server, node_id):
    assert status(server, f"/extensions/memguard/docs/{node_id}.md") == 200


def test_words_are_served(server):
    assert server.get("/i18n")["en"]["nodeDefs"]["MemGuard"] == WORDS["MemGuard"]


def test_templates_and_thumbnails_are_served(server):
    names = [path.stem for path in WORKFLOWS]
    assert sorted(server.get("/workflow_templates")["memguard"]) == names
    assert [status(server, f"/api/workflow_templates/memguard/{name}.jpg") for name in names] == [200] * len(names)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_use_nodes_and_slots_that_exist(schemas, path):
    for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
        if node["type"] in PAGE_ONLY:
            continue
        schema = schemas[node["type"]]
        known = {**schema["input"].get("required", {}), **schema["input"].get("optional", {})}
        assert [slot["name"] for slot in node["inputs"] if slot["name"] not in known] == []
        assert [slot["name"] for slot in node["outputs"]] == schema["output_name"]
