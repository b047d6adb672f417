"""``statistics`` and ``select``: how value neurons respond to prompts. Only the text encoder and ``to_v`` are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from ...neurons import selection
from ...neurons.activations import ActivationStatistics, Tally
from ...records import NeuronSet
from . import pipes
from .probing import activations, probe_of, start, value_layers

PROMPTS = 32  # that are encoded together


def statistics(
    pipe: Any,
    prompts: Iterable[str],
    layers: str | Sequence[str] | None = None,
    *,
    batch_size: int = PROMPTS,
    progress: Callable[[int], None] | None = None,
) -> ActivationStatistics:
    """Measure how strongly value neurons respond to ordinary prompts; memory is flat in their number, no UNet pass.

    Args:
        pipe: a diffusers pipeline with a UNet.
        prompts: ordinary texts, some thousands; may be a generator.
        layers: names, or "all" cross-attention; None takes those of the down blocks and the middle (NeMo's seven).
        batch_size: prompts that are encoded together.
        progress: called with the number of prompts that are done.

    Raises:
        ValueError: for fewer than two prompts, one that is no text or that encodes to NaN, or an unknown layer.

    """
    module = pipes.text_to_image(pipe)
    chosen, tally, source = value_layers(module, layers), Tally(), iter(prompts)
    encoder = None
    while batch := list(islice(source, batch_size)):
        wrong = [prompt for prompt in batch if not isinstance(prompt, str)]
        if wrong:
            raise ValueError(f"prompt {tally.count + batch.index(wrong[0]) + 1} is {wrong[0]!r:.60}; give texts")
        encoder = encoder or start(pipe, batch[0], 1, 0).prompts
        found = activations(chosen, encoder.encode(batch).text)
        for row, prompt in enumerate(batch):
            try:
                tally.add({name: values[row] for name, values in found.items()})
            except ValueError as error:
                raise ValueError(f"prompt {prompt!r:.60}: {error}, or leave the prompt out") from None
        if progress is not None:
            progress(tally.count)
    pipe.maybe_free_model_hooks()
    return tally.result(pipes.name_of(module))


def select(pipe: Any, prompt: str, statistics: ActivationStatistics, theta: float, top_k: int = 0) -> NeuronSet:
    """Return NeMo's candidates: neurons whose z-score is above theta, and the ``top_k`` largest of each layer.

    Raises:
        ValueError: for a theta or top_k below 0, or statistics that are not of this model.

    """
    probe = probe_of(pipe, prompt, 1, 0, list(statistics.mean))
    pipe.maybe_free_model_hooks()
    statistics.check(probe.layers, probe.model)
    found = selection.candidates(probe.activations(), statistics, theta, top_k)
    indices = {name: tuple(indices) for name, indices in found.items() if indices}
    said = f"candidates, theta {theta:g}, k {top_k}; prompt: {' '.join(prompt.split())}"
    return NeuronSet(indices, 0.0, probe.model, said)
