"""MemGuard Find Copies: the nearest picture of a folder, in a real ComfyUI."""

import folder_paths
import numpy as np
import pytest
import torch
from PIL import Image

from memguard_pack.memguard import testbed
from memguard_pack.memguard.hosts.comfyui import finding
from memguard_pack.nodes.find_copies import MemGuardFindCopies

PICTURES = [each.picture for each in testbed.originals()[:4]]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """ComfyUI's input folder with three pictures in a folder of their own."""
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    monkeypatch.setattr(finding, "_last", None)
    path = tmp_path / "mine"
    path.mkdir()
    for number, picture in enumerate(PICTURES[:3]):
        Image.fromarray(picture).resize((160, 96)).save(path / f"{number}.png")
    return path


def images(*pictures) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).float() / 255


def run(image, folder="mine", threshold=0.8):
    with torch.inference_mode():
        return MemGuardFindCopies.execute(image, folder, threshold)


def test_a_mirrored_crop_is_found_with_its_picture():
    image = images(PICTURES[1])[:, 10:110, 20:120].flip(2)
    found = run(image)
    nearest, similarity, copied, said = found.result
    assert copied is True and similarity > 0.85
    assert said == f"{similarity:.3f} 1.png (copy)" and found.ui == {"text": [said]}
    with Image.open(finding.folder_of("mine") / "1.png") as expected:
        assert torch.equal(nearest, images(np.asarray(expected)))


def test_another_picture_is_none(folder):
    nearest, similarity, copied, said = run(images(PICTURES[3]), str(folder)).result
    assert copied is False and similarity < 0.6 and "(copy)" not in said
    assert nearest.shape == (1, 96, 160, 3)
    assert run(images(PICTURES[3]), threshold=similarity).result[2] is True


def test_several_pictures_have_a_line_each_and_the_most_similar_is_shown():
    image = images(PICTURES[3], PICTURES[2], PICTURES[3])
    nearest, similarity, copied, said = run(image).result
    lines = said.splitlines()
    assert len(lines) == 3 and lines[1] == f"{similarity:.3f} 2.png (copy)" and copied
    assert nearest.shape == (1, 96, 160, 3)


def test_pictures_with_transparency_and_half_precision():
    image = torch.cat((images(PICTURES[0]), torch.ones(1, 128, 128, 1)), 3).half()
    assert run(image).result[2] is True


def test_the_folder_is_looked_at_again(folder):
    before = MemGuardFindCopies.fingerprint_inputs("mine", image=None, threshold=0.8)
    assert run(images(PICTURES[3])).result[2] is False
    assert MemGuardFindCopies.fingerprint_inputs("mine", image=None, threshold=0.8) == before
    Image.fromarray(PICTURES[3]).save(folder / "new.png")
    assert MemGuardFindCopies.fingerprint_inputs("mine", image=None, threshold=0.8) != before
    assert run(images(PICTURES[3])).result[3].endswith("new.png (copy)")
    (folder / "new.png").unlink()
    assert run(images(PICTURES[3])).result[2] is False


def test_the_index_stays_open_while_nothing_changes(monkeypatch):
    run(images(PICTURES[0]))
    opened = finding._last
    run(images(PICTURES[1]))
    assert finding._last is opened


def test_a_broken_picture_is_a_line(folder):
    (folder / "broken.png").write_bytes(b"no picture")
    assert run(images(PICTURES[0])).result[3].splitlines()[1:] == ["1 pictures of the folder cannot be read"]


def test_the_stop_button_ends_the_reading(monkeypatch):
    class Stopped(Exception):
        pass

    def stop():
        raise Stopped

    monkeypatch.setattr("comfy.model_management.throw_exception_if_processing_interrupted", stop)
    with pytest.raises(Stopped):
        run(images(PICTURES[0]))


@pytest.mark.parametrize("name", ["", "  ", "nowhere", "mine/0.png"])
def test_a_folder_that_is_none_is_said_before_the_run(name):
    said = f"folder {name!r}: no such folder; give a whole path, or a folder below ComfyUI's input folder"
    assert MemGuardFindCopies.validate_inputs(name) == said
    assert MemGuardFindCopies.validate_inputs("mine") is True
    with pytest.raises(ValueError, match="no such folder"):
        run(images(PICTURES[0]), name)


def test_a_folder_without_pictures_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: holds no picture that can be read$"):
        run(images(PICTURES[0]), "empty")


@pytest.mark.parametrize(
    ("listen", "alone"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("127.0.0.1,::1", True),
        ("0.0.0.0", False),
        ("0.0.0.0,::", False),
        ("127.0.0.1,192.168.1.2", False),
        ("my-machine", False),
    ],
)
def test_pictures_outside_of_the_input_folder_are_shown_to_this_machine_alone(listen, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(finding.args, "listen", listen)
    (tmp_path / "input").mkdir()
    (tmp_path / "mine").rename(tmp_path / "outside")
    (tmp_path / "input" / "link").symlink_to(tmp_path / "outside")
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    for name in (str(tmp_path / "outside"), "../outside", "link"):
        said = MemGuardFindCopies.validate_inputs(name)
        assert said is True if alone else said.startswith(f"folder {name!r} is outside of ComfyUI's input folder")
    (tmp_path / "input" / "mine").mkdir()
    assert MemGuardFindCopies.validate_inputs("mine") is True
