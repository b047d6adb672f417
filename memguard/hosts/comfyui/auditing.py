"""Which of its training pictures a LoRA copies, asked of a MODEL, CLIP and VAE: the audit of ``memguard audit``.

The LoRA acts on clones, as with ComfyUI's own loader. Clones share one network, and ComfyUI would leave the LoRA in its
weights until another clone is loaded; here the base is loaded again at once, also where the audit was interrupted.

Part of the ComfyUI host.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...audit import findings, record
from ...audit.duplicates import by_look
from ...audit.folder import Folder, held_out, pixels, read_folder
from ...audit.likeness import FLOOR
from ...audit.making import Making
from ...audit.reals import Reals, gathered
from ...audit.table import copied, rows
from ...comparison import compare
from . import finding, model
from .drawing import Drawing, empty_latent, encoded
from .loras import NONE, Lora, applied, path_of
from .watcher import unwatched

SAMPLERS, SCHEDULERS = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS
DEALS = 9999
PAIRS = 16  # of the picture output
LABELS = ("training picture", "generated")


@dataclass(frozen=True)
class Settings:
    """How an audit is made.

    Attributes:
        making: of the pictures; their size is the latent's.
        sampler: ComfyUI's name of it.
        scheduler: ComfyUI's name of it.
        limit: a random number of the training pictures; None for all.
        threshold: similarity from which a picture counts as a copy.
        deals: of the test's relabelling.

    """

    making: Making
    sampler: str = "euler"
    scheduler: str = "normal"
    limit: int | None = None
    threshold: float = FLOOR
    deals: int = DEALS


def audit(
    patcher: Any,
    clip: Any,
    vae: Any,
    latent: dict[str, Any],
    lora: Lora,
    folder: str,
    held: str,
    settings: Settings,
) -> tuple[record.Audit, Tensor]:
    """Return what was found, and pairs of training pictures and what was generated, float32 [n, H, W, 3].

    Args:
        patcher: MODEL, the LoRA not on it.
        clip: CLIP.
        vae: VAE.
        latent: LATENT of the size that is sampled; its content does not count.
        lora: that is audited.
        folder: name of the folder of training pictures.
        held: name of the folder of held-out ones; "" for none.
        settings: of the audit.

    Raises:
        ValueError, BadInput: in one line, for folders or a LoRA that cannot be used.
        comfy.model_management.InterruptProcessingException: of ComfyUI's stop button.

    """
    given, patcher = patcher, unwatched(patcher)
    changed, encoder, unused = applied(patcher, clip, lora)
    pictures = read_folder(finding.folder_of(folder))
    others = held_out(read_folder(finding.folder_of(held))) if held.strip() else Folder((), ())
    reals, groups, left = gathered(pictures, others, settings.limit, settings.making.seed, near=by_look)
    empty, making = empty_latent(patcher, latent), settings.making
    captions = reals.captions
    best: dict[int, np.ndarray] = {}

    def keep(index: int, picture: np.ndarray) -> str:
        best[index] = picture
        return ""  # no file: the pairs show it

    try:
        # every text before the first call: text encoder and network need not take turns in the GPU's memory
        conds = encoded(encoder, captions)
        before = conds if encoder is clip else encoded(clip, captions[: reals.trained])
        bar = comfy.utils.ProgressBar(2 * reals.trained + making.steps * (reals.trained + len(captions)))
        common = vae, empty, making, settings.sampler, settings.scheduler, bar
        base = findings.without(Drawing(patcher, before, *common), reals)
        after = findings.trained(Drawing(changed, conds, *common), reals, keep)
    finally:
        loaded = [given] if encoder is clip else [given, clip.patcher]
        comfy.model_management.load_models_gpu(loaded)
    found = findings.checkpoint(
        lora.name, lora.digest, lora.age, reals, after, base, settings.threshold, settings.deals
    )
    notes = (*model.remarks(patcher), *unused, *pictures.notes, *others.notes, *left)
    kept = _settings(settings, patcher, reals, best[0].shape)
    return record.Audit(model.name_of(patcher), kept, (found,), groups, notes), _pairs(found, reals, best)


def said(found: record.Audit) -> tuple[str, dict[str, Any]]:
    """Return the verdict in a sentence, and what the page shows: that, its tone, the table, lines under it."""
    verdict = f"This LoRA {found.verdict}."
    each = found.checkpoints[0]
    near = sum(picture.near for picture in each.pictures)
    lines = [*copied(found)]
    if near:
        lines.append(f"{near} more came nearer than any held-out caption came to its own picture")
    if each.test is not None and each.test.note:
        lines.append(each.test.note)
    lines += found.notes
    tone = "memorized" if each.copied else "suspicious" if near else "ordinary"
    return verdict, {"verdict": verdict, "tone": tone, "table": rows(found), "lines": lines}


def state(folder: str, held: str, lora: str) -> str:
    """Return what changes when a file of the folders, picture or caption, or of the LoRA comes, goes or changes."""
    paths = [] if lora == NONE else [path_of(lora)]
    for name in filter(str.strip, (folder, held)):
        paths += sorted(path for path in finding.folder_of(name).rglob("*") if path.is_file())
    found = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        found.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def _settings(settings: Settings, patcher: Any, reals: Reals, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what an audit depends on, besides the model, under the names of the command line's."""
    making = settings.making
    return {
        "num images": making.images,
        "num inference steps": making.steps,
        "guidance scale": making.guidance,
        "height": shape[0],
        "width": shape[1],
        "seed": making.seed,
        "limit": settings.limit,
        "deals": settings.deals,
        "similarity": "low resolution",
        "threshold": settings.threshold,
        "number format": str(patcher.model_dtype()).removeprefix("torch."),
        "sampler": f"{settings.sampler}, {settings.scheduler} (ComfyUI)",
        "trained": reals.trained,
        "held out": len(reals.pictures) - reals.trained,
        "data": reals.digest,
    }


def _pairs(found: record.Checkpoint, reals: Reals, best: dict[int, np.ndarray]) -> Tensor:
    """Return copied pictures beside what was generated, most alike first; the most alike of all where none is."""
    order = sorted(best, key=lambda i: (not found.pictures[i].copied, -max(found.pictures[i].own)))
    shown = [i for i in order if found.pictures[i].copied][:PAIRS] or order[:1]
    made = []
    for i in shown:
        height, width = best[i].shape[:2]
        real = ImageOps.pad(pixels(reals.pictures[i], max(height, width)), (width, height), Image.Resampling.BICUBIC)
        made.append(compare(np.asarray(real), best[i], [], LABELS))
    return torch.from_numpy(np.stack(made)).float() / 255
