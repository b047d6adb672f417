"""Mounts the repository as the package ``memguard_pack``, as ComfyUI and the WebUIs mount it under names of their own.

Doors (nodes/, extension/) are imported through it, and so are helpers of tests: ``memguard_pack.tests.hosts...``.
"""

import sys
import types
from pathlib import Path

if "memguard_pack" not in sys.modules:
    pack = types.ModuleType("memguard_pack")
    pack.__path__ = [str(Path(__file__).parents[1])]
    sys.modules["memguard_pack"] = pack
