"""What became of tests that ran elsewhere, by names that both sides give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HOST = "server"  # the parameter that the outer tests have and the inner ones do not


def called(item: Any) -> str:
    """Return the name of a test: its class, its function and its parameters."""
    given = getattr(item, "callspec", None)
    params = {} if given is None else {name: value for name, value in given.params.items() if name != HOST}
    return f"{item.cls.__name__}.{item.originalname} {params or ''}".strip()


class Outcomes:
    """A plugin of pytest that runs the named tests alone.

    Args:
        names: of the tests.

    Attributes:
        found: outcome and text of each test: the failure, or why it was skipped.

    """

    def __init__(self, names: Sequence[str]) -> None:
        self._wanted, self._names = set(names), dict[str, str]()
        self.found: dict[str, tuple[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if called(item) in self._wanted]
        self._names = {item.nodeid: called(item) for item in items}

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.found = {name: ("failed", report.longreprtext) for name in self._wanted}

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = self._names[report.nodeid]
        if report.failed:
            before = self.found.get(name, ("failed", ""))[1]
            self.found[name] = "failed", f"{before}\n{report.longreprtext}".strip()
        elif report.skipped:
            self.found[name] = "skipped", str(report.longrepr[2]).removeprefix("Skipped: ")
        elif report.when == "call":
            self.found[name] = "passed", ""
