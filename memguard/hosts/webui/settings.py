"""From the accordion's controls, or the API's names, to a guard.

Part of the WebUI hosts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...calibration import Profile
from ...detectors import available as detectors
from ...guard import Guard
from ...mitigations import Mitigation, available, get
from ...mitigations.paraphrase import Paraphrase
from ...setting import Setting, of, said
from ...table import GUARD
from ...troubles import Refused
from . import fields

AUTO = "auto"
AUTOMATIC = "automatic"  # the profile that fits the run
NONE = "none"  # no neuron set
KNOWN: dict[str, Setting] = {  # in the order of the script's arguments
    "policy": replace(GUARD["policy"], default="warn"),  # of the others "observe"; who ticks the box wants to hear
    "sensitivity": GUARD["sensitivity"],
    "steps": GUARD["steps"],
    "detector": replace(GUARD["detector"], choices=dict.fromkeys(sorted(detectors()), "")),
    "reference": GUARD["reference"],
    "explain": GUARD["explain"],
    "profile": replace(GUARD["profile"], default=AUTOMATIC),
    "mitigation": replace(GUARD["mitigation"], choices=dict.fromkeys((AUTO, *available()), "")),
    "strength": of(Mitigation)["strength"],
    "neurons": replace(GUARD["neurons"], default=NONE),
    "wording": of(Paraphrase)["text"],
    "parameters": Setting("", "Of the mitigation: name=value, separated by commas, for example bos_scale=1.5."),
}
TEXTS = {"profile": fields.NAME, "neurons": fields.NAME, "wording": fields.LONGEST, "parameters": 1000}
FIELDS: dict[str, fields.Field] = {
    name: fields.Text(TEXTS[name]) if name in TEXTS else replace(known, spelled=True) for name, known in KNOWN.items()
}
DEFAULTS: dict[str, Any] = {name: known.default for name, known in KNOWN.items()}
NAMES = tuple(KNOWN)
LABELS = {name: f"MemGuard {name}" for name in NAMES}  # keys of the infotext
ENABLED = "MemGuard"  # key of the infotext that ticks the box
OF_MITIGATE = ("mitigation", "strength", "neurons", "wording", "parameters")


@dataclass(frozen=True)
class Settings:
    """What the controls say; each is a setting of ``KNOWN``."""

    policy: str = DEFAULTS["policy"]
    sensitivity: float = DEFAULTS["sensitivity"]
    steps: int = DEFAULTS["steps"]
    detector: str = DEFAULTS["detector"]
    reference: str = DEFAULTS["reference"]
    explain: str = DEFAULTS["explain"]
    profile: str = DEFAULTS["profile"]
    mitigation: str = DEFAULTS["mitigation"]
    strength: float = DEFAULTS["strength"]
    neurons: str = DEFAULTS["neurons"]
    wording: str = DEFAULTS["wording"]
    parameters: str = DEFAULTS["parameters"]

    def __post_init__(self) -> None:
        for name, field in FIELDS.items():
            object.__setattr__(self, name, field.read(name, getattr(self, name)))

    @classmethod
    def of(cls, args: Sequence[Any], changed: Mapping[str, Any] | None = None) -> Settings | None:
        """Return the settings of a script's arguments, None where the box is not ticked.

        Args:
            args: whether the box is ticked, and the settings in the order of the fields; or one mapping by name, as
                the API may send it, which ticks the box unless ``enabled`` is false.
            changed: settings of an XYZ axis, by name, in their place; they tick the box.

        Raises:
            Refused: for an unknown name, or a value out of range.

        """
        if args and isinstance(args[0], Mapping):
            given = dict(args[0])
            enabled = fields.Truth().read("enabled", given.pop("enabled", True))
        else:
            enabled = bool(args) and fields.Truth().read("the box", args[0])
            given = dict(zip(NAMES, args[1:], strict=False))
        if not enabled and not changed:
            return None
        given |= dict(changed or {})
        return cls(
            **fields.read(FIELDS, {name: value for name, value in given.items() if value is not None}, "of MemGuard")
        )

    def guard(self, folder: Path) -> Guard:
        """Return the guard that they mean.

        Args:
            folder: where profiles and neuron sets lie.

        Raises:
            Told: for a setting out of range, or a file that cannot be used.

        """
        try:
            return Guard(
                (self.detector,),
                self.policy,  # type: ignore[arg-type]
                self._mitigation(folder),
                None if self.profile in ("", AUTOMATIC) else Profile.read(inside(folder, self.profile)),
                self.steps,
                self.sensitivity,
                self.reference,  # type: ignore[arg-type]
            )
        except ValueError as error:
            if isinstance(error, UnicodeError):
                raise
            raise Refused(str(error)) from None  # the core's are sentences for a person

    def infotext(self) -> dict[str, Any]:
        """Return what saved pictures say: what differs from the defaults, so that pasting restores the controls."""
        told: dict[str, Any] = {ENABLED: True, LABELS["policy"]: self.policy}
        for name in NAMES:
            counts = self.policy == "mitigate" or name not in OF_MITIGATE
            if counts and getattr(self, name) != DEFAULTS[name]:
                told[LABELS[name]] = getattr(self, name)
        return told

    def _mitigation(self, folder: Path) -> Any:
        if self.policy != "mitigate" or self.mitigation == AUTO:
            return None
        more: dict[str, Any] = parsed(self.parameters)
        if "strength" in more:
            raise Refused("parameters has strength, which is a setting of its own")
        if self.mitigation == "neuron_mask":
            if self.neurons in ("", NONE):
                raise Refused("neurons is none, and neuron_mask needs a set; choose one, or use another mitigation")
            from ...neurons.files import load

            more["neurons"] = load(inside(folder, self.neurons))
        if self.mitigation == "paraphrase":
            more["text"] = self.wording
        return get(self.mitigation, strength=self.strength, **more)


def restored(infotext: Mapping[str, Any], name: str) -> Any:
    """Return what a pasted infotext says of a setting; None, which changes nothing, where it is not MemGuard's."""
    return infotext.get(LABELS[name], DEFAULTS[name]) if ENABLED in infotext else None


def parsed(text: str) -> dict[str, Any]:
    """Return parameters that are written "name=value, name=value".

    Raises:
        Refused: where a part has no name, or no value that is a number, a truth or a word.

    """
    found: dict[str, Any] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, sign, value = (each.strip() for each in part.partition("="))
        if not (name and sign and value):
            raise Refused(f"parameters has {part!r}; write name=value, separated by commas")
        try:
            read = json.loads(value.lower() if value.lower() in ("true", "false") else value)
        except (ValueError, RecursionError):
            read = value
        if not isinstance(read, bool | int | float | str) or not math.isfinite(0 if isinstance(read, str) else read):
            raise Refused(f"parameters has {said(part)}; give a number, true, false or a word")
        found[name] = read
    return found


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file below a folder.

    Raises:
        Refused: if there is none of that name.

    """
    try:
        path = (folder / name).resolve()
        there = path.is_relative_to(folder.resolve()) and path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long for a name, a NUL in it, a link to itself
        there = False
    if not there:
        raise Refused(f"there is no file {name!r} in models/{folder.name}; refresh the list and choose again")
    return path


def files(folder: Path, ending: str) -> list[str]:
    """Return the names of the files below a folder that end in some way; none where there is no such folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(f"*{ending}")) if folder.is_dir() else []
