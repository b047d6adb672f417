"""Every pipeline that diffusers' own tests know how to build tiny, with and without MemGuard: what breaks or lies.

The recipes (``get_dummy_components`` and ``get_dummy_inputs``) come from a source tree of diffusers, beside the
installed one. A row is good where the watched output equals the plain one, nothing raises, no reason is a programmer's
text, no run is killed by a mitigation that is attached, and no action is reported of an unchanged picture.

    DIFFUSERS_SRC=/path/to/diffusers python benchmarks/matrix_diffusers.py [--only REGEX] [--watch] [--out rows.jsonl]

Some recipes load tiny tokenizers from the hub; --hub FILE is imported first, where a file of yours stands in for it.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import json
import logging
import os
import re
import runpy
import signal
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RAW = re.compile(
    r"Error|Traceback|has no attribute|size of tensor|out of bounds|unexpected keyword|mat1|inside MemGuard"
)
PICTURES = re.compile(r"img2img|inpaint|image2video|image_to_video|video2|pix2pix|edit|upscale|combined|_i2")
CHOSEN = {"paraphrase": {"text": "a crimson fox"}, "noise_adjustment": {"rounds": 1}}
CHOSEN |= {"prompt_optimization": {"iterations": 2}}
LOOPS = {
    "mitigate": ("guidance_delay", "noise_adjustment", "prompt_optimization"),
    "mitigate, other text": ("padding", "attention_scaling", "paraphrase"),
}


class Late(BaseException):
    """A recipe took too long."""


def flat(out):
    """All numbers of a pipeline's output, as a list of tensors."""
    import numpy as np
    import torch

    if isinstance(out, torch.Tensor):
        return [out.detach().float().cpu().nan_to_num(7)]
    if isinstance(out, dict):
        return [tensor for value in out.values() for tensor in flat(value)]
    if isinstance(out, list | tuple):
        return [tensor for value in out for tensor in flat(value)]
    return (
        [] if out is None or isinstance(out, bool | str) else [torch.as_tensor(np.array(out, "float32")).nan_to_num(7)]
    )


def same(one, other) -> bool:
    import torch

    return bool(one) and len(one) == len(other) and all(map(torch.equal, one, other))


def low(report):
    """A profile of a report's run under which ordinary prompts score next to nothing."""
    from memguard.calibration import Conditions, Profile, fit
    from memguard.calibration.conditions import EMPTY, negative_of

    first = report.findings[0]
    size = (8, 8) if report.noise_gap_map is None else tuple(report.noise_gap_map.shape[-2:])
    facts = (report.model, report.family, size, first.sigma or 1.0, first.timestep, 1, 4, "", first.reference, "")
    negative = negative_of(report.negative_prompt) or EMPTY
    ordinary = [2e-9 * 1.1 ** (number / 50) for number in range(100)]
    return Profile(Conditions(*facts, 7.5, negative=negative), {"text_noise_norm": fit(ordinary)})


