"""``memguard neurons find``: search the neurons of one prompt or of several."""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

from ..lists import BadInput, files, read_prompts
from ..table import NEURONS, RUN
from ..texts import unfit
from . import common, models


def add_find(actions: Any) -> None:
    """Register the action."""
    parser = actions.add_parser(
        "find",
        help="search the neurons that carry a prompt's memory",
        description="Find the neurons that carry the memory of prompts (NeMo). Of several prompts, write the union.",
        epilog="Blocked neurons conceal a picture, they do not erase it.",
    )
    parser.add_argument("prompts", nargs="*", metavar="PROMPT")
    parser.add_argument("--prompts", dest="file", type=Path, metavar="FILE", help=".txt, .jsonl, .csv or .parquet")
    parser.add_argument("--column", metavar="NAME", help="of the prompts in files; default prompt, caption or text")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--statistics", type=Path, metavar="FILE", help="made before by --save-statistics")
    how.add_argument("--ordinary", type=Path, metavar="FILE", help="ordinary prompts, some thousands, to compute them")
    parser.add_argument("--save-statistics", type=Path, metavar="FILE", help="keep what --ordinary gave")
    parser.add_argument("--layers", choices=("nemo", "all"), default="nemo", help="nemo: down blocks and middle")
    common.add(parser, "mode", NEURONS["mode"])
    parser.add_argument("--parity", choices=("official", "repaired"), help="default: that of the mode")
    common.add(parser, "threshold", NEURONS["threshold"], metavar="X")
    common.add(parser, "scale", NEURONS["scale"], metavar="X")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the neuron set, .safetensors")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="keep what was evaluated here, and go on from it")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    common.add_model(parser)
    run = parser.add_argument_group("run")
    for name in "num_images seed batch_size height width".split():
        common.add(run, name, {**RUN, **NEURONS}[name])


def find(args: argparse.Namespace) -> None:
    """Search, and write the set.

    Raises:
        ValueError: for bad input.

    """
    from ..neurons import merge, save
    from ..neurons.tensors import is_ours

    common.check(args)
    prompts = [*args.prompts, *(read_prompts(args.file, args.column) if args.file else ())]
    if not prompts:
        raise BadInput("no prompts; give them as arguments or with --prompts FILE")
    for number, prompt in enumerate(prompts, 1):
        reason = unfit(prompt)
        if reason:
            raise BadInput(f"prompt {number}: {reason}")
    for path in filter(None, (args.out, args.save_statistics)):
        files.target(path, is_ours, (args.file, args.statistics, args.ordinary))
    if args.resume:
        files.folder(args.resume)
    statistics = _statistics(args) if args.statistics else None  # a wrong file costs no loading of a model
    # rows without a text say nothing about what is ordinary
    ordinary = [p for p in read_prompts(args.ordinary, args.column) if not unfit(p)] if args.ordinary else []
    if args.ordinary and len(ordinary) < 2:
        raise BadInput(f"{args.ordinary}: {len(ordinary)} prompts; give some thousands of ordinary ones")
    pipe = models.load_model(args)
    statistics = statistics or _statistics(args, pipe, ordinary)
    found = []
    for number, prompt in enumerate(prompts, 1):
        neurons = _one(args, pipe, prompt, statistics, f"{number}/{len(prompts)}")
        found.append(neurons)
        if not args.json:
            print(common.neuron_line(" ".join(prompt.split())[:60], neurons), flush=True)
    together = merge(found)
    path = save(together, args.out)
    if args.json:
        each = [{"prompt": p, **common.neuron_values(n)} for p, n in zip(prompts, found, strict=True)]
        common.print_json({"file": str(path), **common.neuron_values(together), "prompts": each})
    else:
        print(common.neuron_line(path, together))


def _one(args: argparse.Namespace, pipe: Any, prompt: str, statistics: Any, which: str) -> Any:
    from ..hosts.diffusers.neurons import localize

    names = "parity num_images seed threshold scale height width batch_size".split()
    settings = {name: getattr(args, name) for name in names}
    if args.resume:
        text = f"{prompt}\n{args.mode}\n{args.parity}"
        settings["resume"] = args.resume / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
    bar = common.progress((), None, " rows")

    def show(progress: Any) -> None:
        best = "" if progress.neurons is None else f", {progress.neurons} neurons"
        bar.set_description(f"prompt {which}: {progress.stage}{best}", refresh=False)
        bar.update(progress.rows - bar.n)

    try:
        with bar:
            return localize(pipe, prompt, statistics, args.mode, progress=show, **settings)
    except KeyboardInterrupt:
        if args.resume:
            print(f"memguard neurons: {args.resume} holds what was evaluated; --resume continues", file=sys.stderr)
        raise


def _statistics(args: argparse.Namespace, pipe: Any = None, ordinary: list[Any] | None = None) -> Any:
    from ..neurons import ActivationStatistics

    if pipe is None:
        return ActivationStatistics.load(args.statistics)
    from ..hosts.diffusers.neurons import statistics

    bar = common.progress((), len(ordinary or ()), " prompts")
    with bar:
        layers = None if args.layers == "nemo" else "all"
        made = statistics(pipe, ordinary or (), layers, progress=lambda done: bar.update(done - bar.n))
    if args.save_statistics:
        made.save(args.save_statistics)
    return made
