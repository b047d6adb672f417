"""How far a score is from hook to report: files, functions, and moves from one file to another, counted while it runs.

    python benchmarks/way.py                                       # the toy host, and a tiny diffusers pipeline
    COMFYUI_ROOT=/path/to/ComfyUI python benchmarks/way.py comfyui

Counted are memguard's own functions from the beginning of a run to its report: a first-step score, and policy mitigate
with attention scaling.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def counted(run: Callable[[], object]) -> tuple[int, int, int]:
    """Return how many files and functions of memguard a call goes through, and how often it moves between files."""
    own = str(ROOT / "memguard")
    functions: set[tuple[str, str, int]] = set()
    stack: list[str] = [""]
    moves = 0

    def see(frame: types.FrameType, event: str, _: object) -> None:
        nonlocal moves
        if event not in ("call", "return") or not frame.f_code.co_filename.startswith(own):
            return
        if event == "return":
            stack.pop()
            return
        code = frame.f_code
        moves += stack[-1] not in ("", code.co_filename)
        stack.append(code.co_filename)
        functions.add((code.co_filename, code.co_name, code.co_firstlineno))

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        run()
    finally:
        sys.setprofile(before)
    return len({file for file, *_ in functions}), len(functions), moves


def toy() -> dict[str, Callable[[], object]]:
    """Return the runs of the host in tests/core/toy_host.py."""
    from memguard import Guard
    from tests.core.toy_host import sample

    return {"score": lambda: sample(Guard(), ["a famous fox"])}


def diffusers() -> dict[str, Callable[[], object]]:
    """Return the runs of a tiny Stable Diffusion."""
    from memguard import Guard
    from tests.hosts import tiny
    from tests.hosts.contract import profile
    from tests.hosts.test_diffusers import generate

    pipe, known = tiny.sd(), Guard()
    generate(pipe, known, prompt="a red fox")
    flagged = profile(known)
    mitigating = Guard(policy="mitigate", mitigation="attention_scaling", profile=flagged)
    return {
        "score": lambda: generate(pipe, Guard(), prompt="a red fox"),
        "mitigate": lambda: generate(pipe, mitigating, prompt="a red fox"),
    }


def comfyui() -> dict[str, Callable[[], object]]:
    """Return the runs of a tiny SD1 in ComfyUI."""
    pack = types.ModuleType("memguard_pack")
    pack.__path__ = [str(ROOT)]
    sys.modules["memguard_pack"] = pack
    from memguard_pack.tests.hosts.comfyui import host

    host.enter()
    import pytest

    from memguard_pack.memguard import Guard
    from memguard_pack.memguard.hosts.comfyui.watcher import Watcher
    from memguard_pack.tests.hosts.comfyui.scene import Scene, made

    scene = Scene(pytest.MonkeyPatch())
    watched = Watcher(Guard(), clip=scene.clip, explain="never").install(scene.model)
    mitigated = scene.watched(made("attention_scaling"))[0]
    return {"score": lambda: scene.sample(watched), "mitigate": lambda: scene.sample(mitigated)}


def main() -> None:
    """Print a row for each run."""
    warnings.filterwarnings("ignore")
    print("host       run       files  functions  moves")
    for scene in [comfyui] if "comfyui" in sys.argv[1:] else [toy, diffusers]:
        for name, run in scene().items():
            run()  # what is imported and kept on the way is not of the way
            print(f"{scene.__name__:10} {name:9} {'{:5} {:10} {:6}'.format(*counted(run))}")


if __name__ == "__main__":
    main()
