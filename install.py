"""Run by ComfyUI-Manager after an installation: checks versions and prints one line. Installs nothing, imports no host.

MemGuard's core needs torch, numpy, einops, safetensors and Pillow, which every host has.
"""

import sys
from importlib import metadata

NEEDS = {"torch": (2, 1), "numpy": (1, 25), "einops": (0, 6), "safetensors": (0, 4), "Pillow": (9, 5)}


def missing() -> list[str]:
    """Return what is absent or too old, one phrase each."""
    wrong = []
    for name, least in NEEDS.items():
        wanted = ".".join(map(str, least))
        try:
            have = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} >= {wanted} is missing")
            continue
        numbers = [int(part) for part in have.split("+")[0].split(".") if part.isdigit()]
        if tuple(numbers[: len(least)]) < least:
            wrong.append(f"{name} is {have}, needs >= {wanted}")
    if sys.version_info < (3, 10):
        wrong.append(f"Python is {sys.version.split()[0]}, needs >= 3.10")
    return wrong


if __name__ == "__main__":
    print("MemGuard: " + ("; ".join(missing()) or "everything it needs is installed"))
