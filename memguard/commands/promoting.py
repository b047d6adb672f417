"""``memguard scan --prescan``: what is asked for, and what of it is wrong before a model is loaded."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from ..lists import BadInput
from ..records import Finding
from . import common, models

# settings that a profile must share with the scan, and their defaults
SHARED = {
    "steps": 1,
    "num_inference_steps": 50,
    "guidance_scale": 7.5,
    "negative_prompt": None,
    "reference": "negative",
    "device": "auto",
    "dtype": "auto",
}


OTHER = "is the profile of the first look, at a smaller size than the scan"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what belongs to a pre-scan."""
    group = parser.add_argument_group("a first look at a smaller size")
    group.add_argument(
        "--prescan",
        type=Path,
        metavar="PROFILE",
        help="look at every prompt at this profile's smaller size first (memguard calibrate --height --width)",
    )
    group.add_argument(
        "--promote",
        type=float,
        metavar="SHARE",
        help="of ordinary prompts that go on to the scan (default 0.1); the others get no score",
    )


def check(args: argparse.Namespace) -> None:
    """Check what is known without a model, and fill in the share.

    Raises:
        BadInput: that names what is wrong, and for a missing profile the command that makes one.

    """
    if args.prescan is None:
        if args.promote is not None:
            raise BadInput("--promote needs --prescan PROFILE, what ordinary prompts score at a smaller size")
        return
    from ..calibration.prescan import PROMOTE  # waits for torch, as --help must not

    args.promote = PROMOTE if args.promote is None else args.promote
    if not 0 < args.promote < 1:
        raise BadInput(f"--promote: {args.promote} is not between 0 and 1; 0.1 scans a tenth of ordinary prompts")
    if not args.prescan.exists():
        raise BadInput(f"{args.prescan}: no such file; this makes one and says its name: {remedy(args)}")
    read(args)


def read(args: argparse.Namespace) -> Any:
    """Return the profile.

    Raises:
        BadInput: if it cannot be read, or is of another kind of scan as far as the arguments tell.

    """
    from ..calibration import Have, Profile, negative_of
    from ..calibration.prescan import unsuited

    try:
        profile = Profile.read(args.prescan)
    except ValueError as error:  # ProfileError
        said = str(error).partition("; run memguard calibrate")[0]
        raise BadInput(f"{said}; this makes one and says its name: {remedy(args)}") from None
    have = Have(
        model="",
        sigma=None,
        steps_scored=args.steps,
        reference=args.reference,
        negative=negative_of(args.negative_prompt or ""),
        num_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
    )
    if args.profile is not None and common.digest_file(args.profile) == common.digest_file(args.prescan):
        raise BadInput(f"{args.profile}: {OTHER}; --profile is for the scan's own")
    wrong = unsuited(profile, common.detectors(args), have, args.promote)
    if wrong is not None:
        raise BadInput(f"{args.prescan}: {wrong}")
    return profile


def remedy(args: argparse.Namespace) -> str:
    """Return the command that makes a profile of half the height and width."""
    from ..calibration.prescan import Frame

    own, grain = _own_side(args.model)
    words = ["memguard", "calibrate", "--model", args.model]
    half = Frame(args.height or own, args.width or own, 1, grain).half()
    for side, whole, pixels in (("height", args.height or own, half[0]), ("width", args.width or own, half[1])):
        words += [f"--{side}", str(pixels) if whole else "PX"]
    for name, default in SHARED.items():
        value = getattr(args, name)
        words += [] if value == default else [f"--{name.replace('_', '-')}", str(value)]
    for name in args.detector or ():
        words += ["--detector", name]
    return shlex.join([*words, "--out", str(args.prescan.parent)])


def _own_side(model: str) -> tuple[int, int]:
    """Return the pixels of a model's own pictures and what sides are multiples of, as its folder tells unloaded.

    The first is 0 where the folder does not tell.
    """
    if model == models.TESTBED:
        from ..testbed.loader import TILE

        return TILE, 8
    for part in ("unet", "transformer"):
        try:
            latents = json.loads((Path(model) / part / "config.json").read_text(encoding="utf-8"))["sample_size"]
            blocks = json.loads((Path(model) / "vae" / "config.json").read_text(encoding="utf-8"))["block_out_channels"]
            pixels = 2 ** (len(blocks) - 1)
            return int(latents) * pixels, 8 if part == "unet" else max(8, 2 * pixels)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return 0, 8


def kept(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that rows keep, none without a pre-scan."""
    if args.prescan is None:
        return {}
    return {"prescan": common.digest_file(args.prescan), "promote": args.promote}


def seen(finding: Finding) -> bool:
    """Whether a first look could score a prompt."""
    return finding.prescan is not None and finding.prescan.score is not None


def said(args: argparse.Namespace, promoted: int) -> str:
    """Return how many prompts were promoted, behind the number of all; "" without a pre-scan."""
    return "" if args.prescan is None else f", {promoted} promoted"
