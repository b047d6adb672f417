"""What the page asks the server for, under /memguard/v1: reports, maps, known prompts, and the memory's settings.

ComfyUI serves every route under /api as well. Handlers leave files and pictures to a thread, so that the server goes
on. Part of the ComfyUI host.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from ...database import OK
from . import callers, known, maps, screen

BASE = "/memguard/v1"
MOST = 64  # texts or names in one question
LONGEST = 20_000  # characters of one text
BODY = 4 * MOST * LONGEST  # bytes


class BadRequest(callers.Refusal):
    """One line that says what is wrong with a question."""

    def __init__(self, line: str) -> None:
        super().__init__(400, line)


def register() -> None:
    """Add the routes, if there is a server; once, also where two copies of the pack are installed."""
    instance = screen.server()
    if instance is None or any(getattr(route, "path", None) == f"{BASE}/known" for route in instance.routes):
        return
    callers.register(instance)
    for method, path, handler in HANDLERS:
        instance.routes.route(method, BASE + path)(_answering(handler))


async def reports(request: Any) -> dict[str, Any]:
    """Return the last events of a workflow, oldest first; without the parameter, of all."""
    workflow, user = request.query.get("workflow"), _user(request)
    own = [row for row in list(screen.payloads) if row.get("owner", callers.ONE) == user]
    return {"reports": [row for row in own if workflow is None or row["workflow"] == workflow]}


async def run_maps(request: Any) -> dict[str, Any] | None:
    """Return the maps of a run, or None."""
    return await asyncio.to_thread(maps.answer, request.match_info["run"], _user(request))


async def known_prompts(request: Any) -> dict[str, Any]:
    """Compare texts with the memory."""
    asked = await _asked(request)
    texts, checkpoints = _strings(asked.get("texts"), "texts"), _strings(asked.get("checkpoints", []), "checkpoints")
    status, found = await asyncio.to_thread(known.memory(_user(request)).look, texts, checkpoints)
    return {"status": status, "warnings": [warning and asdict(warning) for warning in found]}


async def memory_facts(request: Any) -> dict[str, Any]:
    """Return whether runs are remembered, and how many."""
    return await _facts(request)


async def memory_switch(request: Any) -> dict[str, Any]:
    """Switch the memory on or off."""
    enabled = (await _asked(request)).get("enabled")
    if not isinstance(enabled, bool):
        raise BadRequest("enabled is not true or false")
    return await _facts(request, await asyncio.to_thread(known.memory(_user(request)).enable, enabled))


async def memory_clear(request: Any) -> dict[str, Any]:
    """Forget all runs."""
    return await _facts(request, await asyncio.to_thread(known.memory(_user(request)).clear))


HANDLERS = (
    ("GET", "/reports", reports),
    ("GET", "/maps/{run}", run_maps),
    ("POST", "/known", known_prompts),
    ("GET", "/memory", memory_facts),
    ("POST", "/memory", memory_switch),
    ("DELETE", "/memory", memory_clear),
)


def _user(request: Any) -> str:
    return callers.user_of(screen.server(), request)


async def _facts(request: Any, status: str = OK) -> dict[str, Any]:
    facts = await asyncio.to_thread(known.memory(_user(request)).facts)
    status = facts.status if status == OK else status
    return {"enabled": facts.enabled, "status": status, "runs": facts.rows, "bytes": facts.bytes}


async def _asked(request: Any) -> dict[str, Any]:
    """Return the JSON object of a request's body."""
    if (request.content_length or 0) > BODY:
        raise BadRequest(f"the question has {request.content_length} bytes; send at most {BODY}")
    try:
        body = json.loads(await _read(request))
    except RecursionError:
        raise BadRequest("the body is no JSON that can be read: it is nested too deeply") from None
    except ValueError:
        raise BadRequest("the body is no JSON") from None
    if not isinstance(body, dict):
        raise BadRequest("the body is no JSON object")
    return body


async def _read(request: Any) -> bytes:
    """Return a body whose length its sender did not tell, as far as it is allowed to go."""
    found = bytearray()
    async for part in request.content.iter_any():
        found += part
        if len(found) > BODY:
            raise BadRequest(f"the question is longer than {BODY} bytes")
    return bytes(found)


def _strings(values: Any, name: str) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BadRequest(f"{name} is not a list of strings")
    if len(values) > MOST:
        raise BadRequest(f"{name} has {len(values)} entries; send at most {MOST}")
    if (longest := max(map(len, values), default=0)) > LONGEST:
        raise BadRequest(f"an entry of {name} has {longest} characters; send at most {LONGEST}")
    return values


def _answering(handler: Callable[[Any], Awaitable[dict[str, Any] | None]]) -> Callable[[Any], Awaitable[Any]]:
    from aiohttp import web  # in-process tests of other rooms have none

    async def answer(request: Any) -> Any:
        try:
            callers.check(request)
            values = await handler(request)
        except callers.Refusal as error:
            return web.json_response({"error": str(error)}, status=error.status)
        if values is None:
            return web.json_response({"error": "no maps of this run are kept on this server"}, status=404)
        return web.json_response(values)

    return answer
