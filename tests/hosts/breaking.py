"""Break each function of a host's code on purpose: none of them costs the picture, all of them are told of.

The functions are found, not listed: those of the host's package that run while a picture is sampled. A host's test
file subclasses ``BreakingContract`` and fills in ``host`` (``tests.hosts.contract.Host``), ``PACKAGE`` and ``treated``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from .contract import Guard, Host, MemorizationStop, profile
from .ours import MEMGUARD, ours

DETECTORS = ("text_noise_norm", "attention_entropy")
TREATMENTS = {
    "padding": {},
    "attention_scaling": {},
    "guidance_delay": {},
    "noise_adjustment": {"rounds": 1},
}


class Broken(Exception):
    """What a broken function raises; a programmer's text that nobody may see as a reason."""


def functions(package: str, run: Callable[[], Any]) -> list[tuple[str, str]]:
    """Return (module, qualified name) of the functions of a package that ``run`` calls, in the order of first calls."""
    folder = str(Path(sys.modules[package].__file__).parent)
    found: dict[tuple[str, str], None] = {}

    def see(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(folder) and "<" not in code.co_qualname:
            found[frame.f_globals["__name__"], code.co_qualname] = None

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        run()
    finally:
        sys.setprofile(before)
    return list(found)


@contextmanager
def broken(package: str, module: str, name: str) -> Iterator[None]:
    """Let one function raise whenever it is called, wherever it was imported to."""

    def fails(*_: Any, **__: Any) -> Any:
        raise Broken("list index out of range")

    *owners, last = name.split(".")
    places: list[Any] = [sys.modules[module]]
    for owner in owners:
        places = [getattr(places[0], owner)]
    original = vars(places[0])[last]
    if not owners:
        places = [m for n, m in list(sys.modules.items()) if n.startswith(package) and vars(m).get(last) is original]
    stand_in: Any = property(fails) if isinstance(original, property) else fails
    if isinstance(original, classmethod | staticmethod):
        stand_in = staticmethod(fails)
    try:
        for place in places:
            setattr(place, last, stand_in)
        yield
    finally:
        for place in places:
            setattr(place, last, original)


class BreakingContract:
    """The suite. ``host`` is a fixture of the subclass."""

    PACKAGE = ""  # of the host, in the memguard of ``tests.hosts.ours``
    GUARDS: frozenset[str] = frozenset()  # names of what stands around the hooks and is no hook itself

    def treated(self, host: Host, mitigation: Any) -> torch.Tensor:
        """Sample as ``host.sample`` under a mitigation without a guard."""
        raise NotImplementedError

    def each(self, host: Host, run: Callable[[], Any], wrong: Callable[[Any], str]) -> None:
        """Break one function after the other; ``wrong`` says what is wrong with what a run returned or raised."""
        names = functions(self.PACKAGE, run)
        assert len(names) > 10
        hooks, failures = host.hooks(), []
        for module, name in names:
            if name in self.GUARDS:
                continue
            with broken(self.PACKAGE, module, name):
                try:
                    found = run()
                except Exception as error:
                    found = error
            said = f"{found!r}" if isinstance(found, Exception) else wrong(found)
            said += "" if host.hooks() == hooks else " a hook was left"
            if said:
                failures.append(f"{module.removeprefix(self.PACKAGE)} {name}: {said}")
        assert not failures, "\n".join(failures)

    @pytest.mark.parametrize("policy", ["observe", "warn"])
    @pytest.mark.parametrize("reference", ["negative", "empty"])
    def test_watching(self, host: Host, policy, reference):
        cfg = 7.5 if reference == "negative" else 1.0
        plain, guards = host.sample(None, cfg=cfg), []

        def run():
            guards.append(Guard(DETECTORS, policy, reference=reference))
            return host.sample(guards[-1], cfg=cfg)

        def wrong(found):
            report = guards[-1].report
            if not torch.equal(found, plain):
                return "another picture"
            if any("list index" in finding.status for finding in report.findings):
                return "a programmer's text as a reason"
            return ""

        assert torch.equal(run(), plain)
        self.each(host, run, wrong)

    def test_stopping(self, host: Host):
        guard = Guard(DETECTORS)
        host.sample(guard)
        saved, guards = profile(guard), []

        def run():
            guards.append(Guard(DETECTORS, "stop", profile=saved))
            return host.sample(guards[-1])

        def stops():
            with pytest.raises(MemorizationStop) as stopped:
                run()
            return str(stopped.value)

        self.each(host, stops, lambda said: "a programmer's text as a reason" if "list index" in said else "")

    @pytest.mark.parametrize("mitigation", TREATMENTS)
    def test_mitigating(self, host: Host, monkeypatch, mitigation):
        guard = Guard()
        plain = host.sample(guard)
        saved, guards = profile(guard), []
        monkeypatch.setattr(f"{MEMGUARD}.loop.helped", lambda *_: True)

        def run():
            given = ours("mitigations").get(mitigation, **TREATMENTS[mitigation])
            guards.append(Guard(policy="mitigate", mitigation=given, profile=saved))
            return host.sample(guards[-1])

        treated = run()
        assert not torch.equal(treated, plain)

        def wrong(found):
            report = guards[-1].report
            same, kept = torch.equal(found, plain), any(attempt.kept for attempt in report.attempts)
            if any("ended the mitigation after" in note for note in report.notes):
                return ""  # it broke at a later step, and the report says from where on the picture goes on without
            if not same and not torch.equal(found, treated):
                return "a picture that is neither plain nor treated"
            if same and (report.actions or kept):
                return f"said to be treated: {report.actions}, {report.attempts}"
            if not same and not report.actions:
                return "said to be plain"
            lines = [line for attempt in report.attempts for line in attempt.changes]
            return "a programmer's text as a reason" if any("list index" in line for line in lines) else ""

        self.each(host, run, wrong)

    @pytest.mark.parametrize("mitigation", TREATMENTS)
    def test_treating(self, host: Host, caplog, mitigation):
        plain = host.sample(None)
        given = ours("mitigations").get(mitigation, **TREATMENTS[mitigation])

        def run():
            caplog.clear()
            return self.treated(host, given)

        treated = run()
        assert not torch.equal(treated, plain)

        def wrong(found):
            if not torch.equal(found, plain) and not torch.equal(found, treated):
                return "a picture that is neither plain nor treated"
            warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
            if not warned and not torch.equal(found, treated):
                return "no warning"
            return "a programmer's text as a warning" if any("list index" in line for line in warned) else ""

        self.each(host, run, wrong)
