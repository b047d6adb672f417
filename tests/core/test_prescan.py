"""Who a pre-scan promotes, and which profile it takes; profiles and findings made by hand."""

from dataclasses import replace

import pytest

from memguard.calibration import Conditions, Have, Profile, fit
from memguard.calibration.prescan import Frame, looked, unsuited
from memguard.records import Finding

NAME = "text_noise_norm"
CONDITIONS = Conditions("cafe", "sd15", (32, 32), 14.6, 981.0, 1, 50, "DDIMScheduler", "negative", "float32", 7.5)
PROFILE = Profile(CONDITIONS, {NAME: fit(range(1, 100))})
HAVE = Have("cafe", None, 1, "negative", negative="empty")


def wrong(frame=None, rate=0.1, profile=PROFILE):
    return unsuited(profile, [NAME], HAVE, rate, frame)


@pytest.mark.parametrize("grain", [8, 16])
@pytest.mark.parametrize(
    ("height", "width"),
    [(512, 512), (768, 1024), (1216, 832), (832, 1216), (1344, 768), (528, 1008), (1008, 528), (1008, 1024), (48, 128)],
)
def test_half_of_a_size_is_a_first_look_at_it_and_other_shapes_are_none(height, width, grain):
    frame = Frame(height, width, 8, grain)
    half = frame.half()
    assert [side % grain for side in half] == [0, 0]
    assert [whole / 2 - side for whole, side in zip((height, width), half, strict=True)] == [
        (height % (2 * grain)) / 2,
        (width % (2 * grain)) / 2,
    ]

    def of(*pixels):
        return wrong(
            frame, profile=replace(PROFILE, conditions=replace(CONDITIONS, latent=tuple(p // 8 for p in pixels)))
        )

    assert of(*half) is None
    assert f"a smaller picture of the same shape: memguard calibrate --height {half[0]} --width {half[1]}" in of(
        height, width
    )
    for other in ((half[0] + 2 * grain, half[1]), (half[0], half[1] + 2 * grain)):
        assert of(*other).startswith(
            f"the profile is of {other[1]} x {other[0]} pixels, the scan of {width} x {height};"
        )


def test_a_square_look_is_none_at_a_picture_that_is_not_square():
    look = replace(PROFILE, conditions=replace(CONDITIONS, latent=(8, 8)))
    assert wrong(Frame(128, 128, 8, 8), profile=look) is None
    for size in ((128, 160), (160, 128), (128, 192), (256, 128)):
        assert "of the same shape" in wrong(Frame(*size, 8, 8), profile=look), size


def test_a_share_that_nobody_can_be_in_is_refused():
    assert wrong(rate=0.01) is None
    assert wrong(rate=0.0099) == (
        "promote is 0.0099, but none can rank higher than 1 of 100 among 99 ordinary prompts;"
        " give at least 0.01, or calibrate with more of them"
    )


def test_one_finding_on_the_border_or_without_a_rank_promotes():
    def promoted(*ranks):
        return {look.promoted for look in looked([Finding(NAME, p_value=p) for p in ranks], 0.1, 8, 8)}

    assert promoted(0.1) == promoted(0.5, 0.1) == promoted(None) == promoted(None, 0.5) == {True}
    assert promoted(0.11) == promoted(0.11, 1.0) == {False}
