"""The mitigations that the command line names: NAME, or NAME:PARAMETER=VALUE,..."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Mapping
from typing import Any

from ..lists import BadInput
from . import common

MASK = "neuron_mask"


def chosen(args: argparse.Namespace) -> list[Any]:
    """Return the mitigations that --mitigation and --neurons name.

    Raises:
        BadInput: for what is not one.

    """
    from ..mitigations import Mitigation, get
    from ..neurons import files

    try:
        named = any(text.partition(":")[0] == MASK for text in args.mitigation)
        if named and args.neurons is None:
            raise BadInput(f"--mitigation {MASK} needs --neurons FILE")
        more = {} if args.neurons is None else {MASK: {"neurons": files.load(args.neurons)}}
        found: list[Any] = [_parsed(text, more) for text in args.mitigation]
        if more and not named:
            found.append(get(MASK, **more[MASK]))
    except (ValueError, OSError) as error:
        raise BadInput(common.first_line(error)) from None
    if args.always and (not found or not all(isinstance(each, Mitigation) for each in found)):
        raise BadInput("--always needs --mitigation with the name of a mitigation; auto decides by the score")
    return found


def _parsed(text: str, more: Mapping[str, dict[str, Any]]) -> Any:
    """Return the mitigation of "name:parameter=value,parameter=value", or "auto"; some have parameters of options."""
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
    return get(name, **(settings | dict(more.get(name, {}))))


def list_mitigations() -> None:
    """Print the mitigations with their parameters."""
    from ..mitigations import available, describe, parameters

    for name in available():
        given = ", ".join(f"{key}={value!r}" for key, value in parameters(name).items())
        print(f"{name}: {describe(name)}\n    {given}")
