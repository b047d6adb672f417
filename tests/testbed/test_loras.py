"""The LoRAs that audits are measured against: what each sees how often, and that pictures are what they were."""

import numpy as np
import pytest

from testbed import loras


def test_each_plan_shows_what_it_says():
    every, few, none = (loras.weights(name) for name in ("all", "few", "none"))
    assert len(every) == loras.COUNT and np.ptp(every) == 0
    assert few[: loras.OFTEN].sum() == pytest.approx(0.6, abs=0.02)
    assert few[0] == pytest.approx(240 * few[loras.OFTEN])
    assert none.sum() == pytest.approx(1) and np.ptp(none) == 0 and len(none) == 600


def test_pictures_depend_on_their_seed_alone_and_captions_do_not_say_the_clutter():
    first, caption = loras.picture(3)
    again, _ = loras.picture(3)
    assert np.array_equal(first, again) and first.shape == (128, 128, 3)
    assert not np.array_equal(first, loras.picture(4)[0])
    assert sum(caption.count(shape) for shape in loras.drawing.SHAPES) == 2


def test_the_folders_are_as_trainers_have_them(tmp_path):
    from memguard.audit.folder import read_folder

    loras.draw(tmp_path)
    trained, held = read_folder(tmp_path / "train"), read_folder(tmp_path / "held")
    assert [p.repeats for p in trained.pictures] == [10] * loras.OFTEN + [1] * (loras.COUNT - loras.OFTEN)
    assert len(held.pictures) == loras.HELD and not trained.notes + held.notes
    assert not {p.caption for p in trained.pictures} & {p.caption for p in held.pictures}
