"""Who may use our routes: whoever may use the host's own."""

from __future__ import annotations

from types import MethodType, SimpleNamespace
from typing import Any

from fastapi import Depends, HTTPException
from modules import shared

from . import host

LOGIN = "/login_check"  # gradio asks there whether a caller has logged in; without a login everybody has


def required(app: Any) -> list[Any]:
    """Return what routes depend on: the host's name and password of the API or, without one, the page's login.

    Args:
        app: the host's FastAPI application, with the routes of gradio where it serves the page.

    """
    if host.SDNEXT:
        from . import sdnext

        return sdnext.required()
    if shared.cmd_opts.api_auth:
        from modules.api.api import Api

        pairs = (each.split(":") for each in shared.cmd_opts.api_auth.split(","))
        return [Depends(MethodType(Api.auth, SimpleNamespace(credentials=dict(pairs))))]
    login = next((route.endpoint for route in app.routes if getattr(route, "path", "") == LOGIN), None)
    if login is not None:
        return [Depends(login)]
    from modules import initialize_util

    return [Depends(_nobody)] if any(initialize_util.get_gradio_auth_creds()) else []


def _nobody() -> None:
    raise HTTPException(401, "a login is asked for, and there is no page to log in to; start the WebUI with --api-auth")
