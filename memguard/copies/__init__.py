"""Which pictures are copies of others: cropped, mirrored, resized, recompressed, recoloured, framed or written on.

``similarity(a, b)`` compares two stacks of pictures and needs nothing but torch; the rest keeps an index of a folder
and searches it. Nothing is fetched, and no host is known here.
"""

from ..table import COPIES
from .matching import similarity

# similarity from which a picture counts as a copy; docs/evidence/audits/copies.md
THRESHOLD: float = COPIES["threshold"].default

__all__ = ["THRESHOLD", "similarity"]
