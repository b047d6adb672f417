"""``memguard explain``: which words of a prompt drive its score, and where in the picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..lists import BadInput, files
from ..table import EXPLAIN
from ..texts import shown, unfit, writable
from . import common, models

SETTINGS = "num_images steps num_inference_steps guidance_scale height width seed negative_prompt".split()
WIDTH = 24  # characters of the longest bar


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "explain",
        help="say which words of a prompt drive its score, and where in the picture",
        description="Weigh the words of a prompt.",
    )
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="- reads it from stdin")
    common.add(parser, "method", EXPLAIN["method"])
    common.add(parser, "respect_to", EXPLAIN["respect_to"])
    parser.add_argument("--substitute", default="", metavar="WORD", help="of method ablation: in place of a word")
    parser.add_argument("--parity", choices=("official",), help="reproduce the number of Wen et al.'s code")
    parser.add_argument(
        "--maps",
        action="append",
        choices=tuple(EXPLAIN["maps"].choices),
        help="also say where in the picture; runs all steps; may be repeated",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with the coloured words and the maps")
    parser.add_argument("--json", action="store_true", help="print the attribution as JSON")
    common.add_model(parser)
    common.add_run(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Explain one prompt; return 0, also where the reason is all that there is to say."""
    from ..hosts.diffusers import explain
    from ..plain import attribution_dict

    common.check(args)
    prompt = _stdin() if args.prompt == "-" else args.prompt
    reason = unfit(prompt) or ("" if prompt.strip() else "the prompt is empty; give the text to explain")
    if reason:
        raise BadInput(f"--prompt: {reason}")
    if args.parity and args.method != "gradient":
        raise BadInput(f"--parity {args.parity}: is a number of method gradient, and --method is {args.method}")
    if args.html:
        files.target(args.html, files.is_page)
    given = {name: getattr(args, name) for name in SETTINGS}
    given |= {"method": args.method, "respect_to": args.respect_to, "substitute": args.substitute}
    given |= {"parity": args.parity, "maps": tuple(dict.fromkeys(args.maps or ()))}
    try:
        found = explain(models.load_model(args), prompt, **given)
    except ValueError as error:
        raise BadInput(str(error)) from None
    if args.html:
        try:
            args.html.write_text(writable(_page(prompt, found)), encoding="utf-8")
        except OSError as error:
            raise files.unwritable(args.html, error) from None
    if args.json:
        common.print_json({"prompt": prompt, **attribution_dict(found)})
    else:
        print("\n".join(map(shown, _table(found))))
    return 0


def _stdin() -> str:
    if sys.stdin is None:
        raise BadInput("--prompt -: stdin is closed")
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadInput(f"--prompt -: byte {error.start} of stdin is not utf-8; give the prompt as UTF-8") from None
    except OSError as error:
        raise BadInput(f"--prompt -: stdin cannot be read ({error.strerror})") from None


def _table(found: Any) -> list[str]:
    """Return the lines that a terminal shows."""
    from ..overlay import NAMES

    if found.status != "ok":
        return [f"no attribution: {found.status}"]
    score = "" if found.score is None else f", score {found.score:.3g}"
    lines = [f"{found.method}: {found.unit}{score}"]
    names = [span.text or NAMES[span.group] for span in found.spans]
    wide, top = max(map(len, names)), max(map(abs, found.weights)) or 1.0
    for name, weight in zip(names, found.weights, strict=True):
        bar = round(WIDTH * abs(weight) / top) * ("-" if weight < 0 else "#")
        lines.append(f"  {name:<{wide}}  {weight:>9.3g}  {bar}".rstrip())
    return [*lines, *(f"note: {note}" for note in found.notes)]


def _page(prompt: str, found: Any) -> str:
    from ..overlay import NAMES, overlay
    from ..pages.report import Section, page

    if found.status != "ok":
        return page("MemGuard: why this score", prompt, [Section("No attribution", found.status)])
    names = [span.text or NAMES[span.group] for span in found.spans]
    ids = [" ".join(map(str, span.ids[:8])) + (" ..." if len(span.ids) > 8 else "") for span in found.spans]
    rows = [(n, f"{w:.4g}", i) for n, w, i in zip(names, found.weights, ids, strict=True)]
    lead = f"Method {found.method}: {found.unit}. " + " ".join(found.notes)
    words = Section("Words", lead, ("word", "weight", "token ids"), rows, words=found)
    pictures = [("picture", image) for image in found.images[:1]]
    for name, heat in found.maps.items() if found.images else ():
        kind, _, index = name.partition(" ")
        title = f"word: {names[int(index)]}" if index else kind
        pictures.append((title, overlay(found.images[0], heat.numpy(), legend=title)))
    where = [Section("Where in the picture", pictures=pictures)] if found.maps else []
    return page("MemGuard: why this score", prompt, [words, *where])
