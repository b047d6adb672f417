"""The metadata says what the files say. Read as text: Python 3.10 has no parser for TOML."""

import ast
import re
from pathlib import Path

from memguard.version import VERSION

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_package_data_patterns_match_the_files_that_the_code_reads():
    patterns = re.search(r"^memguard = \[(.+)\]$", PYPROJECT, re.MULTILINE)[1]
    matched = {path for pattern in re.findall(r'"([^"]+)"', patterns) for path in (ROOT / "memguard").glob(pattern)}
    templates = [p.relative_to(ROOT / "memguard") for p in (ROOT / "memguard/pages/templates").iterdir()]
    assert "report.css" in {path.name for path in templates}
    for needed in ("calibration/ordinary.txt", "testbed/assets/merges.txt.gz", *templates):
        assert ROOT / "memguard" / needed in matched


def test_comfyui_s_page_is_registered_once():
    section = PYPROJECT.split("[tool.comfy]")[1].split("\n[")[0]
    assert not re.search(r"^web\s*=", section, re.MULTILINE)
    assert 'requires-comfyui = ">=0.3.64"' in section


def test_the_version_can_be_read_without_running_the_file():
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)
    assert f'\nVERSION = "{VERSION}"\n' in (ROOT / "memguard" / "version.py").read_text(encoding="utf-8")
    assert f"## [{VERSION}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_constraints_pin_public_versions_of_every_dependency():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    for line in lines:
        assert re.fullmatch(r'[a-z0-9.-]+==[0-9][0-9a-z.]*(; python_version (<|>=) "3\.11")?', line), line
    pinned = {line.split("==")[0] for line in lines}
    extras = PYPROJECT.split("dependencies = [")[1].split("[project.scripts]")[0]
    wanted = {name.lower() for name in re.findall(r'"([A-Za-z][\w-]*)(?:>=[\d.]+)?"', extras)}
    assert {"torch", "pillow", "diffusers", "pytest", "pre-commit"} <= wanted <= pinned
    assert "torch==2.13.0" in lines


def test_install_py_checks_the_versions_that_the_metadata_asks_for():
    tree = ast.parse((ROOT / "install.py").read_text(encoding="utf-8"))
    needs = next(n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "NEEDS")
    asked = re.search(r"^dependencies = \[(.+?)\]", PYPROJECT, re.MULTILINE | re.DOTALL)[1]
    bounds = {n: tuple(map(int, v.split("."))) for n, v in re.findall(r'"(\w+)>=([\d.]+)"', asked)}
    assert ast.literal_eval(needs) == bounds


def test_the_registry_s_archive_keeps_the_test_bed_s_weights():
    patterns = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    assert "/testbed/" in patterns
    assert all(line.startswith(("/", "#")) for line in patterns if line)
