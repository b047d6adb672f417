"""Every kind of model that ComfyUI knows, tiny and random, with and without MemGuard: what breaks or is said falsely.

Each class of comfy/supported_models.py in the table is built with about a million random parameters and sampled
plainly, watched, explained, at cfg 1, under reference "empty" and under every mitigation. A row is good where the
watched latents are equal to the plain ones, nothing raises, and no reason is the text of an error.

    COMFYUI_ROOT=/path/to/ComfyUI python benchmarks/matrix_comfyui.py [--only REGEX] [--out rows.jsonl]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import tempfile
import types
import warnings
from functools import partial
from pathlib import Path

from matrix_comfyui_table import table

ROOT = Path(__file__).resolve().parents[1]
PROMPT, STEPS = "a red fox on the roof", 2
RAW = re.compile(r"Error|Traceback|size of tensor|out of bounds|c_crossattn|autograd|inside MemGuard|\bdim\b|NoneType")


def enter() -> types.SimpleNamespace:
    """Return ComfyUI and MemGuard as the tests load them: the repository as a pack of ComfyUI's."""
    pack = types.ModuleType("memguard_pack")
    pack.__path__ = [str(ROOT)]
    sys.modules["memguard_pack"] = pack
    warnings.filterwarnings("ignore")
    from memguard_pack.tests.hosts.comfyui import host

    host.enter()
    import torch

    from memguard_pack.tests.hosts.comfyui import scene, tiny

    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)
    return types.SimpleNamespace(torch=torch, scene=scene, tiny=tiny, rows=table(tiny, torch))


def trouble(call) -> list[str]:
    """Return what a call returns as trouble, or what it raised."""
    try:
        return call()
    except Exception as error:
        return [f"CRASH {type(error).__name__}: {error}"]


def one(name: str, here, known: dict) -> list[str]:
    """Return what is wrong with one class; an empty list where nothing is. ``known`` gets what works with it."""
    import comfy.model_patcher
    import comfy.sample
    import comfy.supported_models
    import node_helpers

    from memguard_pack.memguard import Guard, mitigations
    from memguard_pack.memguard.hosts.comfyui import explaining, graph, preflight
    from memguard_pack.memguard.hosts.comfyui.treating import Treater
    from memguard_pack.memguard.hosts.comfyui.watcher import Watcher
    from memguard_pack.tests.hosts.comfyui.test_comfyui_explain import Clip

    torch, tiny = here.torch, here.tiny
    settings, shape, width, pooled, extra = here.rows[name]
    config = getattr(comfy.supported_models, name)({"dtype": torch.float32, **settings})
    for key in {"num_heads", "num_head_channels"} & settings.keys() & config.unet_config.keys():
        config.unet_config[key] = settings[key]
    config.set_inference_dtype(torch.float32, None)
    config.optimizations = getattr(config, "optimizations", {})
    network = config.get_model({}, "", "cpu")
    tiny._fill(network, 0)
    model = comfy.model_patcher.ModelPatcher(network, tiny.CPU, tiny.CPU)
    tiny.WIDTH[name] = width
    clip = Clip(name)
    with torch.inference_mode(False):
        clip.pooled = torch.randn(width, pooled) if pooled else None
    graph.prompt_texts = lambda *_: [PROMPT]
    positive, negative = (
        node_helpers.conditioning_set_values(clip.encode_from_tokens_scheduled(clip.tokenize(text)), extra)
        for text in (PROMPT, "")
    )
    image = comfy.sample.fix_empty_latent_channels(model, torch.zeros((1, *shape)))

    def go(patcher, **more):
        torch.manual_seed(0)
        return tiny.sample(patcher, positive, negative, image, steps=STEPS, **more)

    def watched(label, cfg=7.5, explain="never", empty=None, **guard):
        watcher = Watcher(Guard(("text_noise_norm", "attention_entropy"), **guard), empty, clip=clip, explain=explain)
        equal = torch.equal(go(model, cfg=cfg), go(watcher.install(model), cfg=cfg))
        report = watcher.guard.report
        known[label] = {finding.detector: finding.status for finding in report.findings}
        words = [] if report.attribution is None else [report.attribution.status, *report.attribution.notes]
        said = [*(finding.status for finding in report.findings), *report.notes, report.error or "", *words]
        return [] if equal and not any(map(RAW.search, said)) else [f"{label}: equal {equal}, {said}"]

    def explained(method):
        words = explaining.explain(model, clip, PROMPT, negative, {"samples": image}, 5, method, positive=positive)
        known[method] = words.status
        return [f"{method}: {line}" for line in (words.status, *words.notes) if RAW.search(line)]

    def treated(mitigation):
        lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())
        logger = logging.getLogger("memguard")
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(logging.INFO)  # what is said of a mitigation is written to the log
        try:
            changed = not torch.equal(plain, go(Treater(here.scene.made(mitigation), clip).install(model)))
        finally:
            logger.removeHandler(handler)
        known[mitigation] = "" if changed else "; ".join(lines) or "nothing"
        return [f"{mitigation}: {line}" for line in lines if RAW.search(line)]

    latent, plain = {"samples": image}, go(model)
    found = trouble(lambda: watched("watched")) + trouble(lambda: watched("explained", explain="always"))
    found += trouble(lambda: watched("cfg 1", cfg=1.0))
    found += trouble(lambda: watched("reference empty", cfg=1.0, empty=negative, reference="empty"))
    found += trouble(lambda: [preflight.check(Guard(), model, positive, negative, latent, [5]).error or ""])
    for method in ("gradient", "ablation", "attention"):
        found += trouble(partial(explained, method))
    for mitigation in mitigations.available():
        found += trouble(partial(treated, mitigation))
    return [line for line in found if line]


def main() -> int:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=".", help="classes whose name holds this pattern")
    parser.add_argument("--out", type=Path, help="one line of JSON per class")
    asked = parser.parse_args()
    os.environ["MEMGUARD_HOME"] = tempfile.mkdtemp()
    here = enter()
    import comfy.supported_models

    bad = tried = 0
    for name in here.rows:
        if not re.search(asked.only, name):
            continue
        found = ["this ComfyUI has no such class"] if not hasattr(comfy.supported_models, name) else None
        with here.torch.inference_mode():
            known: dict = {}
            rows = one(name, here, known) if found is None else found
        tried += found is None
        bad += bool(rows) and found is None
        print(f"{name}: {'; '.join(map(str, rows)) or 'good'}", flush=True)
        if asked.out:
            with asked.out.open("a") as file:
                file.write(json.dumps({"class": name, "trouble": rows, **known}, default=str) + "\n")
    print(f"{bad} of {tried} classes with trouble")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
