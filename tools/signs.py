"""Marks, words and colours of verdicts for ComfyUI's page, from memguard/wording.py. Run by tools/report_format.py."""

from __future__ import annotations

import json

from memguard.wording import SIGNS

HEAD = "Made by tools/report_format.py from memguard/wording.py: run that, do not edit this."


def script() -> str:
    """Return web/js/signs.js."""
    lines = [
        f"  {verdict}: {{ mark: {json.dumps(sign.mark, ensure_ascii=False)}, words: {json.dumps(sign.words)} }},\n"
        for verdict, sign in SIGNS.items()
    ]
    kind = "Record<Verdict, {mark: string, words: string}>"
    return (
        f'// {HEAD}\n// @ts-check\n/** @import {{ Verdict }} from "./report.js" */\n\n'
        "/** Of a verdict: one character, and what is said of a run. */\n"
        f"export const SIGNS = /** @type {{{kind}}} */ ({{\n{''.join(lines)}}});\n"
    )


def colours() -> str:
    """Return web/signs.css: ground and text of a badge."""
    lines = [
        f"  --memguard-{verdict}: {ground};\n  --memguard-{verdict}-text: {text};\n"
        for verdict, (*_, (ground, text)) in SIGNS.items()
    ]
    return f"/* {HEAD} */\n:root {{\n{''.join(lines)}}}\n"
