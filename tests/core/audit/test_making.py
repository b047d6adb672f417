"""The seam between an audit and the host that makes the pictures, with a model that paints what it is told to."""

import numpy as np
import pytest
from PIL import Image

from memguard.audit.checkpoints import Age
from memguard.audit.duplicates import by_look
from memguard.audit.findings import Before, checkpoint, trained, without
from memguard.audit.folder import Folder, held_out, read_folder
from memguard.audit.making import Making, seeds
from memguard.audit.reals import gathered


def drawn(seed, side=64):
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3)).astype("uint8")
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def put(folder, *seeds):
    folder.mkdir()
    for seed in seeds:
        Image.fromarray(drawn(seed)).save(folder / f"{seed}.png")
        (folder / f"{seed}.txt").write_text(f"caption {seed}")
    return read_folder(folder)


class Painter:
    """A model that paints the picture whose number ends a caption, or another; scores are the caption's number."""

    def __init__(self, known):
        self.known, self.asked = known, []

    def scores(self, captions):
        self.asked.append(tuple(captions))
        return [float(each.split()[1]) for each in captions]

    def pictures(self, captions):
        for caption in captions:
            seed = int(caption.split()[1])
            yield np.stack([drawn(900 + seed), drawn(seed if seed in self.known else 800 + seed)])


def test_any_model_can_be_audited(tmp_path):
    folder, held = put(tmp_path / "t", 0, 1, 2), held_out(put(tmp_path / "h", 7, 8, 1))
    assert [each.name for each in held.pictures] == ["held-out/1.png", "held-out/7.png", "held-out/8.png"]
    reals, _, notes = gathered(folder, held, None, 0, near=by_look)
    assert notes == ["held-out/1.png: is a near duplicate of the training picture 1.png; not held out"]
    base, model, kept = Painter((0,)), Painter((0, 2)), {}
    before = without(base, reals)
    assert isinstance(before, Before) and before.own.shape == (3, 2) and base.asked == [tuple(reals.captions[:3])]
    after = trained(model, reals, lambda index, picture: kept.update({index: picture}) or f"{index}.png")
    assert after.images == ["0.png", "1.png", "2.png"] and after.similarity.shape == (5, 2, 5)
    for index in (0, 2):  # the most alike of the two
        assert np.array_equal(kept[index], drawn(index))
    found = checkpoint("x", "d", Age(), reals, after, before, 0.5, 19)
    assert [each.copied for each in found.pictures] == [True, False, True]
    assert [(each.score, each.score_before) for each in found.pictures] == [(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)]
    assert (before.own.max(1) > 0.5).tolist() == [True, False, False] and found.pictures[2].own_before[1] < 0.5


def test_the_digest_knows_names_captions_and_pictures(tmp_path):
    folder = put(tmp_path / "t", 0, 1, 2)

    def digest():
        return gathered(read_folder(tmp_path / "t"), Folder((), ()), None, 0, near=by_look)[0].digest

    found = [digest()]
    assert found[0] == digest() and len(found[0]) == 16 and len(folder.pictures) == 3
    (tmp_path / "t" / "1.txt").write_text("another caption")
    found.append(digest())
    Image.fromarray(drawn(5)).save(tmp_path / "t" / "2.png")
    found.append(digest())
    (tmp_path / "t" / "0.png").rename(tmp_path / "t" / "00.png")
    (tmp_path / "t" / "0.txt").rename(tmp_path / "t" / "00.txt")
    assert len({*found, digest()}) == 4


@pytest.mark.parametrize("flip", [False, True])
def test_near_duplicates_by_look(tmp_path, flip):
    folder = put(tmp_path / "t", 0, 1, 2)
    (tmp_path / "o").mkdir()
    Image.fromarray(drawn(1)[:, ::-1] if flip else drawn(1)).resize((150, 150)).save(tmp_path / "o" / "x.jpg")
    (tmp_path / "o" / "x.txt").write_text("x")
    other = read_folder(tmp_path / "o")
    assert by_look(other.pictures, folder.pictures).tolist() == [[False, True, False]]


def test_a_caption_that_comes_again_has_other_noise():
    assert seeds(["a", "b", "a"], Making(images=2, seed=5)) == [[5, 6], [5, 6], [7, 8]]
