"""A checkpoint's fingerprint that does not depend on the names that a host gives its tensors.

May import: torch and the standard library.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

import torch
from torch import Tensor

PROBES = 4  # values read from each tensor


def fingerprint(weights: Iterable[Tensor]) -> str:
    """Return 16 hex digits that name a UNet or transformer.

    Each matrix or kernel contributes its size and its first values, rounded to half precision and sorted, so that the
    same checkpoint has the same fingerprint under ldm and diffusers names, in float32 and in float16.

    Args:
        weights: the parameters of the denoising network, in any order.

    """
    rows = []
    for weight in weights:
        if weight.ndim < 2:
            continue
        size = struct.pack("<q", weight.numel())
        if weight.device.type == "meta" or weight.dtype.itemsize < 2 or not weight.dtype.is_floating_point:
            rows.append(size)  # quantised weights have no values that survive a conversion
            continue
        head = weight.detach().reshape(-1)[:PROBES]  # in logical order, whatever the memory format
        rows.append(size + head.to("cpu", torch.float16).numpy().tobytes())
    return hashlib.sha256(b"".join(sorted(rows))).hexdigest()[:16]
