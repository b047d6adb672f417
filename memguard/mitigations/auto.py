"""Which mitigations a guard tries, one after the other: the cheapest first.

``auto``: other padding (CLIP-L) or attenuated attention spikes, with delayed guidance, which cost nothing; then other
starting noise, which costs a few predictions; then a neuron set if one was given, else prompt optimisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..troubles import Refused
from .base import Mitigation, Start
from .guidance_delay import GuidanceDelay
from .neuron_mask import NeuronMask
from .noise_adjustment import NoiseAdjustment
from .padding import Padding
from .prompt_optimization import PromptOptimization
from .spike_attenuation import SpikeAttenuation

AUTO = "auto"
ATTEMPTS = 3
EARLY = 900.0  # timestep down to which auto delays guidance (the first tenth)
ITERATIONS = 60  # of prompt optimisation; it ends at its target

Rung = tuple[Mitigation, ...]  # applied together, scored once
Ladder = Callable[[Start], list[Rung]]


def ladder(choice: Any, get: Callable[[str], Mitigation]) -> Ladder:
    """Return the rungs of what a user chose.

    Args:
        choice: None or "auto", a name, a Mitigation, or several of these, tried in order. A NeuronSet's mask among
            others is one of them; with "auto" beside it the mask is auto's last rung.
        get: from a name to a mitigation.

    Raises:
        ValueError: for anything else, or more than three.

    """
    given = [choice] if choice is None or isinstance(choice, str | Mitigation) else list(choice)
    made = [None if each in (None, AUTO) else _named(each, get) for each in given]
    own = [each for each in made if each is not None]
    if len(own) < len(made):
        masks = [each for each in own if isinstance(each, NeuronMask)]
        if len(masks) < len(own):
            raise Refused("mitigation: auto chooses by itself; beside it only a neuron mask can be given")
        return lambda start: automatic(start, masks[0] if masks else None)
    if not 1 <= len(own) <= ATTEMPTS:
        raise Refused(f"mitigation: {len(own)} were given; give one to {ATTEMPTS}, tried in this order, or auto")
    return lambda start: [(each,) for each in own]


def automatic(start: Start, neurons: NeuronMask | None = None) -> list[Rung]:
    """Return the rungs of ``auto`` for a run."""
    cheap: Mitigation = Padding() if start.eos_padded else SpikeAttenuation()
    last: Mitigation = neurons or PromptOptimization(iterations=ITERATIONS)
    return [(cheap, GuidanceDelay(until=EARLY)), (NoiseAdjustment(until=EARLY),), (last,)]


def _named(name: Any, get: Callable[[str], Mitigation]) -> Mitigation:
    if isinstance(name, Mitigation):
        return name
    if not isinstance(name, str):
        raise Refused(f"mitigation is {name!r}; give a name, a mitigation of memguard.mitigations.get, or auto")
    return get(name)


def title(rungs: Sequence[Mitigation]) -> str:
    """Return what one rung is called."""
    return " + ".join(each.TITLE for each in rungs)
