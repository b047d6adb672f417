"""The sessions of the last jobs, by the name that the host gives a job: its second, which short jobs share.

Part of the WebUI hosts.
"""

from __future__ import annotations

from collections import OrderedDict

from .session import Session

KEPT = 32  # names


class Finished:
    """Sessions that are over."""

    def __init__(self) -> None:
        self._all: OrderedDict[str, list[tuple[float, Session]]] = OrderedDict()

    def keep(self, name: str, begun: float, session: Session) -> None:
        """Keep a session.

        Args:
            name: of its job.
            begun: when the job began, which tells jobs of one name apart.
            session: that is over.

        """
        self._all.setdefault(name, []).append((begun, session))
        self._all.move_to_end(name)
        while len(self._all) > KEPT:
            self._all.popitem(last=False)

    def of(self, name: str) -> list[Session]:
        """Return the sessions of all jobs of a name; a script makes several in one job."""
        return [session for _, session in self._all.get(name, [])]

    def newest(self, name: str) -> list[Session]:
        """Return the sessions of the last job of a name: what the others say is not of its pictures."""
        known = self._all.get(name, [])
        return [session for begun, session in known if begun == known[-1][0]]

    def last(self) -> list[Session]:
        """Return the session that ended last; none before the first."""
        return [next(reversed(self._all.values()))[-1][1]] if self._all else []
