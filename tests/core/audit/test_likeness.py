"""Likeness at low resolution and by an embedding; near duplicates and held-out twins in what is gathered."""

import numpy as np
import pytest
import torch
from PIL import Image

from memguard.audit import likeness
from memguard.audit.folder import read_folder
from memguard.audit.likeness import FLOOR, Likeness
from memguard.audit.reals import gathered
from memguard.copies.embedding import Embedding
from memguard.lists import BadInput


def drawn(seed, size=(64, 64)):
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3)).astype("uint8")
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def blurred(picture):
    """A copy as models make them: blurred, darker, a little noise."""
    values = np.asarray(picture.resize((20, 20)).resize(picture.size), float) * 0.8
    noise = np.random.default_rng(0).normal(0, 8, values.shape)
    return Image.fromarray(np.clip(values + noise, 0, 255).astype("uint8"))


def test_blurred_copies_lie_above_the_floor_and_other_pictures_below():
    pictures = [drawn(i, (64, 64 + 16 * (i % 3))) for i in range(6)]
    found = Likeness(pictures).of([blurred(each) for each in pictures])
    assert found.shape == (6, 6) and found.dtype == np.float32
    assert found.diagonal().min() > FLOOR + 0.1 > FLOOR > (found - np.eye(6)).max()
    between = Likeness(pictures).between()
    assert np.allclose(between, between.T, atol=1e-5) and between.diagonal().min() > 0.9


def test_among_many_pictures_only_candidates_are_compared_closely(monkeypatch):
    pictures = [drawn(i) for i in range(12)]
    made = [blurred(each) for each in pictures[:3]]
    closely = Likeness(pictures).of(made)
    monkeypatch.setattr(likeness, "CLOSE", 11)
    found = Likeness(pictures).of(made)
    own = np.arange(3)
    assert np.allclose(found[own, own], closely[own, own], atol=1e-5)
    assert found.argmax(1).tolist() == [0, 1, 2]
    assert (np.sort(np.isclose(found, closely, atol=1e-5).sum(1)) >= likeness.CANDIDATES).all()
    assert (np.delete(found[0], 0) < FLOOR).all()


def test_an_embedding_s_likeness_is_the_cosine(tmp_path):
    class Means(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    torch.jit.script(Means()).save(str(tmp_path / "m.pt"))
    model = Embedding(tmp_path / "m.pt", 16)
    pictures = [drawn(i) for i in range(3)]
    vectors = [model.make([torch.tensor(np.asarray(p) / 255).permute(2, 0, 1)[None].float()])[0] for p in pictures]
    expected = [[float(a.float() @ b.float()) for b in vectors[:2]] for a in vectors]
    assert Likeness(pictures[:2], model).of(pictures) == pytest.approx(np.array(expected), abs=1e-5)


def put(folder, name, picture):
    folder.mkdir(exist_ok=True)
    picture.save(folder / f"{name}.png")
    (folder / f"{name}.txt").write_text(f"caption of {name}")


def test_what_is_compared(tmp_path):
    pytest.importorskip("imagehash")
    for i in range(5):
        put(tmp_path / "t", f"t{i}", drawn(i))
    put(tmp_path / "t", "t9", drawn(1, (200, 200)))
    put(tmp_path / "h", "h0", drawn(20))
    put(tmp_path / "h", "h1", drawn(3))
    folder, held = read_folder(tmp_path / "t"), read_folder(tmp_path / "h")
    reals, groups, notes = gathered(folder, held, None, 0)
    assert [p.name for p in reals.pictures] == ["t0.png", "t1.png", "t2.png", "t3.png", "t4.png", "t9.png", "h0.png"]
    assert reals.trained == 6 and reals.first.tolist() == [0, 1, 2, 3, 4, 1]
    assert [g.names for g in groups] == [("t1.png", "t9.png")]
    assert notes == ["h1.png: is a near duplicate of the training picture t3.png; not held out"]
    some, _, _ = gathered(folder, held, 4, 0)
    assert some.trained == 4 and len(some.pictures) == 5 and some.first.max() < 4
    with pytest.raises(BadInput, match="one training picture is too few"):
        gathered(held.__class__(held.pictures[:1], ()), held, None, 0)
