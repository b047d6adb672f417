"""Words, curve and maps as the page writes them: the numbers and sentences that a person reads."""

import base64

import numpy as np
import pytest

from memguard.overlay import ink, ramp
from memguard.plain import attribution_dict
from memguard.records import Attribution, TokenSpan

from .javascript import ask, needs_node

pytestmark = needs_node

SPANS = (
    TokenSpan("Halley", (1, 2), ids=(5, 6), emphasis=1.3),
    TokenSpan("gone", ()),
    TokenSpan("", tuple(range(3, 77)), "padding", ids=(9,) * 74),
)


def attribution(weights, spans=SPANS, **more):
    return attribution_dict(Attribution("gradient", spans, weights, unit="slope", **more))


def test_the_colours_are_those_of_the_pictures():
    found = np.array(ask("colours", "[...Array(256).keys()].map((i) => colours.ramp(i / 255))"))
    assert np.abs(found - ramp().astype(int)).max() <= 1
    inks = ask("colours", "[...Array(256).keys()].map((i) => colours.ink(colours.ramp(i / 255)))")
    assert inks == [ink(colour) for colour in ramp()]


def test_every_palette_gets_lighter_with_the_number_and_grey_has_no_hue():
    palettes = ask("colours", "colours.PALETTES")
    assert palettes == ["colour", "grey"]
    for name in palettes:
        found = np.array(ask("colours", "[...Array(9).keys()].map((i) => colours.ramp(i / 8, name))", name=name))
        assert (np.diff(found @ [0.299, 0.587, 0.114]) > 0).all()
        assert name != "grey" or np.ptp(found, axis=1).max() == 0


def test_a_chip_says_its_word_its_weight_its_share_and_its_tokens():
    first, gone, padding = ask("chips", "chips.chips(values)", values=attribution((3.0, 0.0, 1.0)))
    assert (first["word"], first["weight"]) == ("Halley", "3")
    assert first["title"] == "Halley: 3, 75 % of the sum, token 5 6, emphasis 1.3"
    assert gone["title"] == "gone: 0, 0 % of the sum, cut off, the model never sees it"
    assert padding["weight"] == "1 (25 %)"
    assert padding["title"] == "[padding]: 1, 25 % of the sum, token 9 9 9 9 9 9 9 9 …"
    assert first["background"] == f"rgb({','.join(map(str, ramp()[-1]))})" and first["colour"] == "black"


def test_there_are_no_shares_of_a_sum_with_negative_weights():
    chips = ask("chips", "chips.chips(values)", values=attribution((1.23456, 0.0, -0.5)))
    assert [chip["title"] for chip in chips][:1] == ["Halley: 1.23, token 5 6, emphasis 1.3"]
    assert chips[2]["weight"] == "-0.5"


def test_each_part_of_a_prompt_has_its_row_and_its_own_sum():
    spans = (TokenSpan("cup", (1,)), TokenSpan("", (2,), "eos"), TokenSpan("tree", (1,), part=1))
    rows = ask("chips", "chips.rows(values)", values=attribution((1.0, 3.0, 7.0), spans))
    assert [[chip["word"] for chip in row] for row in rows] == [["cup", "[EOS]"], ["tree"]]
    assert rows[0][1]["weight"] == "3 (75 %)"
    assert [chip["index"] for row in rows for chip in row] == [0, 1, 2]


def test_the_lines_say_the_unit_and_the_notes_or_the_reason():
    assert ask("chips", "chips.lines(values)", values=attribution((1.0, 0.0, 0.0), notes=("a note",))) == [
        "gradient: slope",
        "a note",
    ]
    none = attribution_dict(Attribution("attention", status="no cross-attention"))
    assert ask("chips", "chips.lines(values)", values=none) == ["No attribution: no cross-attention"]


def test_a_curve_has_points_numbers_and_a_sentence():
    curve = [[14.6, 0.02], [7.0, 0.08], [0.0, 0.04]]
    found = ask("curve", "curve.describeCurve(values)", values=curve)
    assert [(point["x"], round(point["y"], 6)) for point in found["points"]] == [(0, 0.25), (0.5, 1), (1, 0.5)]
    assert (found["calls"], found["values"]) == ([1, 3], ["0", "0.08"])
    assert found["sentence"] == (
        "Noise gap over 3 model calls, RMS: starts at 0.02, highest 0.08 at call 2, lowest 0.02 at call 1, "
        "ends at 0.04."
    )


@pytest.mark.parametrize("curve", [[], None, [[14.6, 0.1]], [[14.6, 0.1], [1.0, None]]])
def test_fewer_than_two_points_are_no_curve(curve):
    assert ask("curve", "curve.describeCurve(values)", values=curve) is None


