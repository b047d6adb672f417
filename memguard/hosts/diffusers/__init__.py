"""The diffusers host.

``attach`` watches a pipeline, ``scan`` scores lists of prompts, ``calibrate`` makes a profile, ``explain`` says which
words and places drive a score, ``treat`` applies a mitigation to every run, ``optimize_prompt`` moves a prompt.

Room: memguard.hosts. May import: the core of memguard, torch, einops. diffusers itself comes with the pipeline.
"""

from .calibrating import calibrate
from .explaining import explain
from .scanning import scan
from .treating import optimize_prompt, treat
from .watch import attach

__all__ = ["attach", "calibrate", "explain", "optimize_prompt", "scan", "treat"]
