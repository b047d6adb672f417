"""Pictures of maps and of words."""

import numpy as np
import pytest
from PIL import ImageFont

from memguard.overlay import BAR, coloured_prompt, ink, letters, overlay, ramp, written
from memguard.records import Attribution, TokenSpan

GREYS = np.array([0.2126, 0.7152, 0.0722])


def luminance(colour):
    return ((np.asarray(colour, float) / 255) ** 2.2) @ GREYS


def test_the_ramp_grows_lighter_all_the_way():
    steps = np.diff(np.cbrt(luminance(ramp())))
    assert (steps > -1e-3).all()
    assert luminance(ramp()[0]) < 0.05 and luminance(ramp()[-1]) > 0.75


def test_letters_can_be_read_on_every_colour():
    for colour in ramp():
        letters = 0.0 if ink(colour) == "black" else 1.0
        contrast = (max(luminance(colour), letters) + 0.05) / (min(luminance(colour), letters) + 0.05)
        assert contrast > 4.4


def test_opacity_0_is_the_grey_picture_and_1_the_map():
    picture = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    heat = np.linspace(0, 1, 64).reshape(8, 8)
    grey = overlay(picture, heat, 0.0, legend=None)
    assert (grey == np.round(picture @ np.array([0.299, 0.587, 0.114]))[..., None]).all()
    assert (overlay(picture, heat, 1.0, legend=None)[-1, -1] == ramp()[-1]).all()


def test_the_legend_is_below_and_the_map_is_scaled_up():
    made = overlay(np.zeros((32, 48, 3), np.uint8), np.eye(4), legend="noise gap")
    assert made.shape == (32 + BAR, 48, 3)
    assert made[:8, :8].mean() > made[:8, 24:].mean()


def test_a_flat_map_is_drawn():
    assert overlay(np.zeros((8, 8, 3), np.uint8), np.full((2, 2), 3.0)).shape == (8 + BAR, 8, 3)


@pytest.mark.parametrize(
    ("picture", "heat", "opacity", "message"),
    [
        (np.zeros((8, 8), np.uint8), np.eye(2), 0.5, "give [H, W, 3] and [h, w]"),
        (np.zeros((8, 8, 3), np.uint8), np.eye(2)[None], 0.5, "give [H, W, 3] and [h, w]"),
        (np.zeros((8, 8, 3), np.uint8), np.eye(2), 1.5, "opacity is 1.5; give a number between 0 and 1"),
    ],
)
def test_bad_input_is_named(picture, heat, opacity, message):
    with pytest.raises(ValueError) as error:
        overlay(picture, heat, opacity)
    assert message in str(error.value)


def test_words_are_drawn_one_below_the_other_when_the_line_is_full():
    spans = tuple(TokenSpan(f"word{i}", (i,)) for i in range(12))
    weights = tuple(i / 11 for i in range(12))
    wide, narrow = (coloured_prompt(Attribution("gradient", spans, weights), width) for width in (2000, 200))
    assert wide.shape[1] == 2000 and narrow.shape[1] == 200
    assert narrow.shape[0] > 3 * wide.shape[0]
    assert (narrow.reshape(-1, 3) == ramp()[-1]).all(1).any() and (narrow.reshape(-1, 3) == ramp()[0]).all(1).any()


def test_the_font_of_an_old_pillow_writes_what_it_can(monkeypatch):
    """A1111 and Forge pin Pillow 9.5, whose only font has no size and no letters beyond Latin-1."""
    small = ImageFont.ImageFont()
    monkeypatch.setattr("memguard.overlay.letters", lambda: small)
    assert written("comet é 日本") == "comet é ??"
    monkeypatch.undo()
    assert written("comet é 日本") == "comet é 日本"
    real = ImageFont.load_default

    def old(*size):
        if size:
            raise TypeError("load_default() takes 0 positional arguments but 1 was given")
        return real(10)

    monkeypatch.setattr(ImageFont, "load_default", old)
    letters.cache_clear()
    try:
        assert letters().size == 10
    finally:
        letters.cache_clear()
