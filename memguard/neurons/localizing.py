"""One localisation from beginning to end, whatever the host: detect, search, and write down what was found."""

from __future__ import annotations

from typing import Literal

from ..records import NeuronSet
from ..table import NEURONS
from ..troubles import Refused
from ..version import VERSION
from . import fast, official
from .activations import ActivationStatistics
from .evaluation import Trials, similarity_of_seeds
from .msssim import taps
from .outcome import Outcome, by_layer
from .selection import THRESHOLD, Lists, Round, candidates, rounds

Mode = Literal["fast", "official"]
Parity = Literal["official", "repaired"]
MODES = ("fast", "official")
PARITIES = ("official", "repaired")


def parity_of(mode: str, parity: str | None) -> str | None:
    """Return what the functions of this room take for ``parity``; None asks for that of the mode.

    Raises:
        ValueError: for an unknown mode or parity.

    """
    for name, value, known in (("mode", mode, MODES), ("parity", parity, (None, *PARITIES))):
        if value not in known:
            raise Refused(f"{name} is {value!r}; use one of {', '.join(map(str, known))}")
    chosen = parity or ("official" if mode == "official" else "repaired")
    return "official" if chosen == "official" else None


def search(
    trials: Trials, statistics: ActivationStatistics, prompt: str, mode: Mode, threshold: float = THRESHOLD
) -> NeuronSet:
    """Find the neurons that carry a prompt's memory.

    A prompt is taken for memorized if the noise differences of two seeds are more alike than ``threshold``; only seeds
    with such a twin count. For any other prompt the set is empty, and its provenance says so.

    Args:
        trials: the prompt on its model.
        statistics: of ordinary prompts.
        prompt: for the provenance.
        mode: "fast", or "official": NeMo's own procedure.
        threshold: MS-SSIM above which noise differences are of the same picture.

    Raises:
        ValueError: for a threshold outside 0..1, or statistics that are not of this model.

    """
    NEURONS["threshold"].read("threshold", threshold)
    probe, parity = trials.probe, trials.parity
    statistics.check(probe.layers, probe.model)
    alike = similarity_of_seeds(trials.unblocked, parity)
    before = max(alike) if alike else None
    if alike:
        trials.keep([image for image, value in enumerate(alike) if value > threshold])
    outcome, after = None, None
    if trials.images:
        activations = probe.activations()

        def select(r: Round) -> Lists:
            return candidates(activations, statistics, r.theta, r.top_k, parity)

        if mode == "official":
            outcome = official.search(trials, select, threshold, parity)
        else:
            scores = statistics.zscores(activations)
            outcome = fast.search(trials, select, rounds(parity), scores, threshold)
        trials.stage, trials.neurons = "done", len(outcome.neurons)
        after = trials.score(outcome.neurons)
    return NeuronSet(
        by_layer(outcome.neurons, probe.layers) if outcome else {},
        trials.scale,
        probe.model,
        _provenance(trials, prompt, mode, threshold, outcome),
        before,
        after,
        trials.rows,
    )


def _provenance(trials: Trials, prompt: str, mode: str, threshold: float, outcome: Outcome | None) -> str:
    size = trials.x.shape[-2:]
    spent = trials.state.spent(trials.probe.rows)
    said = [
        f"memguard {VERSION}, NeMo, mode {mode}, parity {trials.parity or 'repaired'}, timestep {trials.t:g}",
        f"MS-SSIM with {taps(*size)} taps on {size[1]} x {size[0]} latents",
        f"{len(trials.images)} of {len(trials.x)} seeds have a twin above {threshold:g}",
    ]
    if outcome is None:
        said.append("the prompt does not look memorized")
    if outcome is not None:
        at = f"theta {outcome.round.theta:g}, k {outcome.round.top_k}"
        said.append(f"{len(outcome.neurons)} of {outcome.candidates} candidates ({at})")
        if not outcome.reached:
            said.append(
                f"the threshold was not reached, so the set holds what all candidates reach, {outcome.limit:.4g}"
            )
        said += outcome.notes
    said.append(f"{spent.total} rows ({spent.forward} forward, {spent.backward} backward)")
    return "; ".join([*said, f"prompt: {' '.join(prompt.split())}"])
