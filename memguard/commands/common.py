"""What several commands share: the settings of a run, the progress bar, what is printed."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..lists import BadInput, Results
from ..setting import Setting
from ..table import GUARD, RUN
from ..texts import UNREAD, json_line, shown, writable
from ..troubles import Refused

DTYPES = ("auto", "float32", "float16", "bfloat16")


def add(group: Any, name: str, setting: Setting, **more: Any) -> None:
    """Add the flag of a setting.

    Args:
        group: of a parser.
        name: of the setting; the flag has hyphens.
        setting: what cannot be is refused by it before a model is loaded, as BadInput.
        more: arguments of ``add_argument`` in place of the setting's own.

    """
    flag, spelled = f"--{name.replace('_', '-')}", replace(setting, spelled=True)

    def read(text: str) -> Any:
        try:
            return spelled.read(flag, text)
        except Refused as error:
            raise BadInput(str(error)) from None

    default = "" if setting.default is None or "default" in more else f" (default {setting.default})"
    known = {"help": words(setting) + default, "default": setting.default}
    known |= {"choices": tuple(setting.choices)} if setting.choices else {"type": read, "metavar": "N"}
    group.add_argument(flag, **known | more)


def words(setting: Setting) -> str:
    """Return what a setting says as a line of help."""
    return f"{setting.text[:1].lower()}{setting.text[1:]}".rstrip(".")


def add_model(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add --model, --device and --dtype."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", required=required, metavar="MODEL", help="a diffusers folder, a .safetensors file, or testbed"
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    group.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: float16 on cuda, else float32")


def add_run(parser: argparse.ArgumentParser, scored: bool = True, own: Mapping[str, Setting] | None = None) -> Any:
    """Add the settings that every run has, and return their group; the defaults are those of the Python functions.

    Args:
        parser: of the command.
        scored: whether a run ends with the scored steps.
        own: settings in place of those of ``RUN``.

    """
    group = parser.add_argument_group("run")
    if scored:
        add(group, "steps", GUARD["steps"])
    for name in "num_images num_inference_steps guidance_scale height width seed".split():
        add(group, name, (RUN | dict(own or {}))[name])
    group.add_argument("--negative-prompt", metavar="TEXT", help="default: the model's own empty prompt")
    return group


def add_settings(parser: argparse.ArgumentParser) -> Any:
    """Add the settings of a run that scores lists of prompts, and return their group."""
    group = add_run(parser)
    add(group, "reference", GUARD["reference"])
    add(group, "batch_size", RUN["batch_size"])
    default = GUARD["detector"].default
    group.add_argument("--detector", action="append", metavar="NAME", help=f"may be repeated (default {default})")
    return group


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of ``scan`` and ``calibrate``."""
    names = (
        "num_images steps num_inference_steps guidance_scale height width seed reference negative_prompt batch_size"
    ).split()
    return {name: getattr(args, name) for name in names} | {"detectors": detectors(args)}


def detectors(args: argparse.Namespace) -> list[str]:
    """Return the names of the detectors that are asked."""
    return args.detector or [GUARD["detector"].default]


def check(args: argparse.Namespace) -> None:
    """Check the settings of a run against each other, before a model is loaded.

    Raises:
        BadInput: for more scored steps than there are.

    """
    if getattr(args, "steps", 1) > getattr(args, "num_inference_steps", math.inf):
        raise BadInput(f"--steps: steps is {args.steps}, but a run has only {args.num_inference_steps}")


def kept(args: argparse.Namespace, names: str) -> dict[str, Any]:
    """Return settings as rows of results keep them: name -> plain value."""
    return {name.replace("_", " "): getattr(args, name) for name in names.split()}


def skip(prompts: Iterator[Any], results: Results) -> int:
    """Take the prompts that are done from the list; return how many."""
    nothing = object()
    for number, done in enumerate(results.done(), 1):
        prompt = next(prompts, nothing)
        asked = (writable(prompt) if isinstance(prompt, str) else None) or None
        if prompt is nothing or (done or None) != asked:
            raise BadInput(f"{results.path}: row {number} is for another prompt than the list; choose another --out")
    return results.count


def digest_file(path: Path) -> str:
    """Return 8 hex digits that name what is in a file; of one that cannot be read, none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    except OSError:
        return ""


def digest(text: str) -> str:
    """Return 8 hex digits that name a text."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:8]


def long_digest(text: str) -> str:
    """Return 12 hex digits that name a text."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12]


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def progress(items: Iterable[Any], total: int | None, what: str, start: int = 0) -> Any:
    """Return the items behind a progress bar on stderr; there is none where stderr is no terminal."""
    from tqdm import tqdm

    return tqdm(items, total=total, initial=start, unit=what, disable=not sys.stderr.isatty(), dynamic_ncols=True)


class Cut:
    """Counts the prompts whose end the text encoders do not read, and says so at the end."""

    def __init__(self, count: int = 0, example: str = "") -> None:
        self.count, self.example = count, example

    def add(self, notes: Iterable[str]) -> None:
        """Take the notes of one prompt."""
        for note in notes:
            if UNREAD in note:
                self.count, self.example = self.count + 1, note

    def tell(self, command: str, number: int) -> None:
        """Print a line if there were some among a number of prompts."""
        if self.count:
            print(f"memguard {command}: {self.count} of {number} prompts were cut: {self.example}", file=sys.stderr)


def print_json(values: dict[str, Any] | list[Any]) -> None:
    """Print one JSON value on one line."""
    print(json_line(json.dumps(values, ensure_ascii=False, allow_nan=False)), flush=True)


def neuron_values(neurons: Any) -> dict[str, Any]:
    """Return a neuron set as plain values."""
    return {"neurons": neurons.count, **asdict(neurons)}


def neuron_line(name: object, neurons: Any) -> str:
    """Return a neuron set in one line."""
    what = "1 neuron" if neurons.count == 1 else f"{neurons.count} neurons"
    ssim = "" if neurons.ssim_after is None else f", SSIM {neurons.ssim_after:.3f} with them blocked"
    before = "" if neurons.ssim_before is None else f", seeds alike {neurons.ssim_before:.3f}"
    rows = f", {neurons.rows} rows" if neurons.rows else ""
    model = neurons.model or "unknown"
    return f"{shown(str(name))}: {what} in {len(neurons.indices)} layers{before}{ssim}{rows}, model {model}"
