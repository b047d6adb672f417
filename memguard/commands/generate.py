"""``memguard generate``: pictures of prompts, watched by a guard or mitigated."""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..lists import BadInput, Results, files, open_results, read_prompts
from ..records import VERDICTS, Policy, Report
from ..table import GUARD
from ..texts import shown, unfit
from ..troubles import of_pipeline
from ..wording import message
from . import common, models
from .chosen import chosen, list_mitigations

REPORTS = "reports.jsonl"
KEPT = (
    "policy mitigation always sensitivity num_images num_inference_steps guidance_scale height width seed"
    " negative_prompt"
)
NAME = re.compile(r"[^\w]+")  # what a file's name is spared of
SHOWN = 40  # characters of the prompt in a file's name


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "generate",
        help="generate pictures, watched by a guard or mitigated",
        description="Generate pictures of prompts into a new folder, with one report per prompt in reports.jsonl.",
        epilog="A prompt that cannot be generated is reported with the reason, and the others go on. "
        "--mitigation NAME or NAME:PARAMETER=VALUE,...; several are tried in this order (names: --mitigations).",
    )
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="texts")
    parser.add_argument("--file", type=Path, metavar="FILE", help="prompts: .txt, .jsonl, .csv or .parquet")
    parser.add_argument("--column", metavar="NAME", help="of the prompts in FILE; default prompt, caption or text")
    parser.add_argument("--encoding", default="utf-8", help="of a text FILE (default utf-8)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the pictures, new or empty")
    parser.add_argument("--resume", action="store_true", help="continue --out: skip the prompts that it holds")
    said = f"{common.words(GUARD['policy'])} (default mitigate with --mitigation, else observe)"
    common.add(parser, "policy", GUARD["policy"], default=None, help=said)
    said = common.words(GUARD["mitigation"])
    parser.add_argument("--mitigation", action="append", metavar="NAME", default=[], help=said)
    parser.add_argument("--neurons", type=Path, metavar="FILE", help=common.words(GUARD["neurons"]))
    parser.add_argument("--always", action="store_true", help="mitigate every run, memorized or not")
    parser.add_argument("--mitigations", action="store_true", help="list the mitigations with their parameters")
    parser.add_argument(
        "--fail-on",
        choices=VERDICTS[1:],
        metavar="VERDICT",
        help="suspicious or memorized, after mitigation: exit code 1",
    )
    parser.add_argument("--profile", type=Path, metavar="FILE", help="default: found by the model's fingerprint")
    common.add(parser, "sensitivity", GUARD["sensitivity"], metavar="P")
    parser.add_argument("--json", action="store_true", help="reports as JSON lines on stdout")
    common.add_model(parser, required=False)
    common.add_run(parser, scored=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate; return 0, or 1 for a finding at --fail-on."""
    if args.mitigations:
        list_mitigations()
        return 0
    for name in ("model", "out"):
        if getattr(args, name) is None:
            raise BadInput(f"--{name} is missing")
    common.check(args)
    prompts = list(args.prompts)
    if args.file is not None:
        prompts += read_prompts(args.file, args.column, args.encoding)
    if not prompts:
        raise BadInput("no prompts; give some, or --file FILE")
    results = _results(args)
    try:
        return _run(args, prompts, results)
    except KeyboardInterrupt:
        print(f"memguard generate: {args.out} holds {results.count} prompts; --resume continues", file=sys.stderr)
        raise
    finally:
        results.close()


def _results(args: argparse.Namespace) -> Results:
    """Return the reports of a folder that is new, empty, or to be continued."""
    reports = args.out / REPORTS
    files.folder(args.out)
    if any(args.out.iterdir()) and not (args.resume and reports.is_file()):
        what = "holds no reports to continue" if args.resume else "is not empty; continue it with --resume"
        raise BadInput(f"{args.out}: {what}, or give a new folder")
    return open_results(reports, args.resume, inputs=(args.file, args.profile, args.neurons))


def _run(args: argparse.Namespace, prompts: Sequence[Any], results: Results) -> int:
    rest = iter(prompts)
    results.settings = common.kept(args, KEPT)
    if args.neurons is not None:
        results.settings = {**results.settings, "neurons": common.digest_file(args.neurons)}
    if args.resume:
        start = common.skip(rest, results)
        results.agree(results.settings)
        if start == len(prompts):
            print(f"{args.out}: {start} prompts were done before")
            return 0
    grave, failed, reason, cut = False, 0, "", common.Cut()
    for report, names in _generate(args, list(rest), results):
        grave = grave or _grave(report, args.fail_on)
        cut.add(report.notes)
        if names is None:
            failed, reason = failed + 1, report.findings[0].status
        if args.json:
            common.print_json(report.to_dict() | {"files": names or []})
        else:
            print(f"{_shown(report)}: {shown(message(report))}", flush=True)
    cut.tell("generate", len(prompts))
    if failed == len(prompts):
        raise BadInput(f"no prompt could be generated: {reason}")
    return int(grave)


def _shown(report: Report) -> str:
    return "no text" if report.prompt is None else shown(report.prompt)


def _grave(report: Report, asked: str | None) -> bool:
    """Whether the verdict of a run, after its mitigation, is one that --fail-on asks for."""
    verdict = report.verdict if report.verdict_after == "unknown" else report.verdict_after
    return asked is not None and verdict in VERDICTS[VERDICTS.index(asked) :]


def _generate(
    args: argparse.Namespace, prompts: Sequence[Any], results: Results
) -> Iterator[tuple[Report, list[str] | None]]:
    """Yield the report of each prompt and the names of its pictures; None where it could not be generated."""
    from ..calibration import Profile
    from ..guard import Guard

    asked = chosen(args)
    policy: Policy = args.policy or ("mitigate" if asked and not args.always else "observe")
    try:
        profile = None if args.profile is None else Profile.read(args.profile)
        mitigation = None if args.always or not asked else asked
        guard = Guard(policy=policy, mitigation=mitigation, profile=profile, sensitivity=args.sensitivity)
    except ValueError as error:
        raise BadInput(str(error)) from None
    pipe = models.load_model(args)
    if pipe.vae is None:
        raise BadInput(f"{args.model}: has no autoencoder that diffusers knows, so it makes no pictures; scan works")
    pipe.set_progress_bar_config(disable=True)
    made = models.kept_model(pipe, profile)
    results.agree(made)
    results.settings = {**made, **results.settings}
    always = asked if args.always else ()
    with results:
        for prompt in common.progress(prompts, results.count + len(prompts), " prompts", results.count):
            report, pictures = _one(args, pipe, guard, always, prompt)
            names = [_save(args, results.count, i, prompt, picture) for i, picture in enumerate(pictures or ())]
            results.add(report, files=names)
            yield report, None if pictures is None else names


def _one(
    args: argparse.Namespace, pipe: Any, guard: Any, always: Sequence[Any], prompt: Any
) -> tuple[Report, list[Any] | None]:
    """Return the report and the pictures of one prompt; None for a prompt that could not be generated."""
    import torch

    from ..guard import MemorizationStop

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
    facts: dict[str, Any] = {"prompt": prompt if isinstance(prompt, str) else None, "seeds": (args.seed,)}
    reason = unfit(prompt)
    if not reason:
        try:
            with ExitStack() as stack:
                stack.enter_context(guard.attach(pipe))
                for each in always:
                    stack.enter_context(each.attach(pipe))
                pictures = pipe(**{k: v for k, v in call.items() if v is not None}).images
            return guard.report, list(pictures)
        except MemorizationStop as stop:
            print(f"memguard generate: {shown(str(stop))}", file=sys.stderr)
            return guard.report, []
        except Exception as error:
            reason = of_pipeline(error)
            facts["error"] = f"{type(error).__name__}: {error}"
    run = guard.begin(**facts)
    run.unavailable(reason)
    return run.finish(), None


def _save(args: argparse.Namespace, number: int, image: int, prompt: str, picture: Any) -> str:
    """Write a picture under a name that no file has, and return the name."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    stem = f"{number:04d}-{args.seed}-{image}-{NAME.sub('-', prompt)[:SHOWN].strip('-')}"
    again = 1
    while True:
        name = f"{stem}.png" if again == 1 else f"{stem}-{again}.png"
        path = args.out / name
        try:
            with path.open("xb") as file:
                file.write(data.getvalue())
            return name
        except FileExistsError:
            again += 1  # left behind by a run that ended before its report was written
        except OSError as error:
            path.unlink(missing_ok=True)
            raise files.unwritable(path, error) from None
