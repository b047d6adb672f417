"""Who asks and who runs: the users of a ComfyUI with --multi-user, and pages of other sites.

ComfyUI tells users apart by a header of each request (which it believes); what is queued does not say whose it is, so
that is written beside a prompt when it comes in. Part of the ComfyUI host.
"""

from __future__ import annotations

import urllib.parse
from contextvars import ContextVar
from pathlib import PurePath
from typing import Any

from comfy.cli_args import args

KEY = "memguard_user"  # of a queued prompt's extra data
ONE = ""  # the user of a server that knows only one
NOBODY = "-"  # who queued a prompt and said no name; nothing is kept for them
JSON = "application/json"
OWN = ("same-origin", "same-site", "none")  # what browsers call the page's own questions

_asking: ContextVar[str] = ContextVar("memguard_asking", default=NOBODY)


class Refusal(Exception):
    """Why a question gets no answer: HTTP status and one line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


def user_of(instance: Any, request: Any) -> str:
    """Return the user who asks.

    Args:
        instance: the server.
        request: to it.

    Raises:
        Refusal: if ComfyUI does not know the user.

    """
    if not args.multi_user:
        return ONE
    try:
        user = str(instance.user_manager.get_request_user_id(request))
    except KeyError:
        raise Refusal(403, "this server has several users; log in as one of them") from None
    if PurePath(user).name != user or user in (NOBODY, "..", "."):  # it becomes the name of a folder
        raise Refusal(403, "this user's name cannot be the name of a folder")
    return user


def owner_of(item: Any) -> str:
    """Return the user who queued an item of ComfyUI's queue; None is no item."""
    if not args.multi_user:
        return ONE
    extra = item[3] if item is not None else {}
    return str(extra.get(KEY, NOBODY)) if isinstance(extra, dict) else NOBODY


def check(request: Any) -> None:
    """Let no page of another site ask through a person's browser.

    Raises:
        Refusal: for such a question, and for a body that is not declared as JSON: browsers send others unasked.

    """
    if not args.enable_cors_header and _foreign(request.headers):
        raise Refusal(403, "this question comes from a page of another site")
    if request.method == "POST" and request.content_type != JSON:
        raise Refusal(415, f"send the question with Content-Type: {JSON}")


def _foreign(headers: Any) -> bool:
    site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
    if site is not None:
        return site not in OWN
    if origin is None:  # no browser
        return False
    hosts = (headers.get("Host"), headers.get("X-Forwarded-Host"))
    return urllib.parse.urlsplit(origin).netloc.lower() not in [host.lower() for host in hosts if host]


def register(instance: Any) -> None:
    """Write beside each prompt that comes in who queued it, where the server knows several users."""
    if not args.multi_user:
        return
    from aiohttp import web

    @web.middleware
    async def noting(request: Any, handler: Any) -> Any:
        if request.method == "POST" and request.path.endswith("/prompt"):
            try:
                _asking.set(user_of(instance, request))
            except Refusal:
                _asking.set(NOBODY)
        return await handler(request)

    instance.app.middlewares.append(noting)
    instance.add_on_prompt_handler(_signed)


def _signed(asked: dict[str, Any]) -> dict[str, Any]:
    """Return a prompt that comes in with its user's name, whatever name it brings itself."""
    extra = asked.get("extra_data")
    return {**asked, "extra_data": {**(extra if isinstance(extra, dict) else {}), KEY: _asking.get()}}