def test_a_curve_of_zeros_lies_at_the_bottom():
    found = ask("curve", "curve.describeCurve(values)", values=[[1.0, 0.0], [0.5, 0.0]])
    assert [point["y"] for point in found["points"]] == [0, 0]


def packed(name, values, low, high, span=None):
    data = base64.b64encode(np.array(values, np.uint8).tobytes()).decode()
    return {"name": name, "span": span, "low": low, "high": high, "data": data}


ATLAS = {
    "run": "r",
    "size": [2, 3],
    "preview": None,
    "maps": [
        packed("bright_ending", [0, 51, 102, 153, 204, 255], 1.0, 2.0),
        packed("word 0", [0, 0, 0, 0, 0, 255], 0.0, 0.5, 0),
        packed("word 2", [255, 0, 0, 0, 0, 51], 0.0, 1.0, 2),
    ],
}


def test_a_map_has_its_numbers_at_their_places():
    code = (
        "[0, 1].map((row) => [0, 1, 2].map((column) => maps.valueAt(a.maps.get('bright_ending'), a.size, row, column)))"
    )
    found = ask("maps", f"((a) => {code})(maps.unpack(values))", values=ATLAS)
    assert np.allclose(found, [[1, 1.2, 1.4], [1.6, 1.8, 2]])


@pytest.mark.parametrize(
    ("x", "y", "cell"), [(0, 0, (0, 0)), (0.999, 0.999, (1, 2)), (1, 1, (1, 2)), (-1, 2, (1, 0)), (0.34, 0.5, (1, 1))]
)
def test_a_spot_of_the_picture_is_a_cell_of_the_map(x, y, cell):
    found = ask("maps", "maps.cellAt([2, 3], x, y)", x=x, y=y)
    assert (found["row"], found["column"]) == cell


def test_words_at_a_spot_are_ranked_by_their_maps():
    spans = attribution((1.0, 0.0, 0.0))["spans"]
    ranked = "maps.rankedAt(maps.unpack(values), spans, row, column)"
    assert ask("maps", ranked, values=ATLAS, spans=spans, row=0, column=0) == [
        {"word": "[padding]", "value": 1},
        {"word": "Halley", "value": 0},
    ]
    last = ask("maps", ranked, values=ATLAS, spans=spans, row=1, column=2)
    assert [(entry["word"], entry["value"]) for entry in last] == [("Halley", 0.5), ("[padding]", 0.2)]


def test_the_pixels_fade_with_the_map_and_have_the_colours_of_the_chips():
    found = ask("maps", "[...maps.pixels(maps.unpack(values).maps.get('bright_ending'), 0.8)]", values=ATLAS)
    pixels = np.array(found).reshape(6, 4)
    assert np.abs(pixels[:, :3] - ramp()[[0, 51, 102, 153, 204, 255]]).max() <= 1
    assert pixels[0, 3] == 51 and pixels[5, 3] == 204


def test_buttons_only_for_maps_that_are_kept():
    report = {"maps": ["word 0", "noise_gap", "bright_ending"]}
    assert ask("maps", "maps.buttonsOf(report).map(maps.titleOf)", report=report) == ["Where it copies", "Noise gap"]
    assert ask("maps", "maps.buttonsOf(report)", report={}) == []


def contrast(background, letters):
    """Return the contrast of letters on a background as WCAG 2 defines it."""

    def luminance(colour):
        share = [value / 255 for value in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in share]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(background), luminance(letters)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", ["colour", "grey"])
def test_every_chip_can_be_read(palette):
    code = f"[...Array(256).keys()].map((i) => colours.ramp(i / 255, '{palette}')).map((c) => [c, colours.ink(c)])"
    worst = min(contrast(c, (0, 0, 0) if name == "black" else (255, 255, 255)) for c, name in ask("colours", code))
    assert worst >= 4.5


@pytest.mark.parametrize("palette", ["colour", "grey"])
@pytest.mark.parametrize("light", [True, False])
def test_the_heaviest_word_stands_out_most_from_the_ground(palette, light):
    weights = (0.0, 1.0, 2.0, 4.0)
    spans = tuple(TokenSpan(f"w{i}", (i,)) for i in range(4))
    values = attribution_dict(Attribution("gradient", spans, weights))
    code = f"chips.chips(values, '{palette}', {str(light).lower()}).map((chip) => chip.background)"
    grounds = [tuple(map(int, each[4:-1].split(","))) for each in ask("chips", code, values=values)]
    page = (255, 255, 255) if light else (34, 34, 34)
    found = [contrast(ground, page) for ground in grounds]
    assert found == sorted(found) and found[-1] > 9
