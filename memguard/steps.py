"""Which step of a sampler a model call belongs to: the one counter of hosts, guard and detectors.

Samplers of higher order call the model several times within a step: at its own noise level, between two levels, or
ahead at the next one. A call belongs to the step whose level it has reached, step i where level_i >= level > level_i+1,
and the first call of a step stands for it.
"""

from __future__ import annotations

from collections.abc import Iterable

NEAR = 1e-4  # relative: hosts compute a level in several ways


class Steps:
    """Counts the steps of one run by noise level (sigma, or the timestep).

    Args:
        levels: of the steps, falling; the level that the last one ends at is not among them.

    """

    def __init__(self, levels: Iterable[float]) -> None:
        self.levels = [float(level) for level in levels]

    @classmethod
    def of_calls(cls, levels: Iterable[float], between: int = 0) -> Steps:
        """Return the counter of a schedule that lists a level for each model call.

        Args:
            levels: of the calls; neighbours that are equal belong to one step.
            between: how many steps, from the first on, have a second level between their own and the next.

        """
        found: list[float] = []
        for level in map(float, levels):
            if not found or level != found[-1]:
                found.append(level)
        return cls(found[: 2 * between + 1 : 2] + found[2 * between + 1 :])

    @property
    def count(self) -> int:
        """The number of steps."""
        return len(self.levels)

    def of(self, level: float) -> int:
        """Return the index of the step that a call at a level belongs to."""
        return max(0, sum(each * (1 + NEAR) >= level for each in self.levels) - 1)


class Unlisted:
    """Counts the steps of a run whose host tells how many there are and no schedule; its calls come in order.

    Args:
        steps: of the run.
        calls: that the sampler makes.

    """

    def __init__(self, steps: int, calls: int) -> None:
        self.steps, self.calls = steps, calls
        self._number = -1
        self._changes = -1
        self._repeats = False  # whether neighbouring calls share a level: the sampler looks ahead and does not halve
        self._last: float | None = None

    @property
    def count(self) -> int:
        """The number of steps."""
        return self.steps or self.calls

    def of(self, level: float) -> int:
        """Return the index of the step that the next call belongs to."""
        self._number += 1
        if level == self._last:
            self._repeats = True
        else:
            self._changes += 1
        self._last = level
        if self._repeats or self.calls <= self.steps or not self.steps:
            return self._changes
        return self._number * self.steps // self.calls
