"""The index of a folder: new, changed, vanished and broken pictures, and files that cannot be kept."""

import os
import sqlite3

import numpy as np
import pytest
import torch
from PIL import Image

from memguard import testbed
from memguard.copies.index import Index
from memguard.copies.reading import MOST, files_of, read
from memguard.copies.signatures import Thumbnails
from memguard.troubles import Refused

PICTURES = [each.picture for each in testbed.originals()[:7]]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMGUARD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "references"
    (path / "deeper").mkdir(parents=True)
    for number, picture in enumerate(PICTURES[:4]):
        Image.fromarray(picture).save(path / ("deeper/d.png" if number == 3 else f"{'abc'[number]}.png"))
    (path / "notes.txt").write_text("no picture")
    (path / ".hidden.png").write_bytes(b"")
    return path


class Counting(Thumbnails):
    """Counts what is read."""

    def __init__(self):
        self.made = 0

    def make(self, pictures):
        self.made += len(pictures)
        return super().make(pictures)


def updated(folder, path=None):
    kind = Counting()
    index = Index(folder, kind, path)
    result = index.update()
    return index, result, kind.made


def counts(result):
    return result.new, result.changed, result.vanished


def query(picture) -> torch.Tensor:
    return Thumbnails().make([torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255])


def test_a_folder_is_read_once_and_then_what_changed(folder, home):
    index, result, made = updated(folder)
    assert (counts(result), made, result.kept, result.broken) == ((4, 0, 0), 4, "ok", [])
    assert index.names == ["a.png", "b.png", "c.png", "deeper/d.png"]
    assert len(list((home / "copies").glob("*.sqlite"))) == 1
    _, result, made = updated(folder)
    assert (counts(result), made) == ((0, 0, 0), 0)
    Image.fromarray(PICTURES[5]).save(folder / "b.png")
    Image.fromarray(PICTURES[6]).save(folder / "e.jpg")
    (folder / "c.png").unlink()
    index, result, made = updated(folder)
    assert (counts(result), made) == ((1, 1, 1), 2)
    similarities, places = index.open().nearest(query(PICTURES[5]), 2, [None])
    assert index.names[places[0, 0]] == "b.png" and similarities[0, 0] > 0.95 > similarities[0, 1]
    assert counts(updated(folder)[1]) == (0, 0, 0)


def test_a_change_of_the_time_alone_is_a_change(folder):
    updated(folder)
    os.utime(folder / "a.png", ns=(1, 1))
    assert counts(updated(folder)[1]) == (0, 1, 0)


def test_a_broken_picture_is_one_line_and_the_rest_goes_on(folder):
    updated(folder)
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    (folder / "z.jpg").write_bytes(b"")
    for _ in range(2):  # it is told again
        index, result, _ = updated(folder)
        assert index.names == ["b.png", "c.png", "deeper/d.png"]
        assert result.broken == [
            f"{folder / name}: cannot be read (no picture, or damaged)" for name in ("a.png", "z.jpg")
        ]


def test_a_picture_that_is_too_large_is_known_before_it_is_decoded(folder, monkeypatch):
    assert MOST == Image.MAX_IMAGE_PIXELS  # from where on Pillow warns
    monkeypatch.setattr("memguard.copies.reading.MOST", 128 * 128)
    Image.new("1", (129, 128)).save(folder / "large.png")
    photo = Image.fromarray(PICTURES[4]).resize((512, 512))
    photo.save(folder / "photo.jpg")
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(Refused, match="large.png: has 129 x 128 pixels, and at most 0 million are read; make it smal"):
        read(folder / "large.png")
    monkeypatch.undo()
    monkeypatch.setattr("memguard.copies.reading.MOST", 256 * 256)
    assert read(folder / "photo.jpg").shape == (1, 3, 256, 256)  # decoded at a smaller size
    assert read(folder / "photo.jpg", whole=True).shape == (1, 3, 256, 256)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_a_picture_that_the_memory_does_not_hold_is_one_line(folder, monkeypatch, error):
    def make(self, pictures):
        if pictures[0].shape[3] == 300:
            raise error
        return Thumbnails.make(self, pictures)

    monkeypatch.setattr(Counting, "make", make)
    Image.new("RGB", (300, 20)).save(folder / "b.png")
    index, result, _ = updated(folder)
    assert index.names == ["a.png", "c.png", "deeper/d.png"]
    assert result.broken == [f"{folder / 'b.png'}: there is not enough memory for its pixels; make it smaller"]


