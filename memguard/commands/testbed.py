"""``memguard testbed``: write the test bed's model for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..lists import BadInput, files
from ..texts import shown
from . import common, models


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser("testbed", help="export the small model that really memorizes")
    actions = parser.add_subparsers(dest="action", required=True)
    export = actions.add_parser("export", help="write a diffusers folder or an SD1.5 checkpoint")
    export.add_argument("target", type=Path, help="folder (diffusers) or .safetensors file (checkpoint)")
    export.add_argument("--format", choices=("diffusers", "checkpoint"), required=True)
    export.add_argument(
        "--stage", choices=("early", "middle", "final"), default="final", help="how long it was trained"
    )
    export.add_argument("--wide", action="store_true", help="diffusers: SD1.5's widths (checkpoints always have them)")
    export.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of a checkpoint")
    export.add_argument(
        "--vae", choices=("taesd", "kl"), default="taesd", help="of a checkpoint: kl is for the WebUIs, with a .yaml"
    )
    export.add_argument("--json", action="store_true", help="print the result as JSON")
    prompts = actions.add_parser("prompts", help="print prompts of the test bed, one per line")
    prompts.add_argument("kind", choices=("verbatim", "template", "ordinary", "held", "single_held"))
    prompts.add_argument("--json", action="store_true", help="print a JSON list")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, or print prompts; return 0."""
    if args.action == "prompts":
        from .. import testbed

        known = [o.caption for o in testbed.originals() if o.kind == args.kind == "verbatim"]
        found = known or testbed.prompts(args.kind)
        if args.json:
            common.print_json(found)
        else:
            print("\n".join(found))
        return 0
    _check(args)
    result: dict[str, Any] = {"target": str(args.target), "format": args.format, "stage": args.stage}
    with models.quiet():
        import torch

        from ..testbed import export

        try:
            if args.format == "diffusers":
                export.to_diffusers(args.target, args.stage, args.wide)
            else:
                result["widening error"] = export.to_checkpoint(
                    args.target, args.stage, getattr(torch, args.dtype), args.vae
                )
        except export.ExportError as error:
            raise BadInput(str(error)) from None
        except (OSError, SafetensorError) as error:
            said = error if isinstance(error, OSError) else OSError(0, "is the disk full?")
            raise files.unwritable(args.target, said) from None
    if args.json:
        common.print_json(result)
    else:
        print(f"wrote {shown(str(args.target))} ({args.format}, {args.stage})")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Check, before the work, that the target can be written and holds nothing but an earlier export."""
    if args.format == "diffusers":
        files.folder(args.target)
        if any(args.target.iterdir()):
            raise BadInput(f"{args.target}: is not empty; give a new folder")
        return
    if args.target.suffix != ".safetensors":
        raise BadInput(f"{args.target}: does not end in .safetensors; ComfyUI would not list it")
    files.target(args.target, _is_export)
    if args.vae == "kl":
        files.target(args.target.with_suffix(".yaml"), _is_recipe)


def _is_export(path: Path) -> bool:
    try:
        with safe_open(str(path), "pt") as file:
            found: bool = (file.metadata() or {}).get("model", "").startswith("memguard test bed")
            return found
    except (OSError, SafetensorError):
        return False


def _is_recipe(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(40).startswith(b"# Architecture of the test bed's")
