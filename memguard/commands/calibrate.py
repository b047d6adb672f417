"""``memguard calibrate``: measure ordinary prompts and write the profile that verdicts need."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..lists import BadInput, files, read_prompts
from ..records import Report
from . import common, models


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "calibrate",
        help="measure what ordinary prompts score on a model",
        description="Score ordinary prompts and write a profile; scans and hosts find it by the model's fingerprint.",
    )
    parser.add_argument("prompts", nargs="?", type=Path, metavar="FILE", help="at least 50; default: the shipped ones")
    parser.add_argument("--column", metavar="NAME", help="of the prompts; default prompt, caption or text")
    parser.add_argument("--encoding", default="utf-8", help="of text files (default utf-8)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: profiles in MEMGUARD_HOME or ~/.memguard")
    parser.add_argument("--json", action="store_true", help="print the profile and its file as JSON")
    common.add_model(parser)
    common.add_settings(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Calibrate; return 0."""
    from ..calibration import Sensitivity, ordinary_prompts, save
    from ..calibration.profile import MINIMUM
    from ..calibration.rates import at, cut
    from ..calibration.store import home
    from ..guard import Guard
    from ..hosts.diffusers import calibrate

    common.check(args)
    prompts = list(read_prompts(args.prompts, args.column, args.encoding)) if args.prompts else ordinary_prompts()
    if len(prompts) < MINIMUM:
        raise BadInput(f"{args.prompts}: {len(prompts)} prompts; a profile needs at least {MINIMUM}")
    files.folder(args.out or home() / "profiles")
    bar, unread = common.progress((), len(prompts), " prompts"), common.Cut()

    def told(report: Report) -> None:
        unread.add(report.notes)
        bar.update()

    try:
        Guard(common.detectors(args))  # what it refuses costs no loading
        pipe = models.load_model(args)
        with bar:
            profile = calibrate(pipe, prompts, progress=told, **common.settings(args))
        path = save(profile, args.out)
    except ValueError as error:  # also ProfileError
        raise BadInput(str(error)) from None
    except OSError as error:
        raise files.unwritable(args.out or error.filename, error) from None
    unread.tell("calibrate", len(prompts))
    if args.json:
        import json

        common.print_json({"file": str(path), "profile": json.loads(profile.to_json())})
        return 0
    c = profile.conditions
    family = "" if c.family == "other" else f"{c.family} "
    print(f"{path}: {family}model {c.model}, {c.latent[1]} x {c.latent[0]} latents, sigma {c.sigma:.3g}")
    for name, d in profile.distributions.items():
        flagging = cut(Sensitivity().suspicious, d.count) or at(0, d.count)
        rate, most = 100 * flagging.rate, 100 * flagging.bound
        above = d.limit(flagging.allowed)
        print(f"{name}: {d.count} prompts, median RMS {d.median:.4g}; flagged above an RMS of {above:.4g},")
        print(f"which is {rate:.2g} % of ordinary prompts, at most {most:.2g} % (95 % confidence)")
    return 0
