"""``memguard neurons``: find the value neurons that carry a memorized picture, and handle files of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..lists import BadInput, files
from ..texts import shown
from . import common
from .neurons_find import add_find, find


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "neurons",
        help="find the neurons that carry a memorized picture, and handle files of them",
        description="Neuron sets: which value neurons of cross-attention to block. Each action has --help and --json.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add_find(actions)
    show = actions.add_parser("show", help="say what a neuron set holds")
    show.add_argument("file", type=Path)
    merge = actions.add_parser("merge", help="write the union of neuron sets")
    merge.add_argument("files", nargs="+", type=Path, metavar="FILE")
    merge.add_argument("--out", type=Path, required=True, metavar="FILE")
    merge.add_argument("--force", action="store_true", help="also of different models")
    diff = actions.add_parser("diff", help="say which neurons only one of two sets has")
    diff.add_argument("files", nargs=2, type=Path, metavar="FILE")
    imports = actions.add_parser("import", help="turn a result file of NeMo's scripts (.csv) into a neuron set")
    imports.add_argument("csv", type=Path, metavar="CSV")
    imports.add_argument("--out", type=Path, required=True, metavar="FILE")
    imports.add_argument("--prompt", metavar="TEXT", help="the neurons of this caption; default: of all, together")
    imports.add_argument("--initial", action="store_true", help="the neurons before the refinement")
    imports.add_argument("--fingerprint", default="", metavar="HEX", help="of the model, where you know it")
    for action in (show, merge, diff, imports):
        action.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do one action; return 0."""
    actions: dict[str, Callable[[argparse.Namespace], None]] = {
        "find": find,
        "show": _show,
        "merge": _merge,
        "diff": _diff,
        "import": _import,
    }
    try:
        actions[args.action](args)
    except ValueError as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        raise files.unwritable(error.filename or args.out, error) from None
    return 0


def _show(args: argparse.Namespace) -> None:
    from ..neurons import load

    neurons = load(args.file)
    if args.json:
        common.print_json({"file": str(args.file), **common.neuron_values(neurons)})
        return
    print(common.neuron_line(args.file, neurons))
    for layer, indices in neurons.indices.items():
        print(f"  {shown(layer)}: {' '.join(map(str, indices))}")
    for line in neurons.provenance.splitlines():
        print(f"  from: {shown(line)}")


def _merge(args: argparse.Namespace) -> None:
    from ..neurons import load, merge, save
    from ..neurons.tensors import is_ours

    files.target(args.out, is_ours, args.files)
    _write(args, merge([load(path) for path in args.files], args.force), save)


def _diff(args: argparse.Namespace) -> None:
    from ..neurons import diff, load

    first, second = (load(path) for path in args.files)
    found = diff(first, second)
    if args.json:
        common.print_json({"models": [first.model, second.model], **found})
        return
    for kind, title in (("first", f"only {args.files[0]}"), ("second", f"only {args.files[1]}"), ("both", "both")):
        print(f"{shown(title)}: {sum(map(len, found[kind].values()))} neurons")
        for layer, indices in found[kind].items():
            print(f"  {shown(layer)}: {' '.join(map(str, indices))}")


def _import(args: argparse.Namespace) -> None:
    from ..neurons import merge, read_csv, save
    from ..neurons.tensors import is_ours

    files.target(args.out, is_ours, [args.csv])
    rows = read_csv(args.csv, "initial" if args.initial else "refined", args.fingerprint)
    sets = [neurons for caption, neurons in rows if args.prompt in (None, caption)]
    if not sets:
        raise ValueError(f"{args.csv}: has no row {'of this caption' if args.prompt else 'of neurons'}")
    skipped = sum(not neurons.indices for neurons in sets)
    if skipped:
        print(f"memguard neurons: {skipped} of {len(sets)} prompts have no neurons there", file=sys.stderr)
    _write(args, merge(sets), save)


def _write(args: argparse.Namespace, neurons: Any, save: Callable[..., Path]) -> None:
    path = save(neurons, args.out)
    if args.json:
        common.print_json({"file": str(path), **common.neuron_values(neurons)})
    else:
        print(common.neuron_line(path, neurons))
