"""The test bed: a small Stable Diffusion model that really memorizes, its prompts and training pictures.

``pipeline()`` needs the ``diffusers`` extra.
"""

from .loader import STAGES, Original, originals, pipeline, prompts

__all__ = ["STAGES", "Original", "originals", "pipeline", "prompts"]
