"""What an audit says: the sentence, canonical JSON and back, and the page, whatever is written in a caption."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from memguard.audit.checkpoints import Age
from memguard.audit.copied import Threshold
from memguard.audit.duplicates import Group
from memguard.audit.folder import Folder, Picture
from memguard.audit.page import html, row
from memguard.audit.record import Audit, Checked, Checkpoint, read
from memguard.audit.three_samples import Cell, ThreeSamples

EVIL = "<script>alert('x')</script> & \x1b[31m"


def checkpoint(epoch, copied, count=4, before=0, **changes):
    """The first ``copied`` pictures are copies, and without the training the first ``before``."""
    pictures = tuple(
        Checked(
            f"{i}.png",
            f"caption {i}",
            i < copied,
            False,
            int(i < copied),
            (),
            *((0.3, 0.9 if i < number else 0.31) for number in (copied, before)),
        )
        for i in range(count)
    )
    cell = Cell((0, 1), 3, 2, -1.25)
    test = ThreeSamples(
        "held-out", 3.0, -2.123456789, 0.0125, 0.5, 80, 4, 3, 8, -1.0, (cell, Cell((2, 3), 5, 1, None)), "few"
    )
    values = {"name": f"e{epoch}", "digest": f"{epoch:016x}", "age": Age("epoch", epoch), "pictures": pictures}
    return Checkpoint(**values | {"test": test, "threshold": Threshold(0.7, 0.7, 0.41, 3, 0.63)} | changes)


def audit(*copied, before=0, **changes):
    found = tuple(checkpoint(4 * (i + 1), count, before=before) for i, count in enumerate(copied))
    return Audit("ab12", {"seed": 0, "height": None}, found, **changes)


def failing(found):
    failed = (checkpoint(number, 0, pictures=(), error="damaged") for number in (98, 99))
    return replace(found, checkpoints=(*found.checkpoints, *failed))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (audit(3), "copies 3 of 4 pictures"),
        (audit(0), "copies none of 4 pictures in 2 images of each caption"),
        (audit(0, 0), "copies none of 4 pictures in 2 images of each caption, none of 2 checkpoints does"),
        (audit(0, 1, 3), "copies 3 of 4 pictures; first at epoch 8 (epoch 4 is clean)"),
        (audit(1, 3), "copies 3 of 4 pictures; first at epoch 4 (no checkpoint before it)"),
        (audit(0, 3, 2), "copies 2 of 4 pictures; first at epoch 8 (epoch 4 is clean), most at epoch 8: 3"),
        (audit(3, before=2), "copies 3 of 4 pictures; 2 of these also without the training"),
        (
            audit(0, 1, before=4),
            "copies 1 of 4 pictures; first at epoch 8 (epoch 4 is clean); 1 of these also without the training",
        ),
        (Audit("", {}, (checkpoint(1, 0, pictures=(), error="damaged"),)), "could not be audited"),
        (
            failing(audit(0)),
            "copies none of 4 pictures in 2 images of each caption; 2 of 3 checkpoints could not be audited",
        ),
        (failing(audit(3)), "copies 3 of 4 pictures; 2 of 3 checkpoints could not be audited"),
        (
            failing(audit(0, 1)),
            "copies 1 of 4 pictures; first at epoch 8 (epoch 4 is clean); 2 of 4 checkpoints could not be audited",
        ),
    ],
)
def test_the_verdict_in_one_sentence(found, said):
    assert found.verdict == said


def test_json_is_canonical_and_comes_back():
    found = audit(0, 2, duplicates=(Group(("a", "b"), "a", EVIL, 2),), notes=(EVIL,))
    text = found.to_json()
    assert read(text).to_json() == text
    again = read(text)
    assert again.checkpoints[1].test.z == -2.12346 and again.checkpoints[1].test.cells[0].pictures == (0, 1)
    assert again.verdict == found.verdict and again.duplicates == found.duplicates
    values = json.loads(text)
    assert list(values) == sorted(values) and values["schema"] == "memguard audit 1"
    shuffled = replace(found, settings={"height": None, "seed": 0})
    assert shuffled.to_json() == text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "other"}', '{"schema": "memguard audit 1"}', "[" * 9999])
def test_what_is_no_audit_is_not_read(text):
    with pytest.raises(ValueError):
        read(text)


def test_the_page_holds_everything_and_obeys_nothing(tmp_path):
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(tmp_path / "t.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "made.png")
    one = Checked(
        "t.png", EVIL, True, False, 2, ("other.png",), (0.9, 0.8), (0.2, 0.1), "gone.png", 0.4, 1.5, 0.5, "made.png"
    )
    near = replace(one, name="near.png", copied=False, near=True, image="")
    last = checkpoint(8, 0, pictures=(near, one), name=EVIL)
    found = replace(audit(0, duplicates=(Group((EVIL, "b"), "b", EVIL, 1),), notes=(EVIL,)), settings={EVIL: EVIL})
    found = replace(found, checkpoints=(*found.checkpoints, last, checkpoint(9, 0, pictures=(), error=EVIL)))
    folder = Folder((Picture("t.png", tmp_path / "t.png", EVIL, 1, 8, 8),), ())
    text = html(found, folder, tmp_path)
    assert "<script" not in text and "http" not in text and "src=" in text
    assert text.count("<img ") == 2  # the training picture and the generated one; gone.png is gone
    assert "copied over the training" in text.lower() and "also comes out of the captions of other.png" in text
    assert text.index("■ copied") < text.index("▲ nearer than any held-out picture")
    assert f"This training {found.verdict}".replace("'", "&#39;").split("<")[0] in text
    assert row(last)[1:6] == ("1 of 2", "0.70", "-2.12", "0.0125", "0.5000") and row(last)[6:] == ("1.500", "0.500")


def test_the_page_can_be_written_whatever_a_file_is_called(tmp_path):
    half = "x\udcff"
    one = replace(checkpoint(1, 1).pictures[0], name=half, other=half, captions=(half,))
    found = replace(
        audit(0, 1), checkpoints=(checkpoint(1, 0, name=half, pictures=(one,)), checkpoint(2, 0, error=half))
    )
    for text in (html(replace(found, notes=(half,)), Folder((), ()), tmp_path), found.to_json()):
        assert r"x\udcff" in text.replace("\\\\", "\\") and text.encode()


def test_one_image_is_one_and_a_bar_has_a_short_name(tmp_path):
    one = replace(checkpoint(8, 0).pictures[0], own=(0.3,))
    found = replace(audit(0), checkpoints=(checkpoint(4, 0), checkpoint(8, 0, pictures=(one,))))
    assert found.verdict == "copies none of 1 pictures in 1 image of each caption, none of 2 checkpoints does"
    text = html(replace(found, checkpoints=found.checkpoints[1:]), Folder((), ()), tmp_path)
    assert "0 of 1 image;" in text and "threshold: the likeness above which a picture is called a copy" in text
    twins = (checkpoint(4, 0, name="a"), checkpoint(4, 0, name="b"), checkpoint(8, 0), checkpoint(0, 0, age=Age()))
    text = html(replace(found, checkpoints=twins), Folder((), ()), tmp_path)
    labels = re.findall(r'class="bar"><span>(.*?)<', text)
    assert labels == ["a (epoch 4)", "b (epoch 4)", "epoch 8", "e0"]


def test_why_a_checkpoint_was_not_audited_stands_beside_the_table(tmp_path):
    failed = checkpoint(9, 0, pictures=(), error="e9: is damaged")
    text = html(replace(audit(0), checkpoints=(checkpoint(4, 0), failed)), Folder((), ()), tmp_path)
    assert row(failed) == ("e9 (epoch 9)", "not audited", *[""] * 6)
    assert '<td>e9 (epoch 9)</td><td class="n">e9: is damaged</td>' in text
