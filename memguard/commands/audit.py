"""``memguard audit``: does a LoRA, or a fine-tuned model, copy the pictures that it was trained on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..audit import checkpoints
from ..lists import BadInput
from ..table import AUDIT, COPIES
from ..texts import shown
from . import common


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "audit",
        help="say whether a LoRA or a fine-tuned model copies its training pictures",
        description="Generate pictures from the captions of the training pictures, with and without the training, and "
        "say which training pictures come out. Exit code 1: N or more (--fail-on N); 2: a file could not be audited.",
        epilog="The folder as trainers have it: name.txt beside name.png, or metadata.jsonl; folders such as 10_name. "
        "Pictures of the same source that were kept out of the training (--held-out) are what the test compares with.",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="the training pictures, captioned")
    parser.add_argument("--held-out", type=Path, metavar="FOLDER", help="captioned pictures not trained on")
    what = parser.add_argument_group("what is audited (one of them)")
    what.add_argument(
        "--lora", type=Path, nargs="+", metavar="FILE", help="one or more checkpoints of one training, or its folder"
    )
    what.add_argument("--checkpoint", type=Path, nargs="+", metavar="MODEL", help="fine-tuned models instead")
    what.add_argument("--watch", type=Path, metavar="FOLDER", help="audit each LoRA that a trainer saves there")
    parser.add_argument("--idle", type=float, metavar="MIN", help="of --watch: end when nothing came for so long")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of audit.json and report.html")
    parser.add_argument("--resume", action="store_true", help="continue --out: keep all results that it holds")
    common.add(parser, "limit", AUDIT["limit"])
    said = f"{common.words(AUDIT['threshold'])} (default {AUDIT['threshold'].default}; SSCD: .75)"
    common.add(parser, "threshold", AUDIT["threshold"], default=None, metavar="S", help=said)
    parser.add_argument(
        "--embedding", type=Path, metavar="MODEL", help="compare by a TorchScript file (SSCD) or a folder"
    )
    common.add(parser, "embedding_size", COPIES["embedding_size"], metavar="PX")
    parser.add_argument("--deals", type=int, default=9999, metavar="N", help="relabellings of the test (default 9999)")
    parser.add_argument("--fail-on", type=int, metavar="N", help="exit code 1 if any checkpoint copies N or more")
    parser.add_argument("--json", action="store_true", help="print audit.json")
    common.add_model(parser)
    common.add_run(parser, scored=False, own=AUDIT)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Audit; return 0, or 1 for copies at --fail-on, or 2 for what could not be audited."""
    if sum(bool(each) for each in (args.lora, args.checkpoint, args.watch)) != 1:
        raise BadInput("give one of --lora FILE ..., --checkpoint MODEL ... and --watch FOLDER")
    if args.negative_prompt is not None:
        raise BadInput("--negative-prompt: an audit asks what the captions alone bring; leave it out")
    for name, low in (("deals", 19), ("fail_on", 1)):
        value = getattr(args, name)
        if value is not None and value < low:
            raise BadInput(f"--{name.replace('_', '-')}: {value} is less than {low}")
    common.check(args)
    given = args.checkpoint or []
    for path in args.lora or []:
        found = checkpoints.files(path)
        if not found:
            raise BadInput(f"{path}: {'holds no .safetensors file' if path.is_dir() else 'no such file'}")
        given += found
    if args.watch is not None and not args.watch.is_dir():
        raise BadInput(f"{args.watch}: is no folder; give the one in which the trainer saves")
    from .auditing import Auditing

    with Auditing(args) as auditing:
        if args.watch is not None:
            auditing.watch(args.watch, args.idle)
        else:
            names = checkpoints.names(given)
            auditing.expected = len(names)
            for path in checkpoints.ordered(given):
                auditing.add(path, names[path])
        auditing.end()
        return _conclude(args, auditing.audit)


def _conclude(args: argparse.Namespace, audit: Any) -> int:
    from ..audit.table import lines

    failed = [each for each in audit.checkpoints if each.error]
    if failed and len(failed) == len(audit.checkpoints):
        raise BadInput(failed[0].error)
    if args.json:
        sys.stdout.write(audit.to_json())
    else:
        print(*lines(audit), sep="\n")
        print(shown(f"{audit.verdict[:1].upper()}{audit.verdict[1:]}. {args.out / 'report.html'} shows the pictures."))
    if args.fail_on is not None and any(each.copied >= args.fail_on for each in audit.checkpoints):
        return 1
    return 2 if failed else 0  # what could not be audited is not passed
