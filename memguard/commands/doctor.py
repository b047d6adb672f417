"""``memguard doctor``: versions, hosts, devices, and which features work here and why the others do not."""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..version import VERSION
from . import common
from .extras import lacking

PACKAGES = (
    "torch numpy einops safetensors Pillow diffusers transformers accelerate peft tqdm pyarrow scikit-learn matplotlib"
).split()
COMFYUI_MINIMUM = (0, 3, 64)


@dataclass(frozen=True)
class Host:
    """An installed host: its name, where it is, its version as it says itself, and how it was found."""

    name: str
    folder: str
    version: str
    found: str


@dataclass(frozen=True)
class Feature:
    """Something that memguard does; ``why`` is "" where it works here."""

    name: str
    why: str


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser("doctor", help="versions, hosts, devices, and what works here")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Examine and print; return 0."""
    versions = {"memguard": VERSION, "Python": platform.python_version()} | {p: _version(p) for p in PACKAGES}
    found, devices = hosts(Path.cwd(), dict(os.environ)), _devices()
    able = features(found, devices)
    if args.json:
        common.print_json(
            {
                "versions": versions,
                "hosts": [asdict(host) for host in found],
                "devices": devices,
                "features": {feature.name: feature.why or "ok" for feature in able},
            }
        )
        return 0
    print("versions")
    for name, number in versions.items():
        print(f"  {name:<14}{number or 'not installed'}")
    print("hosts")
    for host in found:
        print(f"  {host.name:<14}{host.version or 'version unknown'}  {host.folder}  ({host.found})")
    if not found:
        print("  none found; set COMFYUI_ROOT, A1111_ROOT, FORGE_ROOT or FORGE_NEO_ROOT, or run this in its folder")
    print("devices")
    for device in devices:
        print(f"  {device}")
    print("features")
    for feature in able:
        print(f"  {'no ' if feature.why else 'yes'}  {feature.name}{': ' + feature.why if feature.why else ''}")
    return 0


def hosts(here: Path, environment: dict[str, str]) -> list[Host]:
    """Return the hosts that the environment names, and the one that ``here`` lies in."""
    found = []
    for name, (variable, is_root, read) in HOSTS.items():
        named = environment.get(variable)
        places = [(Path(named), variable)] if named else []
        places += [(folder, "current folder") for folder in (here, *here.parents)]
        for folder, how in places:
            if is_root(folder):
                found.append(Host(name, str(folder), read(folder), how))
                break
            if how == variable:
                found.append(Host(name, str(folder), "", f"{variable} names no {name}"))
                break
    return found


def _search(path: str, pattern: str) -> Callable[[Path], str]:
    """Return a function that reads a version from a file of a host; hosts are never imported."""

    def read(folder: Path) -> str:
        try:
            match = re.search(pattern, (folder / path).read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        except OSError:
            return ""
        return match[1] if match else ""

    return read


def _holds(*names: str, lacks: str = "") -> Callable[[Path], bool]:
    return lambda f: all((f / name).exists() for name in names) and not (lacks and (f / lacks).exists())


NEO = "modules_forge/packages"  # which Forge and reForge lack

HOSTS: dict[str, tuple[str, Callable[[Path], bool], Callable[[Path], str]]] = {
    "ComfyUI": (
        "COMFYUI_ROOT",
        _holds("comfy", "nodes.py", "execution.py"),
        _search("comfyui_version.py", r"__version__\s*=\s*[\"'](.+?)[\"']"),
    ),
    "A1111": (
        "A1111_ROOT",
        _holds("modules/processing.py", "launch.py", lacks="modules_forge"),
        _search("CHANGELOG.md", r"^##\s*v?([\d.]+)"),
    ),
    "Forge": (
        "FORGE_ROOT",
        _holds("modules/processing.py", "launch.py", "modules_forge", "backend", lacks=NEO),
        _search("modules_forge/forge_version.py", r"version\s*=\s*[\"'](.+?)[\"']"),
    ),
    "Forge Neo": (
        "FORGE_NEO_ROOT",
        _holds("modules/processing.py", "launch.py", "backend", NEO),
        _search("modules_forge/forge_version.py", r"^release\s*=\s*[\"'](.+?)[\"']"),
    ),
}


def features(found: list[Host], devices: list[str]) -> list[Feature]:
    """Return what works here."""
    from ..calibration import folders
    from ..testbed.loader import assets

    pipelines = lacking("diffusers", "transformers")
    weights = "" if (assets() / "stage-final.safetensors").is_file() else "the shipped weights are missing; reinstall"
    *own, _shipped = folders()  # those of the test bed say nothing about a user's models
    profiles = sum(len(list(folder.glob("*.json"))) for folder in own)
    return [
        Feature("guard.attach, scan and calibrate on diffusers pipelines", pipelines),
        Feature("demo and --model testbed", pipelines or weights),
        Feature(".parquet lists and results", lacking("pyarrow")),
        Feature("audit", pipelines or lacking("peft", "imagehash")),
        Feature("scan --engine ray", pipelines or lacking("ray")),
        Feature("merge --tail", lacking("scipy")),
        Feature("verdicts by profile", "" if profiles else "none but the test bed's; run memguard calibrate"),
        Feature("GPU", "" if len(devices) > 1 else "torch sees none; everything runs on the CPU, slower"),
        Feature("ComfyUI nodes", _comfyui(found)),
    ]


def _comfyui(found: list[Host]) -> str:
    host = next((h for h in found if h.name == "ComfyUI"), None)
    if host is None:
        return "no ComfyUI found; set COMFYUI_ROOT"
    if host.found.endswith("names no ComfyUI"):
        return host.found
    if tuple(int(n) for n in re.findall(r"\d+", host.version)[:3]) < COMFYUI_MINIMUM:
        return f"ComfyUI {host.version or 'of unknown version'} is older than 0.3.64; update it"
    root = Path(__file__).resolve().parents[2]
    nodes = Path(host.folder) / "custom_nodes"
    linked = nodes.is_dir() and any(entry.resolve() == root for entry in nodes.iterdir())
    return "" if linked else f"this pack is not in {nodes}; clone or link it there"


def _devices() -> list[str]:
    import torch

    names = [f"cpu: {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"]
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        names.append(f"cuda:{i}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
