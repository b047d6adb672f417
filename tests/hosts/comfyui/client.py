"""Talks to a running ComfyUI as the page does: posts a graph, listens on the websocket, reads the history."""

import asyncio
import json
import struct
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from typing import Any

import aiohttp

TEXT = 3  # binary message type of text under a node
PATIENCE = 1500  # seconds for one prompt; a calibration is 80 pairs, and the machine may be busy


@dataclass
class Outcome:
    """What came back from one prompt."""

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)  # node id, text below it
    outputs: dict[str, Any] = field(default_factory=dict)
    prompt_id: str = ""

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the data of one kind of event."""
        return [data for name, data in self.events if name == kind]

    @property
    def ran(self) -> set[str]:
        """Return the ids of the nodes that were executed, not taken from the cache."""
        return {data["node"] for data in self.of("executing") if data["node"]}


class Client:
    """One browser page.

    Args:
        url: of the server.
        workflow: id that the page gave to its workflow; None as a script, which gives none.

    """

    def __init__(self, url: str, workflow: str | None = None) -> None:
        self.url = url
        self.workflow = workflow
        self.id = uuid.uuid4().hex

    def run(self, graph: dict[str, Any]) -> Outcome:
        """Queue a graph and wait until it has ended, well or not."""
        return asyncio.run(asyncio.wait_for(self._run(graph), PATIENCE))

    def refused(self, graph: dict[str, Any]) -> dict[str, Any]:
        """Queue a graph that the server must refuse, and return its answer."""
        try:
            self._post(graph)
        except urllib.error.HTTPError as error:
            return json.load(error)
        raise AssertionError("the server took the graph")

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return the server's answer to a question of the page."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)

    async def _run(self, graph: dict[str, Any]) -> Outcome:
        outcome = Outcome()
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={self.id}", max_msg_size=0) as socket,
        ):
            outcome.prompt_id = self._post(graph)
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY:
                    self._take_binary(message.data, outcome)
                elif message.type == aiohttp.WSMsgType.TEXT:
                    event = json.loads(message.data)
                    outcome.events.append((event["type"], event["data"]))
                    if event["type"] == "executing" and event["data"]["node"] is None:
                        break  # the history is written by now
        with urllib.request.urlopen(f"{self.url}/history/{outcome.prompt_id}", timeout=60) as reply:
            outcome.outputs = json.load(reply).get(outcome.prompt_id, {}).get("outputs", {})
        return outcome

    def _post(self, graph: dict[str, Any]) -> str:
        extra = {"extra_pnginfo": {"workflow": {"id": self.workflow}}} if self.workflow else {}
        return self.ask("POST", "/prompt", {"prompt": graph, "client_id": self.id, "extra_data": extra})["prompt_id"]

    @staticmethod
    def _take_binary(data: bytes, outcome: Outcome) -> None:
        (kind,) = struct.unpack(">I", data[:4])
        if kind == TEXT:
            (length,) = struct.unpack(">I", data[4:8])
            outcome.texts.append((data[8 : 8 + length].decode(), data[8 + length :].decode()))
