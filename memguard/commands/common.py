"""What several commands share: the settings of a run, the progress bar, what is printed.

Room: the command line. May import: memguard, tqdm.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..lists import BadInput, Results
from ..texts import UNREAD, json_line, shown, writable

DTYPES = ("auto", "float32", "float16", "bfloat16")
# what no machine can do is refused before a model is loaded: lowest and highest value of a whole number
RANGES = {
    "num_images": (1, 4096),
    "steps": (1, 10_000),
    "num_inference_steps": (1, 10_000),
    "batch_size": (1, 4096),
    "height": (8, 16_384),
    "width": (8, 16_384),
    "seed": (-(1 << 63), (1 << 63) - 1),
}


def add_model(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add --model, --device and --dtype."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", required=required, metavar="MODEL", help="a diffusers folder, a .safetensors file, or testbed"
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    group.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: float16 on cuda, else float32")


def add_run(parser: argparse.ArgumentParser, scored: bool = True) -> Any:
    """Add the settings that every run has, and return their group; the defaults are those of the Python functions.

    Args:
        parser: of the command.
        scored: whether a run ends with the scored steps.

    """
    group = parser.add_argument_group("run")
    group.add_argument("--num-images", type=int, default=1, metavar="N", help="images per prompt (default %(default)s)")
    if scored:
        group.add_argument("--steps", type=int, default=1, metavar="N", help="model calls to score; a run ends there")
    group.add_argument(
        "--num-inference-steps", type=int, default=50, metavar="N", help="of the schedule (default %(default)s)"
    )
    unused = ", does not act on the first step" if scored else ""
    group.add_argument("--guidance-scale", type=float, default=7.5, metavar="G", help=f"default %(default)s{unused}")
    group.add_argument("--height", type=int, metavar="PX", help="default: the model's own")
    group.add_argument("--width", type=int, metavar="PX", help="default: the model's own")
    group.add_argument("--seed", type=int, default=0, help="default %(default)s")
    group.add_argument("--negative-prompt", metavar="TEXT", help="default: the model's own empty prompt")
    return group


def add_settings(parser: argparse.ArgumentParser) -> Any:
    """Add the settings of a run that scores lists of prompts, and return their group."""
    group = add_run(parser)
    group.add_argument("--reference", choices=("negative", "empty"), default="negative", help="what to compare with")
    group.add_argument("--batch-size", type=int, metavar="N", help="prompts per forward")
    group.add_argument("--detector", action="append", metavar="NAME", help="may be repeated; default text_noise_norm")
    return group


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of ``scan`` and ``calibrate``."""
    names = (
        "num_images steps num_inference_steps guidance_scale height width seed reference negative_prompt batch_size"
    ).split()
    return {name: getattr(args, name) for name in names} | {"detectors": detectors(args)}


def detectors(args: argparse.Namespace) -> list[str]:
    """Return the names of the detectors that are asked."""
    return args.detector or ["text_noise_norm"]


def check(args: argparse.Namespace) -> None:
    """Check the settings of a run, before a model is loaded.

    Raises:
        BadInput: that names the first that cannot be.

    """
    for name, (low, high) in RANGES.items():
        value = getattr(args, name, None)
        if value is not None and not low <= value <= high:
            raise BadInput(f"--{name.replace('_', '-')}: {value} is not between {low} and {high}")
    for side in ("height", "width"):
        if (getattr(args, side, None) or 0) % 8:
            raise BadInput(f"--{side}: {getattr(args, side)} pixels; give multiples of 8")
    if getattr(args, "steps", 1) > getattr(args, "num_inference_steps", math.inf):
        raise BadInput(f"--steps: steps is {args.steps}, but a run has only {args.num_inference_steps}")
    for name in ("guidance_scale", "sensitivity", "threshold", "scale"):
        if not math.isfinite(getattr(args, name, None) or 0.0):
            raise BadInput(f"--{name.replace('_', '-')}: {getattr(args, name)} is not a finite number")


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
