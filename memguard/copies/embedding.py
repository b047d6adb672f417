"""An embedding that the user gives: a TorchScript file such as SSCD's, or a folder of transformers such as DINO's.

Similarity is the cosine of two vectors. TorchScript is code in a language of its own that can compute and cannot import
Python; other pickles are refused before anything of them is read. Folders are read from safetensors only. SSCD's
preparation is used for TorchScript (Pizzi et al., CVPR 2022, github.com/facebookresearch/sscd-copy-detection: squeezed
to 320 x 320, mean and deviation of ImageNet); folders say their own in preprocessor_config.json.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..troubles import Refused
from .signatures import ByCosine, Found

SSCD_SIZE = 320
SSCD_THRESHOLD = 0.75  # 90 % precision on DISC2021, by the authors' README; other models need their own
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CHUNK = 1 << 22  # bytes that are hashed at a time


class Embedding:
    """Signatures by a model.

    Args:
        path: of a TorchScript file, or of a folder with config.json and model.safetensors.
        size: pixels of a side that the model is given; None: 320 for TorchScript, the folder's own otherwise.
        device: where it computes.

    Raises:
        Refused: in one line, if there is no such model, it is another pickle, or it cannot be used.

    """

    dtype = torch.float16
    whole = True

    def __init__(self, path: Path, size: int | None = None, device: str = "cpu") -> None:
        self._path = path
        if path.is_dir():
            self._model, settings = _of_folder(path)
            file = path / "model.safetensors"
        elif path.is_file():
            self._model, settings = _of_torchscript(path), {"size": SSCD_SIZE}
            file = path
        else:
            raise Refused(f"{path}: no such model; give a TorchScript file or a folder with model.safetensors")
        try:
            self._device = torch.device(device)
            self._model.to(self._device)
        except (RuntimeError, AssertionError):
            raise Refused(f"device {device}: no such device here; for example cpu or cuda:0") from None
        self._size = size or int(settings.get("size") or 224)
        self._mean, self._std = (torch.tensor({**IMAGENET, **settings}[name])[:, None, None] for name in IMAGENET)
        dimensions = self.make([torch.full((1, 3, self._size, self._size), 0.5)]).shape[1]
        self.shape: tuple[int, ...] = (dimensions,)
        self.kind = f"embedding {_digest(file)} at {self._size}"

    @torch.inference_mode()
    def make(self, pictures: list[Tensor]) -> Tensor:
        """Return the vectors, float16 [N, D], of length 1."""
        size = (self._size, self._size)
        small = [F.interpolate(each, size, mode="bilinear", antialias=True) for each in pictures]
        batch = ((torch.cat(small) - self._mean) / self._std).to(self._device)
        try:
            found = self._model(batch)
        except MemoryError:
            raise
        except Exception:  # whatever a model does not like about its input
            raise Refused(
                f"{self._path}: does not take pictures of {self._size} x {self._size}; give their size"
            ) from None
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(batch):
            raise Refused(f"{self._path}: does not return one vector per picture")
        if not torch.isfinite(found).all():
            raise Refused(f"{self._path}: returns values that are no numbers (NaN)")
        return F.normalize(found.float(), dim=1).to(torch.float16).cpu()

    def open(self, signatures: Tensor) -> Found:
        """Return references of these vectors."""
        return ByCosine(signatures)


def _of_torchscript(path: Path) -> torch.nn.Module:
    """Load a TorchScript file.

    Raises:
        Refused: for every other file; other pickles are not opened.

    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        names = []
    if not any(name.split("/")[1:2] == ["code"] for name in names) or not any(
        n.endswith("constants.pkl") for n in names
    ):
        raise Refused(f"{path}: is not TorchScript, and other pickles are never loaded; give a file of torch.jit.save")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: torch.nn.Module = torch.jit.load(str(path), map_location="cpu").eval()
            return found
    except (RuntimeError, ValueError, OSError):
        raise Refused(f"{path}: is damaged, or of another version of torch") from None


def _of_folder(path: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Load a folder of transformers, from safetensors and without code of its own.

    Returns:
        The model from pictures [N, 3, H, W] to vectors, and the settings of preprocessor_config.json.

    Raises:
        Refused: if a file is missing or damaged.

    """
    for name in ("config.json", "model.safetensors"):
        if not (path / name).is_file():
            raise Refused(f"{path}: {name} is missing; give a folder of transformers with safetensors")
    from transformers import AutoModel

    try:
        file = path / "preprocessor_config.json"
        settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        kept = {name: settings[name] for name in IMAGENET if name in settings}
        size = settings.get("crop_size") or settings.get("size")
        size = min(size.values()) if isinstance(size, dict) else size
        model = AutoModel.from_pretrained(
            str(path), use_safetensors=True, local_files_only=True, trust_remote_code=False, dtype=torch.float32
        )
    except MemoryError:
        raise
    except Exception:  # whatever damaged files make a library stumble over
        raise Refused(f"{path}: cannot be loaded; a file is damaged, or of another transformers") from None
    return _Vector(getattr(model, "vision_model", model)).eval(), {**kept, "size": size}


class _Vector(torch.nn.Module):
    """The class token of a transformer, or the mean over places of a convolutional network.

    Of CLIP and SigLIP, the part that sees.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor) -> Tensor:
        """Return [N, D] of pictures [N, 3, H, W]."""
        last = self.model(pixel_values=pictures).last_hidden_state
        found: Tensor = last[:, 0] if last.ndim == 3 else last.flatten(2).mean(2)
        return found


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
    return found.hexdigest()[:16]
