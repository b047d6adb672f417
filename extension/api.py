"""Reports by the WebUI's API, and which session belongs to which generation. May import: fastapi, memguard.hosts."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import Body, HTTPException

from ..memguard.calibration import store
from ..memguard.hosts.webui.session import Session
from . import calibrate, check, host

KEPT = 32  # jobs
_sessions: OrderedDict[str, list[Session]] = OrderedDict()


def keep(job: str, session: Session) -> None:
    """Keep a finished session by the host's timestamp of the job, which all jobs of one second share."""
    _sessions.setdefault(job, []).append(session)
    while len(_sessions) > KEPT:
        _sessions.popitem(last=False)


def sessions_of(info: str) -> list[Session]:
    """Return the sessions of a generation info, the JSON that the host shows and returns; a script makes several."""
    try:
        return _sessions[json.loads(info)["job_timestamp"]]
    except (ValueError, KeyError, TypeError):
        return []


def serve(_: Any, app: Any) -> None:
    """Add the routes below /memguard/v1."""

    def report(job: str | None = None) -> dict[str, Any]:
        """Return the reports of a job, by its ``job_timestamp``, or of the last one."""
        sessions = _sessions.get(job, []) if job else next(reversed(_sessions.values()), [])[-1:]
        return {"reports": [report.to_dict() for session in sessions for report in session.reports]}

    def checked(body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008 how FastAPI is told
        """Score a prompt without generating; the settings are those of extension/check.py."""
        try:
            session = check.check(**body)
        except (ValueError, TypeError) as error:
            raise HTTPException(status_code=400, detail=str(error)) from None
        return {"reports": [report.to_dict() for report in session.reports]}

    def profiles() -> dict[str, Any]:
        """Return the profiles of the loaded checkpoint."""
        model = host.fingerprint()
        return {"model": model, "profiles": [json.loads(each.to_json()) for each in store.of_model(model)]}

    def calibrated(body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        """Make profiles of the loaded checkpoint; the fields are those of ``calibrating.Request``."""
        try:
            made = calibrate.calibrate(body)
        except ValueError as error:
            raise HTTPException(status_code=400, detail=str(error)) from None
        told = [{**json.loads(each.to_json()), "file": Path(each.source).name} for each in made]
        return {"model": made[0].conditions.model, "profiles": told}

    def memory() -> dict[str, Any]:
        """Return whether runs are remembered, and how many are."""
        return asdict(host.memory().facts())

    def remember(body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        """Switch the memory on or off, or clear it."""
        for name, value in body.items():
            if name not in ("enabled", "clear") or type(value) is not bool:
                raise HTTPException(400, f"{name} is {value!r}; give enabled or clear as true or false")
        if body.get("clear"):
            host.memory().clear()
        if "enabled" in body:
            host.memory().enable(body["enabled"])
        return memory()

    app.add_api_route("/memguard/v1/report", report, methods=["GET"])
    app.add_api_route("/memguard/v1/check", checked, methods=["POST"])
    app.add_api_route("/memguard/v1/profiles", profiles, methods=["GET"])
    app.add_api_route("/memguard/v1/profiles", calibrated, methods=["POST"])
    app.add_api_route("/memguard/v1/memory", memory, methods=["GET"])
    app.add_api_route("/memguard/v1/memory", remember, methods=["POST"])
