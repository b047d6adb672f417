"""Pack trained snapshots, the autoencoder, the prompts and the duplicated pictures into the package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from memguard.testbed.loader import STAGES, TILE, assets, weights

from . import data

COLUMNS = 8


def pack_stage(snapshot: Path, stage: str) -> None:
    """Write one stage in half precision; of the token embedding only the trained rows."""
    state = torch.load(snapshot, weights_only=True)
    tensors = {f"unet.{key}": value.half().contiguous() for key, value in state["unet"].items()}
    for key, value in state["text"].items():
        name = key.removeprefix("text_model.")
        if name == "embeddings.token_embedding.weight":
            tensors["token_rows"] = value.half().contiguous()
        else:
            tensors[f"text.{name}"] = value.half().contiguous()
    tensors["used"] = state["used"].int()
    metadata = {"step": str(state["step"]), "options": json.dumps(state["options"], sort_keys=True)}
    save_file(dict(sorted(tensors.items())), weights(stage), metadata=metadata)


def pack(work: Path, snapshots: dict[str, Path]) -> None:
    """Write all assets.

    Args:
        work: the training folder (data, autoencoder.pt).
        snapshots: file of each stage.

    """
    for stage in STAGES:
        if stage in snapshots:
            pack_stage(snapshots[stage], stage)
    coder = torch.load(work / "autoencoder.pt", weights_only=True)
    halved = {k: (v.half() if k.startswith("decoder.") else v).contiguous() for k, v in coder.items()}
    save_file(dict(sorted(halved.items())), assets() / "autoencoder.safetensors")
    pack_prompts(work)


def pack_prompts(work: Path) -> None:
    """Write ``prompts.json`` and ``originals.png``."""
    images, meta = data.read(work / "data")
    rows, tiles = [], []
    for picture, row in zip(images, meta, strict=True):
        first_of_family = row["kind"] == "template" and not any(r["name"] == row["name"] for r in rows)
        if row["kind"] == "verbatim" or first_of_family:
            kept = {key: row.get(key) for key in ("kind", "caption", "name", "rate", "region")}
            rows.append(kept | {"source": row.get("source")})
            tiles.append(picture)
    blank = np.zeros((TILE, TILE, 3), np.uint8)
    tiles += [blank] * (-len(tiles) % COLUMNS)
    lines = [np.concatenate(tiles[i : i + COLUMNS], 1) for i in range(0, len(tiles), COLUMNS)]
    Image.fromarray(np.concatenate(lines)).save(assets() / "originals.png", optimize=True)
    texts = {kind: [r["caption"] for r in meta if r["kind"] == kind] for kind in ("held", "single_held", "single")}
    families = sorted({r["caption"] for r in meta if r["kind"] == "template"})
    trained = [r["caption"] for r in meta if r["kind"] == "ordinary" and r["unique"]][:400]
    values = {"originals": rows, "template": families, "ordinary": trained, **texts}
    (assets() / "prompts.json").write_text(json.dumps(values, indent=1) + "\n")
