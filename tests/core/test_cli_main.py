"""The command line itself: help without torch, exit codes, missing extras, and ``memguard doctor``."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from memguard import cli
from memguard.cli import COMMANDS, main
from memguard.commands import doctor, extras

ROOT = Path(__file__).parents[2]
ADVICE = re.compile(r"pip install[^\n]*memguard\[")


def test_help_names_every_command_and_does_not_wait_for_torch():
    code = "import sys, memguard.cli as c; c.build_parser(None).print_help(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in COMMANDS)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_package_is_the_command():
    done = subprocess.run([sys.executable, "-m", "memguard", "nonsense"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("memguard: argument COMMAND: invalid choice: 'nonsense'")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_does_not_wait_for_torch(name):
    code = (
        f"import sys, memguard.cli as c\ntry: c.main(['{name}', '--help'])\n"
        "except SystemExit: print({'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_json(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    # testbed's actions have it
    assert "--json" in said or name == "testbed"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["nope"], "invalid choice: 'nope'"),
        (["scan"], "the following arguments are required: --model"),
    ],
)
def test_wrong_arguments_are_one_line_and_2(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    err = capsys.readouterr().err
    assert end.value.code == 2
    assert message in err and err.count("\n") == 1


def run_with(monkeypatch, error: BaseException) -> int:
    def broken(_args):
        raise error

    monkeypatch.setattr(cli, "build_parser", lambda _: _Parser(broken))
    return main(["scan"])


class _Parser:
    def __init__(self, run):
        self.run = run

    def parse_known_args(self, _words):
        return argparse.Namespace(run=self.run), []


def test_a_missing_extra_is_named(monkeypatch, capsys):
    root = extras.ROOT  # the index has a memguard that is somebody else's
    assert run_with(monkeypatch, ModuleNotFoundError("no", name="pyarrow.parquet")) == 2
    assert capsys.readouterr().err == f"memguard scan: needs pyarrow; pip install '{root}[parquet]'\n"
    assert run_with(monkeypatch, ModuleNotFoundError("no", name="diffusers")) == 2
    assert capsys.readouterr().err == f"memguard scan: needs diffusers; pip install '{root}[diffusers]'\n"


def test_an_installed_copy_does_not_know_its_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(extras, "ROOT", tmp_path)
    assert extras.remedy("ray") == "pip install '.[ray]' in the folder that memguard was installed from"


def test_no_text_advises_somebody_elses_package():
    folders = [ROOT / name for name in ("docs", "examples", "memguard", "nodes", "extension")]
    texts = [ROOT / "README.md", *(path for folder in folders for path in folder.rglob("*.*"))]
    wrong = [p for p in texts if p.suffix in (".md", ".py") and ADVICE.search(p.read_text(encoding="utf-8"))]
    assert not wrong


@pytest.mark.parametrize("error", [ModuleNotFoundError("no", name="memguard.nothing"), ZeroDivisionError()])
def test_an_error_of_the_program_is_not_hidden_and_is_no_finding(monkeypatch, capsys, error):
    assert run_with(monkeypatch, error) == 3
    assert f"{type(error).__name__}" in capsys.readouterr().err


def test_an_unknown_argument_is_said_to_be_the_command_s(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["scan", "p.txt", "--model", "testbed", "--out", "x.csv", "--nothing", "3"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "memguard scan: unrecognized arguments: --nothing 3; see memguard scan --help\n"


def test_prompts_of_the_test_bed_as_json(capsys):
    assert main(["testbed", "prompts", "held"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["testbed", "prompts", "held", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == lines


def test_ctrl_c_is_130(monkeypatch, capsys):
    assert run_with(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "memguard scan: interrupted\n"


def test_doctor_prints_versions_devices_and_features(capsys):
    assert main(["doctor", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["versions"]["memguard"] == "0.1.0" and values["versions"]["torch"]
    assert values["devices"][0].startswith("cpu: ")
    assert values["features"]["verdicts by profile"] == "none but the test bed's; run memguard calibrate"
    assert main(["doctor"]) == 0
    assert "no   verdicts by profile: none but the test bed's" in capsys.readouterr().out


def comfyui(folder: Path, version: str = "0.8.1") -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "custom_nodes").mkdir()
    for name in ("nodes.py", "execution.py"):
        (folder / name).touch()
    (folder / "comfyui_version.py").write_text(f'# generated\n__version__ = "{version}"\n')
    return folder


def webui(folder: Path, *of_forge: str) -> Path:
    (folder / "modules").mkdir(parents=True)
    (folder / "modules/processing.py").touch()
    (folder / "launch.py").touch()
    (folder / "CHANGELOG.md").write_text("## 1.10.1\n\n## 1.10.0\n")
    for name in of_forge:
        (folder / name).mkdir(parents=True)
    if of_forge:
        (folder / "modules_forge/forge_version.py").write_text('version = "f2.0.1"\nrelease = "2.26"\n')
    return folder


def test_doctor_finds_hosts_by_variable_and_by_folder(tmp_path):
    comfy, a1111 = comfyui(tmp_path / "c"), webui(tmp_path / "a")
    forge = webui(tmp_path / "f", "modules_forge", "backend")
    neo = webui(tmp_path / "n", "modules_forge/packages", "backend")
    named = {"COMFYUI_ROOT": str(comfy), "A1111_ROOT": str(a1111), "FORGE_ROOT": str(forge)}
    found = doctor.hosts(tmp_path, named | {"FORGE_NEO_ROOT": str(neo)})
    assert [(h.name, h.folder, h.version) for h in found] == [
        ("ComfyUI", str(comfy), "0.8.1"),
        ("A1111", str(a1111), "1.10.1"),
        ("Forge", str(forge), "f2.0.1"),
        ("Forge Neo", str(neo), "2.26"),
    ]
    assert [h.name for h in doctor.hosts(neo, {})] == ["Forge Neo"]
    assert doctor.hosts(webui(tmp_path / "r", "modules_forge"), {}) == []  # reForge is none that we work in
    (inside,) = doctor.hosts(comfy / "custom_nodes", {})
    assert (inside.folder, inside.found) == (str(comfy), "current folder")
    assert doctor.hosts(tmp_path, {}) == []


def test_doctor_says_when_a_variable_points_elsewhere(tmp_path):
    (host,) = doctor.hosts(tmp_path, {"COMFYUI_ROOT": str(tmp_path)})
    assert host.found == "COMFYUI_ROOT names no ComfyUI"
    assert doctor._comfyui([host]) == "COMFYUI_ROOT names no ComfyUI"


def test_doctor_says_what_keeps_the_nodes_from_working(tmp_path):
    old = doctor.hosts(tmp_path, {"COMFYUI_ROOT": str(comfyui(tmp_path / "old", "0.3.50"))})
    assert doctor._comfyui(old) == "ComfyUI 0.3.50 is older than 0.3.64; update it"
    folder = comfyui(tmp_path / "new", "0.3.64")
    new = doctor.hosts(tmp_path, {"COMFYUI_ROOT": str(folder)})
    assert doctor._comfyui(new).startswith("this pack is not in")
    (folder / "custom_nodes" / "memguard").symlink_to(ROOT)
    assert doctor._comfyui(new) == ""


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_pipe_that_was_closed_is_no_end_and_no_complaint(closed):
    lines = ["import argparse, memguard.cli as c", "class P:", "    def parse_known_args(self, words):"]
    lines += ["        return argparse.Namespace(run=run), []", "def run(args):"]
    lines += [f"    while True: print('x' * 999, file=sys.{closed})"]
    code = "\n".join(["import sys", *lines, "c.build_parser = lambda _: P()", "sys.exit(c.main(['scan']))"])
    read, write = os.pipe()
    done = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {closed: write}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **done)
    os.close(write)
    os.read(read, 9)
    os.close(read)
    said = process.communicate(timeout=60)
    assert process.returncode == 141 and not any(said)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell of Unix")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_streams_that_are_closed_from_the_beginning_end_nothing(closed):
    words = f"'{sys.executable}' -m memguard.cli testbed prompts held {closed}"
    done = subprocess.run(words, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_each_package_is_brought_by_the_extra_that_is_named():
    brought = re.findall(r"^(\w+) = \[(.*?)\]$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)
    packages = {extra: listed.replace("scikit-learn", "sklearn").lower() for extra, listed in brought}
    assert not [name for name, extra in extras.EXTRAS.items() if f'"{name}' not in packages[extra]]


def test_what_is_lacking_is_named_and_what_is_there_is_not(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name != "peft" else object())
    assert extras.lacking("peft", "imagehash") == f"needs imagehash; {extras.remedy('audit')}"
    assert extras.lacking("peft") == ""
