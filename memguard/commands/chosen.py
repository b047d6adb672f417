"""The mitigations that the command line names: NAME, or NAME:PARAMETER=VALUE,...

Room: the command line. May import: memguard.
"""

from __future__ import annotations

import argparse
import ast
from typing import Any

from ..lists import BadInput
from . import common


def chosen(args: argparse.Namespace) -> list[Any]:
    """Return the mitigations that --mitigation and --neurons name.

    Raises:
        BadInput: for what is not one.

    """
    from ..mitigations import Mitigation, get
    from ..neurons import files

    try:
        found: list[Any] = [_parsed(text) for text in args.mitigation if not text.startswith("neuron_mask")]
        named = any(text.startswith("neuron_mask") for text in args.mitigation)
        if named and args.neurons is None:
            raise BadInput("--mitigation neuron_mask needs --neurons FILE")
        if args.neurons is not None:
            found.append(get("neuron_mask", neurons=files.load(args.neurons)))
    except (ValueError, OSError) as error:
        raise BadInput(common.first_line(error)) from None
    if args.always and (not found or not all(isinstance(each, Mitigation) for each in found)):
        raise BadInput("--always needs --mitigation with the name of a mitigation; auto decides by the score")
    return found


def _parsed(text: str) -> Any:
    """Return the mitigation of "name:parameter=value,parameter=value", or "auto"."""
    from ..mitigations import get

    name, _, given = text.partition(":")
    if name == "auto":
        return name
    settings = {}
    for part in filter(None, given.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"--mitigation {text}: {part!r} is no PARAMETER=VALUE")
        try:
            settings[key.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # no Python value: a text
            settings[key.strip()] = value
    return get(name, **settings)


def list_mitigations() -> None:
    """Print the mitigations with their parameters."""
    from ..mitigations import available, describe, parameters

    for name in available():
        given = ", ".join(f"{key}={value!r}" for key, value in parameters(name).items())
        print(f"{name}: {describe(name)}\n    {given}")
