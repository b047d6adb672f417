"""The model that a command runs on: loaded from where it lies, and what rows of results keep of it."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..lists import BadInput
from ..troubles import Refused
from .common import digest, first_line

TESTBED = "testbed"


def load_model(args: argparse.Namespace) -> Any:
    """Return the pipeline that --model, --device and --dtype name.

    Raises:
        BadInput: if there is none.

    """
    if args.model != TESTBED:
        folder = _folder(args.model)
    import torch

    device = _device(args.device)
    dtype = getattr(torch, ("float16" if device.type == "cuda" else "float32") if args.dtype == "auto" else args.dtype)
    try:
        with quiet():
            import diffusers

            if args.model == TESTBED:
                from .. import testbed

                pipe = testbed.pipeline().to(dtype)
            elif folder.is_file():
                from ..hosts.diffusers import single

                pipe = single.load(folder, dtype)
            else:
                variant = "fp16" if list(folder.glob("*/*.fp16.safetensors")) else None
                # pickles are never loaded, nothing is fetched
                pipe = diffusers.DiffusionPipeline.from_pretrained(
                    str(folder), torch_dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True
                )
    except Refused as error:
        raise BadInput(str(error)) from None
    except (OSError, ValueError, ImportError) as error:
        raise BadInput(f"{args.model}: cannot be loaded ({first_line(error)})") from None
    except MemoryError:
        raise
    except Exception:  # whatever damaged files make a library stumble over
        raise BadInput(f"{args.model}: cannot be loaded; a file is damaged, or of another diffusers") from None
    for name, part in pipe.components.items():
        # the library makes an empty one of an empty folder
        if name.startswith("tokenizer") and part is not None and len(part) <= len(part.all_special_ids):
            raise BadInput(f"{args.model}: cannot be loaded, its {name} knows no words; copy the model again")
    try:
        return pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"--device {args.device}: {first_line(error)}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' advice to developers from the terminal: what goes wrong is one line of memguard's."""
    _silent("diffusers")
    _silent("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _device(name: str) -> Any:
    """Return the device of a name, auto being the best that there is."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError):
        device = torch.device("meta")
    if device.type == "meta":  # it computes nothing
        raise BadInput(f"--device {name}: no such device; for example auto, cpu or cuda:0")
    return device


def _silent(package: str) -> Any:
    os.environ.setdefault(f"{package.upper()}_VERBOSITY", "error")  # read when it is imported
    library = importlib.import_module(package)
    library.utils.logging.set_verbosity(logging.CRITICAL)
    if not sys.stderr.isatty():
        library.utils.logging.disable_progress_bar()
    return library


def _folder(name: str) -> Path:
    """Return the folder or the file of a model, once what a folder must hold is known to be there."""
    path = Path(name)
    remedy = "give a diffusers folder (it holds model_index.json), a .safetensors file or testbed"
    try:
        if path.is_file():
            return path
        if not path.is_dir():
            raise BadInput(f"{path}: no such folder or file; {remedy}")
        index = path / "model_index.json"
        if not index.is_file():
            raise BadInput(f"{path}: is not a diffusers folder, model_index.json is missing; {remedy}")
        parts = json.loads(index.read_text(encoding="utf-8"))
        if not isinstance(parts, dict) or not isinstance(parts.get("_class_name"), str):
            raise ValueError
        for part, kind in parts.items():
            if isinstance(kind, list) and all(kind) and not (path / part).is_dir():
                raise BadInput(f"{path}: cannot be loaded, its folder {part} is missing; copy the model again")
    except (ValueError, RecursionError):  # also UnicodeDecodeError, JSONDecodeError
        raise BadInput(f"{path}: cannot be loaded, model_index.json is damaged; copy the model again") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    return path


def kept_model(pipe: Any, profile: Any) -> dict[str, Any]:
    """Return what rows depend on besides the settings: model, text encoders, sampler, number format and profiles.

    Args:
        pipe: the pipeline.
        profile: the one that was given, or None for those that are found by the model's fingerprint.

    """
    from ..calibration import fingerprint, store
    from ..hosts.diffusers import pipes

    module = pipes.text_to_image(pipe)
    model = pipes.name_of(module)
    encoders = [getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    config = dict(pipe.scheduler.config)
    # a set's order, which is another one in every process
    config["_use_default_values"] = sorted(config.get("_use_default_values") or ())
    scheduler = json.dumps(config, sort_keys=True, default=str)
    profiles = store.of_model(model) if profile is None else [profile]
    return {
        "number format": str(next(module.parameters()).dtype).removeprefix("torch."),
        "model": model,
        "text encoders": [fingerprint(each.parameters()) for each in encoders if each is not None],
        "sampler": f"{type(pipe.scheduler).__name__} {digest(scheduler)}",
        "profile": digest("".join(each.to_json() for each in profiles)) if profiles else "none",
    }
