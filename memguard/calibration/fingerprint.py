"""A checkpoint's fingerprint that does not depend on the names that a host gives its tensors, nor on their dtype."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

import torch
from torch import Tensor

PROBES = 1024  # values read from each tensor
UNKNOWN = ""  # the name of weights that cannot be read: it is nobody's, so that no two models share a profile


def fingerprint(weights: Iterable[Tensor]) -> str:
    """Return 16 hex digits that name a UNet or transformer; "" for one whose weights cannot be read.

    Each matrix or kernel contributes its size and the signs of its first values, sorted. Signs are what float32,
    float16 and bfloat16 of the same weights have in common to the last bit: a rounding may go either way, and a value
    that becomes zero keeps its sign. Training changes signs long before a picture changes; scaling a tensor does not.

    Args:
        weights: the parameters of the denoising network, in any order. Weights on the meta device (offloaded) and of
            one byte (quantised: what they stand for is not in them) cannot be read.

    """
    rows = []
    for weight in weights:
        if weight.ndim < 2:
            continue
        if weight.device.type == "meta" or weight.dtype.itemsize < 2 or not weight.dtype.is_floating_point:
            return UNKNOWN
        head = weight.detach().reshape(-1)[:PROBES]  # in logical order, whatever the memory format
        rows.append(struct.pack("<q", weight.numel()) + torch.signbit(head).to("cpu", torch.uint8).numpy().tobytes())
    return hashlib.sha256(b"".join(sorted(rows))).hexdigest()[:16] if rows else UNKNOWN
