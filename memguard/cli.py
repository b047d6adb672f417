"""``memguard``: the command line. One file of memguard/commands is one command, loaded when it is asked for.

A command module has ``add_parser(subparsers)`` and ``run(args) -> int``. Exit codes: 0 done, 1 a finding above
--fail-on, 2 bad input (one line that says what), 3 an error of memguard's own (a traceback), 130 interrupted, 141 the
reader of a pipe went away before the end (as shells say it of other programs).
"""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from .commands.extras import EXTRAS, remedy
from .texts import shown
from .version import VERSION

COMMANDS = {
    "demo": "see memorization detected on a small model that really memorizes",
    "scan": "score a list of prompts on a model",
    "merge": "put the files of a scan together and find what stands out",
    "explain": "say which words of a prompt drive its score, and where in the picture",
    "copies": "say which pictures are copies of pictures in a folder",
    "generate": "generate pictures, watched by a guard or mitigated",
    "neurons": "find the neurons that carry a memorized picture, and handle files of them",
    "audit": "say whether a LoRA or a fine-tuned model copies its training pictures",
    "calibrate": "measure what ordinary prompts score on a model",
    "testbed": "export the small model that really memorizes",
    "doctor": "versions, hosts, devices, and what works here",
}

LONGEST = 600  # characters of an error


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _line(text: str) -> str:
    """Return an error as one line that a terminal shows and does not obey."""
    return shown(text) + "\n"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, _line(f"{self.prog}: {_shortened(message)}; see {self.prog} --help"))


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """Return the parser; only the module of ``command`` is loaded, the others are names with a line of help."""
    parser = Parser(
        prog="memguard",
        description="Tells whether a prompt makes a diffusion model copy a picture of its training data.",
        epilog="Exit code 0: done; 1: --fail-on was reached; 2: bad input; 3: a fault of memguard; 130: interrupted;"
        " 141: a pipe was closed before the end.",
    )
    parser.add_argument("--version", action="version", version=f"memguard {VERSION}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, line in COMMANDS.items():
        if name == command:
            importlib.import_module(f".commands.{name}", __package__).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=line)
    return parser


class _Lines(logging.Handler):
    """Shows what the package notes as one line each, without the traceback that a host's log has."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line to stderr."""
        sys.stderr.write(_line(f"note: {_shortened(record.getMessage())}"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if not word.startswith("-")), None)
    name = f"memguard {command}" if command in COMMANDS else "memguard"
    for name_of in ("stdout", "stderr"):
        if getattr(sys, name_of) is None:  # closed (>&-), or a program without a console
            setattr(sys, name_of, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a letter ends nothing
    log = logging.getLogger("memguard")
    if not any(isinstance(handler, _Lines) for handler in log.handlers):
        log.addHandler(_Lines())
    try:
        args, unknown = build_parser(command).parse_known_args(words)
        if unknown:
            Parser(name).error(f"unrecognized arguments: {' '.join(unknown)}")
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of a pipe has seen enough (| head); Python must not complain about it at exit. What was left to do
        # is not done, and --fail-on is not answered: neither 0 nor 1
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141
    except Exception as error:
        said = _said(error)
        if said is None:
            traceback.print_exc()
            return 3  # Python's own 1 would say that something was found
        sys.stderr.write(_line(f"{name}: {_shortened(said)}"))
        return 2


def _said(error: Exception) -> str | None:
    """Return what an error says to the person who typed the command; None for an error of the program."""
    from .lists import BadInput
    from .troubles import Refused

    if isinstance(error, BadInput | Refused):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        missing = (error.name or "").split(".")[0]
        return f"needs {missing}; {remedy(EXTRAS[missing])}" if missing in EXTRAS else None
    if isinstance(error, MemoryError):
        return "not enough memory; give a shorter list, smaller pictures or fewer at once"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    return None


if __name__ == "__main__":
    sys.exit(main())
