"""What several commands share: the model, the settings of a run, the progress bar.

Room: the command line. May import: memguard, memguard.hosts, the ``diffusers`` extra.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..lists import BadInput

TESTBED = "testbed"
DTYPES = ("auto", "float32", "float16", "bfloat16")


def add_model(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add --model, --device and --dtype."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", required=required, metavar="DIR", help="a diffusers folder, or testbed: the shipped one"
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
    group.add_argument("--num-images", type=int, default=1, metavar="N", help="images per prompt")
    if scored:
        group.add_argument("--steps", type=int, default=1, metavar="N", help="model calls to score; a run ends there")
    group.add_argument("--num-inference-steps", type=int, default=50, metavar="N", help="steps of the whole schedule")
    unused = ", does not act on the first step" if scored else ""
    group.add_argument("--guidance-scale", type=float, default=7.5, metavar="G", help=f"default 7.5{unused}")
    group.add_argument("--height", type=int, metavar="PX", help="default: the model's own")
    group.add_argument("--width", type=int, metavar="PX", help="default: the model's own")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--negative-prompt", metavar="TEXT", help="default: the model's own empty prompt")
    return group


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the settings of a run that scores lists of prompts."""
    group = add_run(parser)
    group.add_argument("--reference", choices=("negative", "empty"), default="negative", help="what to compare with")
    group.add_argument("--batch-size", type=int, metavar="N", help="prompts per forward")
    group.add_argument("--detector", action="append", metavar="NAME", help="may be repeated; default text_noise_norm")


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of ``scan`` and ``calibrate``."""
    names = (
        "num_images steps num_inference_steps guidance_scale height width seed reference negative_prompt batch_size"
    ).split()
    return {name: getattr(args, name) for name in names} | {"detectors": args.detector or ["text_noise_norm"]}


def load_model(args: argparse.Namespace) -> Any:
    """Return the pipeline that --model, --device and --dtype name.

    Raises:
        BadInput: if there is none.

    """
    diffusers = _silent("diffusers")
    _silent("transformers")
    import torch

    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    dtype = ("float16" if device.startswith("cuda") else "float32") if args.dtype == "auto" else args.dtype
    try:
        if args.model == TESTBED:
            from .. import testbed

            pipe = testbed.pipeline().to(getattr(torch, dtype))
        else:
            folder = _folder(args.model)
            variant = "fp16" if list(folder.glob("*/*.fp16.safetensors")) else None
            # pickles are never loaded, nothing is fetched
            pipe = diffusers.DiffusionPipeline.from_pretrained(
                str(folder),
                torch_dtype=getattr(torch, dtype),
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
            )
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise BadInput(f"{args.model}: cannot be loaded ({first_line(error)})") from None
    try:
        return pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"--device {args.device}: {first_line(error)}") from None


def _silent(package: str) -> Any:
    """Import a library without its advice to developers: what goes wrong is one line of memguard's."""
    os.environ.setdefault(f"{package.upper()}_VERBOSITY", "error")  # read when it is imported
    library = importlib.import_module(package)
    library.utils.logging.set_verbosity(logging.CRITICAL)
    if not sys.stderr.isatty():
        library.utils.logging.disable_progress_bar()
    return library


def _folder(name: str) -> Path:
    path = Path(name)
    remedy = "give a diffusers folder (it holds model_index.json) or testbed"
    if path.is_file():
        raise BadInput(f"{path}: is a single file; {remedy}")
    if not path.is_dir():
        raise BadInput(f"{path}: no such folder; {remedy}")
    if not (path / "model_index.json").is_file():
        raise BadInput(f"{path}: is not a diffusers folder, model_index.json is missing; {remedy}")
    return path


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def progress(items: Iterable[Any], total: int | None, what: str, start: int = 0) -> Any:
    """Return the items behind a progress bar on stderr; there is none where stderr is no terminal."""
    from tqdm import tqdm

    return tqdm(items, total=total, initial=start, unit=what, disable=not sys.stderr.isatty(), dynamic_ncols=True)


def print_json(values: dict[str, Any]) -> None:
    """Print one JSON object on one line."""
    print(json.dumps(values, ensure_ascii=False, allow_nan=False), flush=True)


def neuron_values(neurons: Any) -> dict[str, Any]:
    """Return a neuron set as plain values."""
    return {"neurons": neurons.count, **asdict(neurons)}


def neuron_line(name: object, neurons: Any) -> str:
    """Return a neuron set in one line."""
    what = "1 neuron" if neurons.count == 1 else f"{neurons.count} neurons"
    ssim = "" if neurons.ssim_after is None else f", SSIM {neurons.ssim_after:.3f} with them blocked"
    before = "" if neurons.ssim_before is None else f", seeds alike {neurons.ssim_before:.3f}"
    rows = f", {neurons.rows} rows" if neurons.rows else ""
    return f"{name}: {what} in {len(neurons.indices)} layers{before}{ssim}{rows}, model {neurons.model or 'unknown'}"
