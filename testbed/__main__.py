"""Command line of the test bed's making: ``python -m testbed --help``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

PARTS = ("losses", "reproduction", "detection", "phenomena")


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    top = argparse.ArgumentParser(prog="python -m testbed", description=__doc__)
    top.add_argument("--work", type=Path, default=Path("build/testbed"), help="folder of data and checkpoints")
    top.add_argument("--threads", type=int, default=0, help="CPU threads of torch; 0 leaves its default")
    actions = top.add_subparsers(dest="action", required=True)
    actions.add_parser("data", help="build the training set (20 seconds)")
    train = actions.add_parser("train", help="train UNet and text encoder; continues where it stopped")
    train.add_argument("--steps", type=int, default=2600)
    train.add_argument("--batch", type=int, default=32)
    train.add_argument("--snapshot", type=int, default=250, help="steps between snapshots")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--device", default="cpu")
    train.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    train.add_argument("--restart", action="store_true", help="forget an earlier run in the same folder")
    decoder = actions.add_parser("decoder", help="train the autoencoder's decoder")
    decoder.add_argument("--steps", type=int, default=800)
    pack = actions.add_parser("pack", help="pack snapshots into the package")
    pack.add_argument("--early", type=Path)
    pack.add_argument("--middle", type=Path)
    pack.add_argument("--final", type=Path)
    evaluate = actions.add_parser("evaluate", help="measure the packed stages; prints tables")
    evaluate.add_argument("stages", nargs="+", choices=("early", "middle", "final"))
    evaluate.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    evaluate.add_argument("--out", type=Path, help="write the JSON to this file")
    evaluate.add_argument("--card", type=Path, help="write markdown tables to this file")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one action; return the exit code."""
    args = parser().parse_args(argv)
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    if args.action == "data":
        from . import data

        data.build(args.work / "data")
    elif args.action == "train":
        from .train import Options, train

        keys = ("steps", "batch", "snapshot", "seed", "device", "dtype")
        train(args.work, Options(**{key: getattr(args, key) for key in keys}), resume=not args.restart)
    elif args.action == "decoder":
        from . import decoder

        decoder.train(args.work, steps=args.steps)
    elif args.action == "pack":
        from .pack import pack

        stages = {stage: getattr(args, stage) for stage in ("early", "middle", "final") if getattr(args, stage)}
        pack(args.work, stages)
    else:
        from .card import render
        from .evaluate import evaluate

        results = [evaluate(args.work, stage, tuple(args.parts)) for stage in args.stages]
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n")
        if args.card:
            args.card.write_text(render(results))
        print(render(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
