"""Folders of training pictures as trainers have them; what cannot be used is one line and the rest is read."""

import json
import os
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from memguard.audit import duplicates
from memguard.audit.folder import pixels, read_folder
from memguard.copies.depth import grey
from memguard.copies.reading import read
from memguard.lists import BadInput


def put(path, seed=0, size=(40, 24), text=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3)).astype("uint8")
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    if text is not None:
        path.with_suffix(".txt").write_text(text, encoding="utf-8")


def test_captions_beside_pictures_in_metadata_and_in_the_name_of_a_repeats_folder(tmp_path):
    put(tmp_path / "10_sks dog" / "a.png", text="\n a dog on grass \nanother line\n")
    put(tmp_path / "10_sks dog" / "b.JPG")
    put(tmp_path / "c.webp", size=(64, 32))
    (tmp_path / "c.webp.caption").write_text("by its whole name")
    put(tmp_path / "d.png")
    put(tmp_path / "sub" / "e.png")
    rows = [{"file_name": "d.png", "text": "from  the row"}, {"file_name": "sub/e.png", "caption": "deeper"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_folder(tmp_path)
    assert [(p.name, p.caption, p.repeats) for p in found.pictures] == [
        ("10_sks dog/a.png", "a dog on grass", 10),
        ("10_sks dog/b.JPG", "sks dog", 10),
        ("c.webp", "by its whole name", 1),
        ("d.png", "from the row", 1),
        ("sub/e.png", "deeper", 1),
    ]
    assert (found.pictures[2].width, found.pictures[2].height) == (64, 32)
    assert found.notes == ()


def test_each_bad_thing_is_one_line_and_the_rest_goes_on(tmp_path):
    put(tmp_path / "good.png", text="a good one")
    put(tmp_path / "bare.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot much")
    (tmp_path / "broken.txt").write_text("of a broken picture")
    put(tmp_path / "cut.jpg", size=(200, 200), text="cut off")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:600])
    (tmp_path / "lonely.txt").write_text("nobody")
    put(tmp_path / "latin.png")
    (tmp_path / "latin.txt").write_bytes("für".encode("latin-1"))
    put(tmp_path / "good-masklabel.png")
    put(tmp_path / ".cache" / "hidden.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "gone.png", "text": "x"}\nnot json\n{"text": "y"}\n')
    found = read_folder(tmp_path)
    assert [p.name for p in found.pictures] == ["good.png"]
    said = "\n".join(found.notes)
    for line in (
        "bare.png: has no caption",
        "broken.png: is broken",
        "cut.jpg: is broken",
        "lonely.txt: is a caption without a picture",
        "metadata.jsonl: gone.png is a caption without a picture",
        "metadata.jsonl: line 2 is no row",
        "metadata.jsonl: line 3 is no row",
        "latin.txt: is not UTF-8",
    ):
        assert said.count(line) == 1
    assert len(found.notes) == 8


def test_a_row_that_points_out_of_the_folder_is_no_row(tmp_path):
    put(tmp_path / "in" / "a.png", text="a")
    put(tmp_path / "out.png")
    (tmp_path / "in" / "metadata.jsonl").write_text('{"file_name": "../out.png", "text": "x"}\n')
    found = read_folder(tmp_path / "in")
    assert "line 1 is no row with a file_name inside the folder" in found.notes[0]


def test_a_folder_without_captions_or_without_being_one_is_bad_input(tmp_path):
    put(tmp_path / "a.png")
    with pytest.raises(BadInput, match=r"holds no picture with a caption.*a.png: has no caption"):
        read_folder(tmp_path)
    with pytest.raises(BadInput, match="is no folder"):
        read_folder(tmp_path / "a.png")


def test_pictures_are_turned_upright_and_made_small(tmp_path):
    put(tmp_path / "a.jpg", size=(800, 400), text="a")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.jpg", exif=exif)
    found = read_folder(tmp_path).pictures[0]
    assert (found.width, found.height) == (400, 800)
    assert pixels(found, 100).size == (50, 100)


def test_near_duplicates_are_found_mirrored_or_small_and_what_to_keep_is_said(tmp_path):
    pytest.importorskip("imagehash")
    put(tmp_path / "a.png", seed=1, size=(96, 96), text="a cat")
    put(tmp_path / "b.png", seed=1, size=(200, 180), text="a cat on a red roof")
    Image.open(tmp_path / "a.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "c.jpg", quality=60)
    (tmp_path / "c.txt").write_text("a cat")
    for seed in range(2, 8):
        put(tmp_path / f"o{seed}.png", seed=seed, size=(96, 96), text=f"other {seed}")
    pictures = read_folder(tmp_path).pictures
    hashes = duplicates.hashes(pictures)
    first = duplicates.components(duplicates.near(hashes, hashes))
    assert first == [0, 0, 0, 3, 4, 5, 6, 7, 8]
    (group,) = duplicates.groups(pictures, first)
    assert group == duplicates.Group(("a.png", "b.png", "c.jpg"), "b.png", "a cat on a red roof", 2)


def test_near_counts_the_signs_that_differ():
    a = np.zeros((1, 2, 64), bool)
    for flips, expected in ((duplicates.NEAR, True), (duplicates.NEAR + 1, False)):
        b = np.ones((1, 2, 64), bool)
        b[0, 1] = False
        b[0, 1, :flips] = True
        assert duplicates.near(a, b).item() is expected


def test_a_name_that_is_no_text_is_shown_as_one_that_can_be_written(tmp_path):
    name = os.fsdecode(b"b29-\xff\xfe.png")
    try:
        put(tmp_path / name, text="a cup")
        put(tmp_path / os.fsdecode(b"3_\xff") / "a.png")
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system takes no such name")
    put(tmp_path / "z.png", text="a box")
    found = read_folder(tmp_path)
    assert [each.name for each in found.pictures] == [r"b29-\udcff\udcfe.png", "z.png"]
    assert pixels(found.pictures[0]).size == (40, 24)
    assert found.notes == (r"3_\udcff/a.png: has no caption but its folder's name, which is no text; it is left out",)


DEEP = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257  # black to white
RAMP = (DEEP // 257).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("16 bits.png", DEEP, RAMP),
        ("16 bits.tif", DEEP, RAMP),
        ("32 bits.tif", DEEP.astype(np.int32), RAMP),
        ("32 bits, all of them.tif", DEEP.astype(np.int32) * 9000, RAMP),
        ("floats.tif", RAMP.astype(np.float32) / 255, RAMP),
        ("floats of eight bits.tif", RAMP.astype(np.float32), RAMP),
        ("floats of 16 bits.tif", DEEP.astype(np.float32), RAMP),
        ("no numbers.tif", np.where(RAMP == 7, np.nan, RAMP / 255).astype(np.float32), np.where(RAMP == 7, 0, RAMP)),
        ("dark 16 bits.png", DEEP // 257, np.where(RAMP > 128, 1, 0)),
    ],
)
def test_grey_of_more_than_eight_bits_keeps_its_range_here_and_in_copies(tmp_path, name, values, expected):
    Image.fromarray(values).save(tmp_path / name)
    (tmp_path / name).with_suffix(".txt").write_text("a ramp")
    (picture,) = read_folder(tmp_path).pictures
    found = np.asarray(pixels(picture))
    assert found.shape == (16, 16, 3) and np.array_equal(found, np.stack([expected] * 3, 2))
    copies = read(tmp_path / name)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(copies - found).max() <= 0.5


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_keeps_its_colours_as_in_trainers(tmp_path, mode):
    image = Image.fromarray(RAMP).convert(mode)
    if mode != "P":
        image.putalpha(0)
    image.save(tmp_path / "a.png", **({"transparency": 3} if mode == "P" else {}))
    (tmp_path / "a.txt").write_text("a ramp")
    (picture,) = read_folder(tmp_path).pictures
    assert Image.open(tmp_path / "a.png").has_transparency_data
    assert np.array_equal(np.asarray(pixels(picture)), np.stack([RAMP] * 3, 2))


@pytest.mark.parametrize(
    ("limit", "said"), [(500, "40 x 24; the limit is 500"), (400, "960; the limit is 400")], ids=["large", "larger"]
)
def test_a_picture_that_is_too_large_is_said_to_be_so(tmp_path, monkeypatch, limit, said):
    put(tmp_path / "a.png", text="a")
    put(tmp_path / "b.png", text="b", size=(8, 8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    found = read_folder(tmp_path)
    assert found.notes == (f"a.png: has too many pixels, {said}; it is left out",)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    with pytest.raises(OSError, match="too many pixels, 8 x 8; the limit is 60"):  # changed since it was read
        pixels(found.pictures[0])


def test_what_pillow_says_of_a_broken_picture_is_no_class_of_python(tmp_path):
    put(tmp_path / "good.png", text="a good one")
    put(tmp_path / "cut.jpg", size=(200, 200), text="cut off")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:600])
    (note,) = read_folder(tmp_path).notes
    assert note == "cut.jpg: is broken: no picture, or damaged or not written to its end; it is left out"


def test_line_separators_of_unicode_end_no_row_and_a_second_row_is_said(tmp_path):
    for name in "abc":
        put(tmp_path / f"{name}.png")
    rows = [("a.png", "one\u2028two\x85three"), ("b.png", "first"), ("b.png", "last")]
    text = "\r\n".join(json.dumps({"file_name": n, "text": t}, ensure_ascii=False) for n, t in rows)
    (tmp_path / "metadata.jsonl").write_bytes(text.encode())
    (tmp_path / "c.txt").write_bytes("four\u2028five\r\nsix".encode())
    found = read_folder(tmp_path)
    assert [each.caption for each in found.pictures] == ["one two three", "last", "four\u2028five"]
    assert found.notes == ("metadata.jsonl: line 3 is a second row for b.png; the last one counts",)


@pytest.mark.parametrize("error", [RuntimeError("frame 0"), struct.error("no integer"), KeyError(1)])
def test_whatever_a_decoder_stumbles_over_is_one_line_and_the_rest_goes_on(tmp_path, monkeypatch, error):
    put(tmp_path / "bad.png", text="bad", size=(9, 9))
    put(tmp_path / "good.png", text="good")
    upright = ImageOps.exif_transpose

    def stumbling(image):
        if image.size == (9, 9):
            raise error  # AVIF's decoder raises the first, EXIF data that are damaged the second
        return upright(image)

    monkeypatch.setattr(ImageOps, "exif_transpose", stumbling)
    found = read_folder(tmp_path)
    assert [each.name for each in found.pictures] == ["good.png"]
    assert found.notes == ("bad.png: is broken: no picture, or damaged or not written to its end; it is left out",)


def test_what_is_below_black_or_no_number_is_black():
    values = np.array([[-3.0, np.inf, np.nan, 1.0]], np.float32)
    assert grey(Image.fromarray(values)).tolist() == [[0.0, 0.0, 0.0, 1.0]]
