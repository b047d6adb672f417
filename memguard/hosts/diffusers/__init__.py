"""The diffusers host.

``attach`` watches a pipeline, ``scan`` scores lists of prompts, ``prescan`` those that stand out at a smaller size,
``calibrate`` makes a profile, ``explain`` says which words and places drive a score, ``treat`` applies a mitigation to
every run, ``optimize_prompt`` moves a prompt. diffusers itself comes with the pipeline.
"""

from .calibrating import calibrate
from .explaining import explain
from .prescanning import prescan
from .scanning import scan
from .treating import optimize_prompt, treat
from .watch import attach

__all__ = ["attach", "calibrate", "explain", "optimize_prompt", "prescan", "scan", "treat"]