def drawn(part):
    """Draw weights that a recipe leaves at zero, as trained ones never are: no prompt would change a prediction."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in part.parameters():
            if weight.is_floating_point() and not weight.any():
                weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))


class Row:
    """One pipeline and what was found; ``watch`` leaves mitigations and words out."""

    def __init__(self, cls, recipe, watch=False):
        self.cls, self.recipe, self.watch = cls, recipe, watch
        self.found: dict = {"pipeline": cls.__name__, "recipe": type(recipe).__module__}
        self.bad: list[str] = []

    def call(self, pipe, block=None):
        import torch

        torch.manual_seed(0)
        given = {"device": "cpu"} if "device" in inspect.signature(self.recipe.get_dummy_inputs).parameters else {}
        with block or nullcontext():
            return flat(pipe(**self.recipe.get_dummy_inputs(**given)))

    def fill(self, said: list[str]) -> None:
        """Run everything; ``said`` collects what MemGuard logs."""
        import torch

        import memguard
        from memguard import Guard, mitigations

        torch.manual_seed(0)
        pipe = self.cls(**self.recipe.get_dummy_components())
        pipe.set_progress_bar_config(disable=True)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                drawn(part.eval())
        plain = self.call(pipe)
        self.found["repeats"] = same(plain, self.call(pipe))
        self.found["predictions"] = self.predictions(pipe)
        for label, settings in (("watch", {}), ("empty", {"reference": "empty"})):
            guard = Guard(("text_noise_norm", "attention_entropy"), **settings)
            self.compare(label, plain, lambda guard=guard: self.call(pipe, guard.attach(pipe)))
            self.found[label] = [(f.status, f.scores) for f in guard.report.findings] if guard.report else None
            self.bad += [f"{label}: {f.status}" for f in guard.report.findings if RAW.search(f.status)]
        if self.watch:
            return
        for name in mitigations.available():
            if name == "neuron_mask":
                continue  # needs neurons of this very model
            said.clear()
            mitigation = mitigations.get(name, **CHOSEN.get(name, {}))
            try:
                changed = not same(plain, self.call(pipe, mitigation.attach(pipe)))
                self.found[name] = "changed" if changed else said[-1] if said else "nothing"
                self.bad += [f"{name}: {line}" for line in said if RAW.search(line)]
                self.bad += [f"{name} changed nothing and said nothing"] if self.found[name] == "nothing" else []
            except Exception as error:
                if "neither a unet nor a transformer" in str(error):  # refused when it is attached, not in a run
                    self.found[name] = str(error)
                else:
                    self.bad.append(f"{name} killed the run: {type(error).__name__}: {error}")
        self.loop(plain, pipe)
        self.words(memguard, pipe)
        self.bad += [] if same(plain, self.call(pipe)) else ["something was left behind"]

    def predictions(self, pipe) -> int | None:
        """Return how many rows the denoiser predicts for each row that the first step of the scheduler receives."""
        from memguard.hosts.diffusers import pipes
        from memguard.hosts.diffusers.received import _tensors

        module, scheduler = pipes.denoiser(pipe), getattr(pipe, "scheduler", None)
        if module is None or not callable(getattr(scheduler, "step", None)):
            return None
        rows, first, step = [0], [], scheduler.step
        hook = module.register_forward_hook(
            lambda _module, _args, output: rows.__setitem__(0, rows[0] + sum(map(len, _tensors(output))))
        )

        @functools.wraps(step)
        def stepped(*args, **kwargs):
            if not first:
                first.append(rows[0] / len(kwargs.get("model_output", args[0] if args else [0])))
            return step(*args, **kwargs)

        scheduler.step = stepped
        try:
            self.call(pipe)
        finally:
            hook.remove()
            del scheduler.step
        return first[0] if first else None

    def loop(self, plain, pipe) -> None:
        """Policy mitigate, where ordinary prompts score next to nothing and whatever is tried counts as a help."""
        from memguard import Guard, distance, mitigations

        distance.HELPED = distance.CLOSE = float("inf")
        scored = Guard()
        self.call(pipe, scored.attach(pipe))
        if not scored.report or not scored.report.findings[0].scores:
            return
        for label, names in LOOPS.items():
            ladder = [mitigations.get(name, **CHOSEN.get(name, {})) for name in names]
            guard = Guard(policy="mitigate", mitigation=ladder, profile=low(scored.report))
            try:
                changed = not same(plain, self.call(pipe, guard.attach(pipe)))
            except Exception as error:
                self.bad.append(f"{label} killed the run: {type(error).__name__}: {error}")
                continue
            report = guard.report
            lines = [line for attempt in report.attempts for line in attempt.changes]
            self.found[label] = {"verdict": report.verdict, "actions": report.actions, "tried": lines}
            self.bad += [f"{label}: {line}" for line in (*lines, *report.notes) if RAW.search(line)]
            self.bad += [f"{label}: {report.error}"] if report.error else []
            if changed is not bool(report.actions) and self.found["repeats"]:
                self.bad.append(f"{label}: picture changed: {changed}, actions: {report.actions}")

    def words(self, memguard, pipe) -> None:
        settings = {"num_inference_steps": 2, "guidance_scale": 5.0}
        for method in ("gradient", "ablation", "attention"):
            try:
                found = memguard.explain(pipe, "a red fox", method, **settings)
                self.found[f"explain {method}"] = (found.status, found.method)
                self.bad += [f"explain: {found.status}"] if RAW.search(found.status) else []
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                if "MemGuard" not in said and self.fails_alike(pipe, error, settings):  # its own, at its default size
                    self.found[f"explain {method}"] = f"the pipeline failed: {said}"
                elif isinstance(error, ValueError):  # not a pipeline of text alone, or a size that it does not have
                    self.found[f"explain {method}"] = f"refused: {error}"
                    self.bad += [f"explain {method}: {error}"] if RAW.search(str(error)) else []
                else:
                    self.bad.append(f"explain {method} raised {said}")

    def fails_alike(self, pipe, error, settings) -> bool:
        """Whether the plain pipeline ends in the same error, given what its call takes."""
        takes = inspect.signature(type(pipe).__call__).parameters
        try:
            pipe("a red fox", **{name: value for name, value in settings.items() if name in takes})
        except Exception as own:
            return type(own) is type(error) and str(own) == str(error)
        return False

    def compare(self, label, plain, run) -> None:
        try:
            self.bad += [] if same(plain, run()) or not self.found["repeats"] else [f"{label}: another picture"]
        except Exception as error:
            self.bad.append(f"{label} raised {type(error).__name__}: {error}")


def rows(module: str, out: str, watch: bool, seconds: float) -> None:
    """Build and run the recipes of one test module; called in a process of its own."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("memguard").addHandler(handler)
    logging.getLogger("memguard").propagate = False
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(Late()))
    seen = set()
    for kind in list(vars(importlib.import_module(module)).values()):
        cls = getattr(kind, "pipeline_class", None)
        if not (inspect.isclass(kind) and kind.__module__ == module and inspect.isclass(cls)) or cls in seen:
            continue
        seen.add(cls)
        row = Row(cls, kind.__new__(kind), watch)
        signal.setitimer(signal.ITIMER_REAL, seconds, 5)  # again where the first one was swallowed
        began = time.monotonic()
        try:
            row.fill(said)
        except Late:
            row.found["late"] = True
        except Exception as error:
            row.found["not built"] = f"{type(error).__name__}: {error}"[:200]
        signal.setitimer(signal.ITIMER_REAL, 0)
        row.found["seconds"] = round(time.monotonic() - began)
        with Path(out).open("a") as file:
            file.write(json.dumps(row.found | {"bad": row.bad}, default=str) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=".", help="regular expression on the test file")
    parser.add_argument("--out", default="rows.jsonl")
    parser.add_argument("--watch", action="store_true", help="scores and reasons alone")
    parser.add_argument("--seconds", type=float, default=200, help="for one recipe")
    parser.add_argument("--hub", help="a Python file that stands in for the hub")
    given = parser.parse_args()
    source = Path(os.environ["DIFFUSERS_SRC"])
    warnings.filterwarnings("ignore")
    sys.path[:0] = [str(ROOT), str(source)]
    if given.hub:
        runpy.run_path(given.hub)
    for file in sorted(source.glob("tests/pipelines/*/test_*.py")):
        if PICTURES.search(str(file)) or not re.search(given.only, str(file)):
            continue
        child = os.fork()
        if child == 0:
            try:
                rows(".".join(file.relative_to(source).with_suffix("").parts), given.out, given.watch, given.seconds)
            except BaseException as error:
                print(file.stem, type(error).__name__, error, file=sys.stderr)
            os._exit(0)
        os.waitpid(child, 0)
    found = [json.loads(line) for line in Path(given.out).read_text().splitlines()]
    ran = [row for row in found if "not built" not in row and "late" not in row]
    for row in ran:
        print("ok " if not row["bad"] else "BAD", row["pipeline"], *row["bad"])
    bad = sum(bool(row["bad"]) for row in ran)
    two = [row for row in ran if (row.get("predictions") or 0) >= 2]
    scored = sum(bool(row["watch"] and row["watch"][0][1]) for row in two)
    print(f"{scored} of {len(two)} pipelines with two predictions or more have a score")
    print(f"{len(ran)} pipelines, {bad} bad; {len(found) - len(ran)} not built here or too slow")


if __name__ == "__main__":
    main()
