"""What import-linter (pyproject.toml) cannot say of imports. Read from the syntax tree, so lazy ones count as well."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# modules that exist only inside a host, and this repository's own doors, which are imported relatively or not at all
COMFYUI = {"comfy", "comfy_api", "comfy_config", "comfy_execution", "comfy_extras", "execution", "folder_paths"}
WEBUI = {"modules", "modules_forge", "backend"}
SCREENS = {"gradio", "server", "nodes", "extension", "scripts", "app", "testbed", "tests"}
# a host's file may import the modules of that host
HOSTS = dict.fromkeys(("a1111", "forge", "sdnext", "webui"), WEBUI) | {"comfyui": COMFYUI | {"server", "nodes", "app"}}


class AtRunTime(ast.NodeTransformer):
    """Leaves out what is imported for types alone."""

    def visit_If(self, node: ast.If):
        return None if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else self.generic_visit(node)


def imported(path: Path, root: Path = ROOT, types: bool = True) -> set[str]:
    """Return the dotted names that a file imports; relative ones resolved against the repository, marked by a dot."""
    package = list(path.relative_to(root).parent.parts)
    names = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree if types else AtRunTime().visit(tree)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            dotted = ".".join([*base, *([node.module] if node.module else [])])
            prefix = "." if node.level else ""
            # `from . import x` may name a module; `from .m import x` names m
            names |= {f"{prefix}{dotted}" if node.module else f"{prefix}{dotted}.{a.name}" for a in node.names}
    return names


def files(*rooms: str) -> list[Path]:
    found = [p for room in rooms for p in sorted((ROOT / room).rglob("*.py"))]
    return [p for p in found if "__pycache__" not in p.parts]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


CORE = files("memguard")


def test_the_parser_sees_every_kind_of_import(tmp_path):
    path = tmp_path / "memguard" / "calibration" / "probe.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import comfy.samplers as s\nfrom gradio import Blocks\nfrom . import store\nfrom ..hosts import comfyui\n"
        "from ...nodes.monitor import NODES\ndef f():\n    from .. import hosts\n"
    )
    assert imported(path, tmp_path) == {
        "comfy.samplers",
        "gradio",
        ".memguard.calibration.store",
        ".memguard.hosts",
        ".nodes.monitor",
    }


def test_there_is_something_to_check():
    assert {"memguard/records.py", "memguard/guard.py"} <= {named(p) for p in CORE}


@pytest.mark.parametrize("path", CORE, ids=named)
def test_memguard_knows_no_host_but_in_that_host_s_file(path):
    inner = path.relative_to(ROOT / "memguard").parts
    own: set[str] = set()
    if inner[0] == "hosts" and len(inner) > 1:
        own = next((mine for host, mine in HOSTS.items() if inner[1].startswith(host)), set())
    tops = {name.lstrip(".").split(".")[0] for name in imported(path)}
    assert not tops & ((COMFYUI | WEBUI | SCREENS) - own)


@pytest.mark.parametrize("path", [*CORE, *files("nodes", "extension"), ROOT / "__init__.py"], ids=named)
def test_the_pack_names_itself_relatively_only(path):
    # hosts mount the repository under a name of their own; an absolute import would load the core a second time
    if path.is_file():
        assert not [name for name in imported(path) if name.split(".")[0] in ("memguard", "extension")]


@pytest.mark.parametrize("path", files("nodes", "extension"), ids=named)
def test_the_doors_reach_the_core_through_the_hosts_and_the_records(path):
    inside = {name[1:] for name in imported(path) if name.startswith(".memguard")}
    assert not [name for name in inside if name.startswith(("memguard.cli", "memguard.commands", "memguard.guard"))]


def test_comfyui_s_door_imports_nothing_when_it_is_loaded():
    door = ROOT / "__init__.py"
    if not door.is_file():
        pytest.skip("the repository has no __init__.py")
    top = [n for n in ast.parse(door.read_text(encoding="utf-8")).body if isinstance(n, ast.Import | ast.ImportFrom)]
    assert {getattr(n, "module", None) for n in top} <= {"__future__"}


def test_no_file_needs_itself():
    """Lazy imports count, those for types do not; ``from . import attach`` of the package is a door, and no file."""
    modules = {f".{named(path).removesuffix('.py').removesuffix('/__init__').replace('/', '.')}": path for path in CORE}
    graph = {name: imported(path, types=False) & modules.keys() - {name} for name, path in modules.items()}
    TopologicalSorter(graph).prepare()  # a CycleError names the circle
