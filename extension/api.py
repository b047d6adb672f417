"""Reports by the WebUI's API, and which session belongs to which generation."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import Body, HTTPException

from ..memguard.calibration import store
from ..memguard.hosts.webui import fields
from ..memguard.hosts.webui.finished import Finished
from ..memguard.hosts.webui.session import Session
from ..memguard.troubles import Told, in_words
from . import access, calibrate, check, host

log = logging.getLogger("memguard")

REMEMBER: dict[str, fields.Field] = {"enabled": fields.Truth(), "clear": fields.Truth()}
_finished = Finished()


def keep(job: str, session: Session) -> None:
    """Keep a finished session by the host's timestamp of the job in progress."""
    _finished.keep(job, host.job(), session)


def sessions_of(info: str) -> list[Session]:
    """Return the sessions of a generation info, the JSON that the host shows when the job is over."""
    try:
        return _finished.newest(json.loads(info)["job_timestamp"])
    except (ValueError, KeyError, TypeError):
        return []


@contextmanager
def answering() -> Iterator[None]:
    """Answer what cannot be used with 400 and one line, and an error of ours with 500 and no word of its own."""
    try:
        yield
    except Told as error:
        raise HTTPException(400, in_words(error)) from None
    except HTTPException:
        raise
    except Exception as error:
        log.exception("a request failed")
        raise HTTPException(500, in_words(error)) from None


def serve(_: Any, app: Any) -> None:
    """Add the routes below /memguard/v1."""

    def report(job: str | None = None) -> dict[str, Any]:
        """Return the reports of all jobs of a ``job_timestamp``, or of the last session."""
        sessions = _finished.of(job) if job else _finished.last()
        return {"reports": [report.to_dict() for session in sessions for report in session.reports]}

    def checked(body: Any = Body(...)) -> dict[str, Any]:  # noqa: B008 how FastAPI is told
        """Score a prompt without generating; the settings are those of extension/check.py."""
        with answering():
            session = check.check(body)
            return {"reports": [report.to_dict() for report in session.reports]}

    def profiles() -> dict[str, Any]:
        """Return the profiles of the loaded checkpoint."""
        with answering():
            model = host.fingerprint()
            return {"model": model, "profiles": [json.loads(each.to_json()) for each in store.of_model(model)]}

    def calibrated(body: Any = Body(...)) -> dict[str, Any]:  # noqa: B008
        """Make profiles of the loaded checkpoint; the fields are those of ``calibrating.Request``."""
        with answering():
            made = calibrate.calibrate(body)
        told = [{**json.loads(each.to_json()), "file": Path(each.source).name} for each in made]
        return {"model": made[0].conditions.model, "profiles": told}

    def memory() -> dict[str, Any]:
        """Return whether runs are remembered, and how many are."""
        return asdict(host.memory().facts())

    def remember(body: Any = Body(...)) -> dict[str, Any]:  # noqa: B008
        """Switch the memory on or off, or clear it."""
        with answering():
            fields.read(REMEMBER, body, "of the memory")
        if body.get("clear"):
            host.memory().clear()
        if "enabled" in body:
            host.memory().enable(body["enabled"])
        return memory()

    asked = access.required(app)
    for path, work, method in (
        ("report", report, "GET"),
        ("check", checked, "POST"),
        ("profiles", profiles, "GET"),
        ("profiles", calibrated, "POST"),
        ("memory", memory, "GET"),
        ("memory", remember, "POST"),
    ):
        app.add_api_route(f"/memguard/v1/{path}", work, methods=[method], dependencies=asked)
