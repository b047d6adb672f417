"""The loop that docs/training.md shows runs as it stands, and its log has the names that the document says."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

TEXT = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
KINDS = re.compile(r"^\| `(\w+)` \| .*(?:drawn|words)", re.MULTILINE)


def test_the_loop_runs_and_its_log_has_the_names(tmp_path, monkeypatch, capsys):
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "import torch" in block]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/training.md", "exec"), {})  # noqa: S102
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    names = {row["name"] for row in rows}
    assert {name for name in names if f"`{name}`" not in TEXT} == {"memorization/gap at 700"}
    assert len(names) == 7 and {row["step"] for row in rows if row["name"] == "memorization/gap"} == {0, 2}
    said = capsys.readouterr().out
    assert "was above the threshold" in said and "t = 700: held-out loss - training loss = " in said


def test_all_kinds_of_captions_are_there():
    from memguard.training.captions import KINDS as KNOWN

    assert tuple(KINDS.findall(TEXT)) == KNOWN
