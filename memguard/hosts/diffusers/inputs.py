"""The way back through a pipeline's text encoders: from the encoded prompt to the words' own embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .pipes import denoiser, family
from .rows import Prompts, Unscored
from .tokens import columns

TEMPLATE = (
    "the text encoder reads more tokens than the model gets (a template around the prompt); "
    "use respect_to='encoded' or method ablation"
)


def input_gradients(pipe: Any, prompts: Prompts, text: str) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Encode a prompt with its graph, and return the pullback for ``gradient.significance``.

    Args:
        pipe: the pipeline.
        prompts: what it encoded in its run.
        text: the prompt.

    Raises:
        Unscored: if no text encoder can be followed; from the pullback, if its columns are not those of the prompt.

    """
    names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    encoders: list[tuple[str, Any]] = [(name, getattr(pipe, name, None)) for name in names]
    leaves: list[tuple[str, Tensor]] = []
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        for name, encoder in encoders:
            if encoder is not None:

                def hook(_module: Any, _inputs: Any, output: Tensor, name: str = name) -> Tensor:
                    # a float32 leaf, as for the encoded prompt: contributions add up in float32
                    leaf = output.detach().float().requires_grad_(True)
                    leaves.append((name, leaf))
                    return leaf.to(output.dtype)

                for table in _tables(encoder):
                    stack.callback(table.register_forward_hook(hook).remove)
        encoded = prompts.encode([text])
    if not leaves or encoded.text.grad_fn is None:
        raise Unscored("the text encoder cannot be followed backwards; use respect_to='encoded' or method ablation")
    count = encoded.text.shape[1]
    starts = [part[0].column for part in columns(pipe, text, count)[0]]

    def pullback(gradient: Tensor, pooled: Tensor | None) -> Tensor:
        squares = gradient.new_zeros(len(gradient), count)
        for image in range(len(gradient)):
            outputs, seeds = [encoded.text], [gradient[image : image + 1].to(encoded.text)]
            if pooled is not None and encoded.pooled is not None:
                outputs, seeds = [*outputs, encoded.pooled], [*seeds, pooled[image : image + 1].to(encoded.pooled)]
            inputs = [leaf for _, leaf in leaves]
            with _at(encoded.text.device, [encoder for _, encoder in encoders if encoder is not None]):
                found = torch.autograd.grad(outputs, inputs, seeds, retain_graph=True, allow_unused=True)
            for (name, _), grad in zip(leaves, found, strict=True):
                start = _start(pipe, name, starts)
                if grad is not None and start is not None:
                    if start + grad.shape[1] > count:  # a template around the prompt, taken off again behind it
                        raise Unscored(TEMPLATE)
                    part = grad[0].float().pow(2).sum(-1).to(squares)
                    squares[image, start : start + len(part)] += part
        return squares

    return pullback


@contextmanager
def _at(device: torch.device, encoders: list[Any]) -> Iterator[None]:
    """Hold text encoders where they ran: offloading moved them away when the denoiser was called.

    Weights that are loaded layer by layer are on "meta" in between; their graph keeps what it needs.
    """
    homes = [(encoder, next(encoder.parameters()).device) for encoder in encoders]
    moved = [(encoder, home) for encoder, home in homes if home != device and home.type != "meta"]
    try:
        for encoder, _ in moved:
            encoder.to(device)
        yield
    finally:
        for encoder, home in moved:
            encoder.to(home)


def _tables(encoder: Any) -> list[nn.Module]:
    """Return the modules that may look a token up: T5 shares its table's weight with a module that it never calls."""
    weight = encoder.get_input_embeddings().weight
    return [part for part in encoder.modules() if isinstance(part, nn.Embedding) and part.weight is weight]


def _start(pipe: Any, encoder: str, starts: list[int]) -> int | None:
    """Return the first column of an encoder's tokens; None for Flux's CLIP, which gives the pooled vector only."""
    if encoder == "text_encoder_3":
        return starts[-1]
    module = denoiser(pipe)
    if encoder == "text_encoder" and module is not None and family(module) == "flux":
        return None
    return starts[0]