def test_an_error_of_the_program_is_no_picture_s_fault(folder, monkeypatch):
    def make(self, pictures):
        raise RuntimeError("sizes do not fit")

    monkeypatch.setattr(Counting, "make", make)
    with pytest.raises(RuntimeError, match="sizes"):
        updated(folder)


def test_an_interrupted_reading_continues(folder, monkeypatch):
    monkeypatch.setattr("memguard.copies.index.BATCH", 2)

    def two(paths):
        yield from paths[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Index(folder, Thumbnails()).update(two)
    assert updated(folder)[2] == 2


def test_an_index_that_cannot_be_kept_is_said_and_the_search_works(folder, tmp_path):
    photo = tmp_path / "photo.sqlite"
    photo.write_bytes(b"somebody's file" * 100)
    index, result, made = updated(folder, photo)
    assert result.kept == f"{photo} is no index of memguard; it is left as it is, choose another name"
    assert photo.read_bytes() == b"somebody's file" * 100 and made == 4
    assert index.open().nearest(query(PICTURES[0]), 1, [None])[1].tolist() == [[0]]


def test_an_index_that_is_damaged_may_be_deleted(folder, tmp_path):
    path = tmp_path / "mine.sqlite"
    updated(folder, path)
    path.write_bytes(path.read_bytes()[:16] + b"\xff" * 5000)
    assert updated(folder, path)[1].kept == f"{path} is damaged; rename or delete it, and a new one is begun"


def test_another_program_s_database_is_left_alone(folder, tmp_path):
    path = tmp_path / "theirs.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    assert "another program's database" in updated(folder, path)[1].kept
    assert path.read_bytes() == before


def test_the_index_of_another_folder_is_refused(folder, tmp_path):
    path = tmp_path / "mine.sqlite"
    updated(folder, path)
    with pytest.raises(Refused, match="is the index of .*references and memguard thumbnails 1; choose another name"):
        Index(folder / "deeper", Thumbnails(), path)


def test_a_folder_that_is_none_and_one_without_pictures(tmp_path):
    with pytest.raises(Refused, match="nowhere: no such folder of pictures"):
        updated(tmp_path / "nowhere")
    index, _, _ = updated(tmp_path)
    with pytest.raises(Refused, match="holds no picture that can be read"):
        index.open()


def test_a_picture_does_not_count_as_its_own_copy_where_it_is_barred(folder):
    index, _, _ = updated(folder)
    found = index.open()
    assert found.nearest(query(PICTURES[0]), 4, [None])[1][0, 0] == 0
    similarities, places = found.nearest(query(PICTURES[0]), 4, [0])
    assert places[0, -1] == 0 and similarities[0, -1].isinf()


def test_one_search_and_several_at_a_time_agree(folder, monkeypatch):
    index, _, _ = updated(folder)
    found = index.open()
    several = torch.cat([query(picture) for picture in PICTURES])
    whole = found.nearest(several, 2, [None] * 7)
    monkeypatch.setattr("memguard.copies.signatures.AT_ONCE", 3)
    for one, other in zip(whole, found.nearest(several, 2, [None] * 7), strict=True):
        torch.testing.assert_close(one, other)


def test_a_file_name_that_is_no_text(folder):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        Image.fromarray(PICTURES[5]).save(folder / name)
    except OSError:
        pytest.skip("this file system takes text only")
    for _ in range(2):
        index, result, made = updated(folder)
        assert name in index.names and result.kept == "ok"
    assert made == 1


def test_pictures_are_read_as_they_are_seen(tmp_path):
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(picture).save(tmp_path / "turned.jpg", exif=exif, quality=100)
    found = read(tmp_path / "turned.jpg")
    assert found.shape == (1, 3, 30, 20) and found[0, :, 2].mean() > 0.9 > 0.1 > found[0, :, 25].mean()
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read(tmp_path / "clear.png").min() == 1
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(tmp_path / "deep.png")
    assert abs(float(read(tmp_path / "deep.png").mean()) - 0.5) < 1e-3
    Image.fromarray(np.full((2000, 2000, 3), 77, np.uint8)).save(tmp_path / "large.jpg")
    assert read(tmp_path / "large.jpg").shape[2] < 600 and read(tmp_path / "large.jpg", whole=True).shape[2] == 2000
    assert [path.name for path in files_of(tmp_path)] == ["clear.png", "deep.png", "large.jpg", "turned.jpg"]
