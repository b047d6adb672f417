"""Embeddings that a user gives: TorchScript and folders of transformers; never another pickle."""

import pickle
import zipfile

import pytest
import torch

from memguard.copies.embedding import Embedding
from memguard.troubles import Refused


class Tiny(torch.nn.Module):
    """Means of quarters of the picture."""

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "model.torchscript.pt"
    torch.jit.script(Tiny()).save(str(path))
    return path


def test_a_torchscript_file_embeds(script):
    model = Embedding(script)
    assert model.shape == (48,) and model.dtype == torch.float16 and model.kind.endswith(" at 320")
    pictures = [torch.rand(1, 3, 50, 70, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    made = model.make(pictures)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    small = torch.nn.functional.interpolate(pictures[1], (320, 320), mode="bilinear", antialias=True)
    expected = Tiny()((small - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(made[1].float(), expected[0] / expected.norm(), atol=1e-3, rtol=0)
    similarities, places = model.open(made).nearest(made[[1]], 2, [None])
    assert places[0, 0] == 1 and similarities[0, 0] == pytest.approx(1, abs=2e-3)
    assert model.open(made).nearest(made[[1]], 1, [1])[1][0, 0] != 1


def test_another_file_or_size_is_another_kind(script, tmp_path):
    other = tmp_path / "other.pt"
    torch.jit.script(torch.nn.Sequential(Tiny(), torch.nn.Linear(48, 5))).save(str(other))
    kinds = {Embedding(script).kind, Embedding(other).kind, Embedding(script, 64).kind}
    assert len(kinds) == 3


class Bomb:
    """A pickle that runs code."""

    def __reduce__(self):
        return (open, ("/nonexistent/exploded", "w"))


def refused(path, **more) -> str:
    with pytest.raises(Refused) as caught:
        Embedding(path, **more)
    return str(caught.value)


def test_other_pickles_are_never_loaded(tmp_path, monkeypatch):
    def loaded(*_, **__):
        raise AssertionError("it was loaded")

    monkeypatch.setattr(torch, "load", loaded)
    monkeypatch.setattr(torch.jit, "load", loaded)
    torch.save({"weights": torch.ones(3)}, tmp_path / "weights.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Bomb()))
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w") as archive:
        archive.writestr("bomb/data.pkl", pickle.dumps(Bomb()))
    for name in ("weights.pt", "raw.pt", "bomb.pt"):
        path = tmp_path / name
        expected = f"{path}: is not TorchScript, and other pickles are never loaded; give a file of torch.jit.save"
        assert refused(path) == expected


def test_a_bomb_dressed_as_torchscript_does_not_explode(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_STORED) as archive:
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"bomb/{name}", pickle.dumps(Bomb()))
        archive.writestr("bomb/code/__torch__.py", "")
        archive.writestr("bomb/version", "3\n")
    assert refused(tmp_path / "bomb.pt").endswith("is damaged, or of another version of torch")


def test_what_a_model_cannot_do_is_one_line(tmp_path):
    path = tmp_path / "maps.pt"
    torch.jit.script(torch.nn.Conv2d(3, 4, 3)).save(str(path))
    assert refused(path) == f"{path}: does not return one vector per picture"
    torch.jit.script(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 7))).save(str(path))
    assert refused(path) == f"{path}: does not take pictures of 320 x 320; give their size"
    assert Embedding(path, 32).shape == (7,)
    assert refused(path, size=32, device="cuda:99") == "device cuda:99: no such device here; for example cpu or cuda:0"
    assert refused(tmp_path / "none").endswith("give a TorchScript file or a folder with model.safetensors")
    assert refused(tmp_path) == f"{tmp_path}: config.json is missing; give a folder of transformers with safetensors"


def test_a_folder_of_transformers_embeds_by_its_class_token(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    network = transformers.Dinov2Model(config).eval()
    network.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"crop_size": {"height": 28, "width": 28}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    )
    model = Embedding(tmp_path)
    assert model.shape == (16,) and model.kind.endswith(" at 28")
    picture = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(pixel_values=picture * 2 - 1).last_hidden_state[0, 0]
    made = model.make([picture])[0].float()
    torch.testing.assert_close(made, expected / expected.norm(), atol=2e-3, rtol=0)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert refused(tmp_path).endswith("cannot be loaded; a file is damaged, or of another transformers")
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert refused(tmp_path).endswith("model.safetensors is missing; give a folder of transformers with safetensors")
