"""The page's scripts: nothing from elsewhere, no markup, types that agree; *.test.mjs hold what they say."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .cases import cases

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
WEB = REPOSITORY / "web"
SCRIPTS = sorted(WEB.rglob("*.js"))
# shown in the about page, and the name of a kind of element; neither is ever loaded
LINKS = {"https://github.com/memguard/memguard", "http://www.w3.org/2000/svg"}

TSC = shutil.which("tsc")

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def test_there_are_scripts():
    assert WEB / "js/memguard.js" in SCRIPTS


@pytest.mark.parametrize("file", [*SCRIPTS, *sorted(WEB.rglob("*.css"))], ids=lambda path: path.name)
def test_nothing_is_loaded_from_elsewhere(file):
    assert set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\"'\s)]*", file.read_text(encoding="utf-8"))) <= LINKS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_words_of_others_cannot_become_markup(script):
    text = script.read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_editors_check_its_types(script):
    assert "// @ts-check" in script.read_text(encoding="utf-8").partition("import")[0].splitlines()


@pytest.mark.skipif(TSC is None, reason="tsc is not installed (npm install -g typescript)")
def test_types_agree():
    done = subprocess.run([TSC, "--project", WEB], capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """What the tests in node need: the server's answers, as a file."""
    file = tmp_path_factory.mktemp("cases") / "cases.json"
    file.write_text(json.dumps(cases(), allow_nan=False), encoding="utf-8")
    return {**os.environ, "MEMGUARD_CASES": str(file)}


@needs_node
@pytest.mark.parametrize("file", sorted(HERE.glob("*.test.mjs")), ids=lambda path: path.name)
def test_in_node(file, environment):
    command = ["node", "--import", (HERE / "comfyui.mjs").as_uri(), "--test", "--test-reporter=tap", str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=120)
    failed = re.findall(r"^ *not ok \d+ - (.*)$", done.stdout, re.MULTILINE)
    assert not failed, f"failed in node: {failed}\n{done.stdout}"
    assert done.returncode == 0, done.stderr
    assert int(re.search(r"^# pass (\d+)$", done.stdout, re.MULTILINE)[1]) > 0
