"""``memguard generate``: pictures of prompts, watched by a guard or mitigated.

Room: the command line. May import: memguard, memguard.hosts.diffusers.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..lists import BadInput, read_prompts
from ..records import POLICIES, VERDICTS, Policy, Report
from ..wording import message
from . import common, models

NAME = re.compile(r"[^\w]+")  # what a file's name is spared of
SHOWN = 40  # characters of the prompt in a file's name


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "generate",
        help="generate pictures, watched by a guard or mitigated",
        description="Generate pictures of prompts into a folder, with one report per prompt in reports.jsonl.",
        epilog="--mitigation NAME or NAME:PARAMETER=VALUE,...; several are tried in this order (names: --mitigations).",
    )
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="texts")
    parser.add_argument("--file", type=Path, metavar="FILE", help="prompts: .txt, .jsonl, .csv or .parquet")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the pictures")
    parser.add_argument("--policy", choices=POLICIES, help="default: mitigate with --mitigation, else observe")
    parser.add_argument("--mitigation", action="append", metavar="NAME", default=[], help="auto, or a mitigation")
    parser.add_argument("--neurons", type=Path, metavar="FILE", help="a neuron set, for the mitigation neuron_mask")
    parser.add_argument("--always", action="store_true", help="mitigate every run, memorized or not")
    parser.add_argument("--mitigations", action="store_true", help="list the mitigations with their parameters")
    parser.add_argument(
        "--fail-on",
        choices=VERDICTS[1:],
        metavar="VERDICT",
        help="suspicious or memorized, after mitigation: exit code 1",
    )
    parser.add_argument("--profile", type=Path, metavar="FILE", help="default: found by the model's fingerprint")
    parser.add_argument("--sensitivity", type=float, default=99.0, metavar="P", help="percentile (default 99)")
    parser.add_argument("--json", action="store_true", help="reports as JSON lines on stdout")
    common.add_model(parser, required=False)
    common.add_run(parser, scored=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate; return 0, or 1 for a finding at --fail-on."""
    if args.mitigations:
        _list()
        return 0
    for name in ("model", "out"):
        if getattr(args, name) is None:
            raise BadInput(f"--{name} is missing")
    prompts = list(args.prompts) + ([] if args.file is None else list(read_prompts(args.file, None, "utf-8")))
    if not prompts:
        raise BadInput("no prompts; give some, or --file FILE")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {args.out}: {error.strerror}") from None
    reports = []
    with (args.out / "reports.jsonl").open("a", encoding="utf-8") as file:
        for report in _generate(args, prompts):
            reports.append(report)
            file.write(report.to_json() + "\n")
            print(report.to_json() if args.json else f"{report.prompt}: {message(report)}", flush=True)
    if args.fail_on is None:
        return 0
    worst = [report.verdict if report.verdict_after == "unknown" else report.verdict_after for report in reports]
    return int(any(verdict in VERDICTS[VERDICTS.index(args.fail_on) :] for verdict in worst))


def _generate(args: argparse.Namespace, prompts: Sequence[Any]) -> Iterator[Report]:
    import torch

    from ..calibration import Profile
    from ..guard import Guard, MemorizationStop

    chosen = _chosen(args)
    policy: Policy = args.policy or ("mitigate" if chosen and not args.always else "observe")
    try:
        profile = None if args.profile is None else Profile.read(args.profile)
        mitigation = None if args.always or not chosen else chosen
        guard = Guard(policy=policy, mitigation=mitigation, profile=profile, sensitivity=args.sensitivity)
    except ValueError as error:
        raise BadInput(str(error)) from None
    pipe = models.load_model(args)
    pipe.set_progress_bar_config(disable=True)
    for number, prompt in enumerate(common.progress(prompts, len(prompts), " prompts")):
        if not isinstance(prompt, str):
            raise BadInput(f"prompt {number + 1} is no text but {prompt!r:.60}")
        call = {
            "prompt": prompt,
            "num_inference_steps": args.num_inference_steps,
            "guidance_scale": args.guidance_scale,
            "num_images_per_prompt": args.num_images,
            "height": args.height,
            "width": args.width,
            "negative_prompt": args.negative_prompt,
            "generator": torch.Generator("cpu").manual_seed(args.seed),
        }
        with ExitStack() as stack:
            stack.enter_context(guard.attach(pipe))
            for each in chosen if args.always else ():
                stack.enter_context(each.attach(pipe))
            try:
                pictures = pipe(**{k: v for k, v in call.items() if v is not None}).images
            except MemorizationStop as stop:
                print(f"memguard generate: {stop}", file=sys.stderr)
                pictures = []
            except (ValueError, RuntimeError) as error:
                raise BadInput(f"{prompt!r:.60}: {common.first_line(error)}") from None
        for image, picture in enumerate(pictures):
            picture.save(args.out / f"{number:04d}-{args.seed}-{image}-{NAME.sub('-', prompt)[:SHOWN].strip('-')}.png")
        assert guard.report is not None
        yield guard.report


def _chosen(args: argparse.Namespace) -> list[Any]:
    """Return the mitigations that --mitigation and --neurons name.

    Raises:
        BadInput: for what is not one.

    """
    from ..mitigations import Mitigation, get
    from ..neurons import files

    try:
        chosen: list[Any] = [_parsed(text) for text in args.mitigation if not text.startswith("neuron_mask")]
        named = any(text.startswith("neuron_mask") for text in args.mitigation)
        if named and args.neurons is None:
            raise BadInput("--mitigation neuron_mask needs --neurons FILE")
        if args.neurons is not None:
            chosen.append(get("neuron_mask", neurons=files.load(args.neurons)))
    except (ValueError, OSError) as error:
        raise BadInput(common.first_line(error)) from None
    if args.always and (not chosen or not all(isinstance(each, Mitigation) for each in chosen)):
        raise BadInput("--always needs --mitigation with the name of a mitigation; auto decides by the score")
    return chosen


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
        except (ValueError, SyntaxError):
            settings[key.strip()] = value
    try:
        return get(name, **settings)
    except TypeError:
        raise ValueError(f"--mitigation {text}: a value is of the wrong kind") from None


def _list() -> None:
    from ..mitigations import available, describe, parameters

    for name in available():
        given = ", ".join(f"{key}={value!r}" for key, value in parameters(name).items())
        print(f"{name}: {describe(name)}\n    {given}")
