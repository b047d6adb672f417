"""Writes docs/parameters.md, every setting with its default and range, and the words of ComfyUI's nodes.

They are made from the settings themselves. Run it after every change of one (`python tools/parameters.py`);
tests/core/test_parameters.py fails until then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from memguard import detectors, mitigations, table  # noqa: E402
from memguard.mitigations.base import Mitigation  # noqa: E402
from memguard.setting import Setting, of, written  # noqa: E402
from tools import schemas  # noqa: E402

HEAD = """# Parameters

Every setting with its default and what it may be, as ComfyUI's nodes, the WebUIs, the command line and Python know it.
Made by `python tools/parameters.py`; do not edit this.
"""
GUARD = table.GUARD | {
    "detector": replace(table.GUARD["detector"], choices=dict.fromkeys(sorted(detectors.available()), "")),
}
ROOMS: dict[str, tuple[str, Mapping[str, Setting]]] = {
    "A guard": ("`memguard.Guard`, the node MemGuard, the WebUIs' accordion (where policy is `warn` at first).", GUARD),
    "A run": ("`memguard scan`, `explain`, `calibrate`, `generate` and the functions of these names.", table.RUN),
    "Words and maps": ("`memguard explain`, MemGuard Token Attribution, MemGuard Overlay.", table.EXPLAIN),
    "An audit": ("`memguard audit`, MemGuard Audit LoRA.", table.AUDIT),
    "Copies": ("`memguard copies`, MemGuard Find Copies.", table.COPIES),
    "Neurons": ("MemGuard Find Neurons, and `neurons find` of the command line.", table.NEURONS),
}
GIVEN = (
    'In Python `memguard.mitigations.get("name", parameter=value)`, on the command line '
    "`--mitigation name:parameter=value,...`, in the WebUIs the field *Parameters of the mitigation*, "
    "`parameter=value, ...`. ComfyUI has nodes."
)


def document() -> str:
    """Return docs/parameters.md."""
    parts = [HEAD]
    parts += [f"## {name}\n\n{where}\n\n{rows(known)}" for name, (where, known) in ROOMS.items()]
    common = of(Mitigation)
    parts.append(f"## Mitigations\n\n{GIVEN} All of them have\n\n{rows(common)}")
    for name in mitigations.available():
        own = {each: known for each, known in of(mitigations.kind(name)).items() if each not in common}
        parts.append(f"### {name}\n\n{mitigations.describe(name)}.\n\n{rows(own)}")
    return "\n".join(parts)


def rows(known: Mapping[str, Setting]) -> str:
    """Return the table of some settings."""
    lines = [f"| `{name}` | {default(each)} | {values(each)} | {each.whole_text} |" for name, each in known.items()]
    return "\n".join(["| setting | default | may be | |", "|---|---|---|---|", *lines, ""])


def default(setting: Setting) -> str:
    return "" if setting.default in (None, "") else f"`{setting.default}`"


def values(setting: Setting) -> str:
    """Return what a setting may be, and from where to where a widget goes if that is less."""
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    said = setting.give.partition(",")[0].partition(";")[0].removeprefix("give ")
    shown = "" if setting.shown is None else f"; widgets {' to '.join(map(written, setting.shown))}"
    return said + shown


FILES: dict[str, Callable[[], str]] = {"docs/parameters.md": document, "locales/en/nodeDefs.json": schemas.words}

if __name__ == "__main__":
    for name, made in FILES.items():
        (ROOT / name).write_text(made(), encoding="utf-8")
        print(name)
