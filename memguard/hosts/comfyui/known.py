"""ComfyUI's memory of known prompts: one file for each user below its user folder, and the runs that go into it.

It lies beside the folders of the users and not in one of them, which the page could read and write. Part of the ComfyUI
host.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import folder_paths

from ...memory import PromptMemory, remembered
from ...records import Report
from . import callers, graph, screen

log = logging.getLogger("memguard")

FOLDER, FILE = "memguard", "prompts.sqlite3"


def memory(user: str = callers.ONE) -> PromptMemory:
    """Return the memory of a user of this server."""
    return _memory(Path(folder_paths.get_user_directory()) / FOLDER / user / FILE)


@lru_cache(maxsize=64)
def _memory(path: Path) -> PromptMemory:
    return PromptMemory(path)


def remember(report: Report, checkpoint: str | None = None) -> str | None:
    """Remember a finished run; return a note for its report where that failed.

    Args:
        report: of the run.
        checkpoint: its model's file name; None looks for it in the graph that is being executed.

    """

    def name() -> str:
        if checkpoint is not None:
            return checkpoint
        prompt_id, node_id = screen.place()
        return graph.checkpoint(screen.running_prompt(prompt_id), node_id) or ""

    whose = screen.owner()
    if whose == callers.NOBODY:
        return None
    return remembered(lambda: memory(whose), report, name)


def noted(report: Report, home: str | None = None) -> Report:
    """Remember the run that is being executed; return its report, shown once more if it got a note.

    Args:
        report: of the finished run.
        home: id of the node whose badge shows it, as for ``screen.show``.

    """
    note = remember(report)
    if note is None:
        return report
    report = replace(report, notes=(*report.notes, note))
    try:
        screen.show(report, home, again=True)
    except Exception as error:
        log.warning("the report could not be shown: %s", error)
    return report
