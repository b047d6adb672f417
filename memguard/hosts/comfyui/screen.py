"""What a person sees while a workflow runs: text on the sampler node, and an event for the page.

Part of the ComfyUI host. The server module is used
only if ComfyUI has loaded it: in-process tests and other front ends have none.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from typing import Any

from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

from ...records import Report
from ...wording import message
from . import callers

log = logging.getLogger("memguard")

EVENT = "memguard.report"
KEPT = 64

payloads: deque[dict[str, Any]] = deque(maxlen=KEPT)  # of the last events, for a page that was reloaded


def place() -> tuple[str | None, str | None]:
    """Return the ids of the prompt and of the node that is being executed."""
    context = get_executing_context()
    return (None, None) if context is None else (context.prompt_id, context.node_id)


def index() -> int | None:
    """Return which call of the node is being executed, where it is called once for each entry of a list."""
    context = get_executing_context()
    return None if context is None else context.list_index


def shown(node_id: str | None) -> str | None:
    """Return the node on the page that a node belongs to which another node made while it was executed."""
    dynamic = _dynamic(place()[0])
    return node_id if dynamic is None or node_id is None else dynamic.get_display_node_id(node_id)


def owner() -> str:
    """Return the user whose prompt is being executed; "" where the server knows one user only."""
    return callers.owner_of(_running(place()[0]))


def server() -> Any:
    """Return the running server, or None."""
    module = sys.modules.get("server")
    return getattr(getattr(module, "PromptServer", None), "instance", None)


def running_prompt(prompt_id: str | None) -> dict[str, Any]:
    """Return the graph that is being executed, node id -> node, with the nodes that others made meanwhile.

    Empty where it is unknown.
    """
    dynamic = _dynamic(prompt_id)
    if dynamic is not None:
        return {node_id: dynamic.get_node(node_id) for node_id in dynamic.all_node_ids()}
    item = _running(prompt_id)
    return item[2] if item else {}


def _dynamic(prompt_id: str | None) -> Any:
    """Return what the executor knows of the nodes of a prompt, or None."""
    state = get_progress_state()
    return state.dynprompt if prompt_id is not None and state.prompt_id == prompt_id else None


def workflow_of(prompt_id: str | None) -> str | None:
    """Return the id of the workflow that is being executed; None where the page that queued it gave none."""
    found: Any = (_running(prompt_id) or (None,) * 4)[3]
    for key in ("extra_pnginfo", "workflow", "id"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def _running(prompt_id: str | None) -> Any:
    """Return the queue's item (number, prompt id, graph, extra data, outputs, ...) that is being executed, or None."""
    instance = server()
    if instance is None or prompt_id is None:
        return None
    running, _ = instance.prompt_queue.get_current_queue_volatile()
    return next((item for item in running if item[1] == prompt_id), None)


def show(report: Report, home: str | None = None, again: bool = False) -> None:
    """Show a report on the node that is being executed and send it to the page that asked for the run.

    Args:
        report: what was found.
        home: id of the MemGuard node whose badge shows it; None is the node that is being executed.
        again: whether the run was shown before with the same message: log and node have it already.

    """
    instance = server()
    prompt_id, node_id = place()
    if report.policy != "observe" and report.flagged and not again:
        log.warning("%s", message(report))
    if instance is None or node_id is None:
        return
    node_id, home = shown(node_id), shown(home)
    if not again:
        instance.send_progress_text(message(report), node_id, instance.client_id)
    payload = {
        "home": home or node_id,
        "node_id": node_id,
        "prompt_id": prompt_id,
        "workflow": workflow_of(prompt_id),
        "report": report.to_dict(),
    }
    whose = owner()
    payloads.append(payload | ({"owner": whose} if whose else {}))
    if instance.client_id is not None or whose == callers.ONE:  # without a client all pages are told
        instance.send_sync(EVENT, payload, instance.client_id)
