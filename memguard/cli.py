"""``memguard``: the command line. One file of memguard/commands is one command, loaded when it is asked for.

A command module has ``add_parser(subparsers)`` and ``run(args) -> int``. Exit codes: 0 done, 1 a finding above
--fail-on, 2 bad input (one line that says what), 130 interrupted.

May import: memguard.version, memguard.commands, memguard.lists, the standard library.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from .version import VERSION

COMMANDS = {
    "demo": "see memorization detected on a small model that really memorizes",
    "scan": "score a list of prompts on a model",
    "explain": "say which words of a prompt drive its score, and where in the picture",
    "generate": "generate pictures, watched by a guard or mitigated",
    "neurons": "find the neurons that carry a memorized picture, and handle files of them",
    "calibrate": "measure what ordinary prompts score on a model",
    "testbed": "export the small model that really memorizes",
    "doctor": "versions, hosts, devices, and what works here",
}
# package -> the extra that brings it
EXTRAS = {
    "diffusers": "diffusers",
    "transformers": "diffusers",
    "tqdm": "diffusers",
    "pyarrow": "parquet",
    "sklearn": "bench",
    "matplotlib": "bench",
}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str):
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """Return the parser; only the module of ``command`` is loaded, the others are names with a line of help."""
    parser = Parser(
        prog="memguard",
        description="Tells whether a prompt makes a diffusion model copy a picture of its training data.",
        epilog="Exit code 0: done; 1: a score above --fail-on; 2: bad input; 130: interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"memguard {VERSION}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, line in COMMANDS.items():
        if name == command:
            importlib.import_module(f".commands.{name}", __package__).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=line)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if not word.startswith("-")), None)
    name = f"memguard {command}" if command in COMMANDS else "memguard"
    try:
        args = build_parser(command).parse_args(words)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of a pipe has seen enough (| head); Python must not complain about it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in EXTRAS:
            raise
        print(f"{name}: needs {missing}; pip install 'memguard[{EXTRAS[missing]}]'", file=sys.stderr)
        return 2
    except Exception as error:
        from .lists import BadInput

        if not isinstance(error, BadInput):
            raise
        print(f"{name}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
