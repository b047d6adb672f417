"""Each command that the documents and the examples show is one that the command line takes."""

import json
import re
import shlex
from pathlib import Path

import pytest

from memguard.cli import COMMANDS, build_parser

ROOT = Path(__file__).parents[2]
WHOLE = re.compile(r"^ *(?:\$ )?(memguard [a-z].*)$", re.MULTILINE)  # a line of a block
INLINE = re.compile(r"`(memguard [a-z][^`]*)`")
EVIDENCE = ROOT / "docs/evidence"  # what was run then, with earlier versions


def documents():
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        if EVIDENCE not in path.parents:
            yield path, path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "example_workflows").glob("*.json")):
        yield path, json.dumps(json.loads(path.read_text(encoding="utf-8")), ensure_ascii=False)


def commands():
    for path, text in documents():
        text = text.replace("\\\n", " ")
        for said in (*WHOLE.findall(text), *INLINE.findall(text)):
            words = shlex.split(said, comments=True)
            whole = len(words) > 2 or words[-1].startswith("-")  # a lone name is spoken of
            if words[1] in COMMANDS and whole and not re.search(r"\.\.\.|\||\[", said):
                yield pytest.param(words[1:], id=f"{path.name}: {said[:60]}")


@pytest.mark.parametrize("words", list(commands()))
def test_a_documented_command_is_taken(words, capsys):
    try:
        build_parser(words[0]).parse_args(words)
    except SystemExit as ended:
        assert ended.code == 0, capsys.readouterr().err
