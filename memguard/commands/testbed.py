"""``memguard testbed``: write the test bed's model for other programs.

May import: memguard, the ``diffusers`` extra.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


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
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, or print prompts; return 0, or 2 for a target that cannot be written."""
    from .. import testbed
    from ..testbed import export

    if args.action == "prompts":
        known = [o.caption for o in testbed.originals() if o.kind == args.kind == "verbatim"]
        print("\n".join(known or testbed.prompts(args.kind)))
        return 0
    result: dict[str, Any] = {"target": str(args.target), "format": args.format, "stage": args.stage}
    try:
        if args.format == "diffusers":
            if args.target.is_file():
                raise OSError(f"{args.target} is a file; give a folder")
            export.to_diffusers(args.target, args.stage, args.wide)
        else:
            import torch

            if args.target.suffix != ".safetensors":
                raise OSError(f"{args.target} does not end in .safetensors; ComfyUI would not list it")
            result["widening error"] = export.to_checkpoint(
                args.target, args.stage, getattr(torch, args.dtype), args.vae
            )
    except (OSError, export.ExportError) as error:
        print(f"memguard testbed: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result) if args.json else f"wrote {args.target} ({args.format}, {args.stage})")
    return 0
