"""The test bed: a small Stable Diffusion model that really memorizes, its prompts and training pictures.

``pipeline()`` needs the ``diffusers`` extra. May import: diffusers, transformers, safetensors; nothing of a host.
"""

from .loader import STAGES, Original, held_out, originals, pipeline

__all__ = ["STAGES", "Original", "held_out", "originals", "pipeline"]
