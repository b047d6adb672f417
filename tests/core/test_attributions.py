"""Gradient, ablation and attention on a model whose gradients and effects are known in closed form."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memguard.attributions import ablation, attention, gradient, maps, weighing
from memguard.attributions.moment import Encoded, Moment
from memguard.records import StepEvidence, TokenSpan
from memguard.troubles import NoGradient

TOKENS, WIDTH = 5, 3
WORDS = (
    TokenSpan("red", (1,), place=(0, 3)),
    TokenSpan("fox", (2, 3), place=(4, 7)),
    TokenSpan("", (0,), "bos"),
    TokenSpan("", (4,), "eos"),
)


def linear(images=3, seed=0, dtype=torch.float32, coverage=None, pooled=False):
    """Return a moment whose prediction is linear in the prompt, and its weights [images, C, h, w, tokens, width]."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.randn(images, 2, 4, 4, TOKENS, WIDTH, generator=g)
    extra = torch.randn(images, 2, 4, 4, WIDTH, generator=g)

    def predict(prompt):
        text = prompt.text.to(dtype).unflatten(0, (-1, images))
        out = torch.einsum("vbnd,bcxynd->vbcxy", text, weights.to(dtype))
        if prompt.pooled is not None:
            out = out + torch.einsum("vbd,bcxyd->vbcxy", prompt.pooled.to(dtype).unflatten(0, (-1, images)), extra)
        return out.flatten(0, 1).float()

    prompt = Encoded(
        torch.randn(1, TOKENS, WIDTH, generator=g).expand(images, -1, -1),
        torch.randn(1, WIDTH, generator=g).expand(images, -1) if pooled else None,
    )
    reference = torch.randn(images, 2, 4, 4, generator=g)
    other = Encoded(torch.zeros(images, TOKENS, WIDTH), torch.zeros(images, WIDTH) if pooled else None)
    evidence = StepEvidence(0, 10, 10.0, 14.6, 981.0, predict(prompt), reference, coverage)
    return Moment(evidence, prompt, other, predict), weights


def framed(moment, frames):
    """Return the moment of a host whose latents have an axis of frames, which the evidence has below each other."""

    def predict(prompt):
        return moment.predict(prompt).unflatten(2, (frames, -1))

    return replace(moment, predict=predict)


def by_hand(moment, weights):
    """Return the gradient of each image's score: sum over the picture of gap / ||gap|| times the weights."""
    gap = moment.evidence.noise_cond - moment.evidence.noise_uncond
    unit = gap / gap.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return torch.einsum("bcxy,bcxynd->bnd", unit, weights)


def test_the_gradient_is_the_one_derived_by_hand():
    moment, weights = linear()
    text, pooled = gradient.prompt_gradient(moment)
    assert pooled is None
    torch.testing.assert_close(text, by_hand(moment, weights), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize("images", [1, 2, 3])  # 2 is also the number of channels
def test_latents_with_frames_are_weighed_as_pictures_are(frames, images):
    flat, weights = linear(images)
    moment = framed(flat, frames)
    assert moment.predict(moment.prompt).ndim == 5
    torch.testing.assert_close(moment.norms(moment.predict(moment.prompt))[0], moment.scores)
    text, _ = gradient.prompt_gradient(moment)
    torch.testing.assert_close(text, by_hand(flat, weights), rtol=1e-4, atol=1e-5)
    found, expected = (
        ablation.effects([each], WORDS, "red fox", lambda texts: [flat.reference.row(0)] * len(texts))
        for each in (moment, flat)
    )
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("frames", [1, 2])
def test_with_frames_the_gradient_is_the_finite_difference(frames):
    moment = framed(linear(2)[0], frames)
    text, _ = gradient.prompt_gradient(moment)
    for column, feature in ((0, 0), (3, 2)):
        ends = []
        for sign in (1, -1):
            moved = moment.prompt.text.clone()
            moved[:, column, feature] += sign * 1e-2
            ends.append(moment.norms(moment.predict(Encoded(moved)))[0])
        torch.testing.assert_close(text[:, column, feature], (ends[0] - ends[1]) / 2e-2, rtol=1e-2, atol=1e-3)


def test_the_gradient_is_the_finite_difference():
    moment, _ = linear()
    text, _ = gradient.prompt_gradient(moment)
    direction = torch.randn(text.shape, generator=torch.Generator().manual_seed(1))
    h = 1e-2
    shifted = [moment.norms(moment.predict(Encoded(moment.prompt.text + sign * h * direction)))[0] for sign in (1, -1)]
    torch.testing.assert_close(
        (shifted[0] - shifted[1]) / (2 * h), (text * direction).sum((1, 2)), rtol=1e-3, atol=1e-3
    )


def test_the_official_number_is_that_of_the_batch_norm_divided_by_two_n():
    moment, weights = linear(images=3)
    scores = moment.scores
    own = by_hand(moment, weights)
    expected = (own * (scores / scores.norm()).view(-1, 1, 1)).sum(0, keepdim=True) / 6
    found, _ = gradient.prompt_gradient(moment, "official")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_word_is_one_variable_and_images_and_steps_are_averaged():
    moments = [linear(seed=seed)[0] for seed in (0, 1)]
    tokens, vector = gradient.significance([gradient.prompt_gradient(m) for m in moments])
    weights = gradient.by_span(tokens, vector, WORDS)
    norms = torch.stack([gradient.prompt_gradient(m)[0] for m in moments])  # [steps, images, tokens, width]
    assert weights[0] == pytest.approx(float(norms[:, :, 1].norm(dim=-1).mean()), rel=1e-5)
    assert weights[1] == pytest.approx(float(norms[:, :, 2:4].flatten(2).norm(dim=-1).mean()), rel=1e-5)


def test_the_pooled_vector_has_a_row_of_its_own():
    moment, _ = linear(pooled=True)
    tokens, vector = gradient.significance([gradient.prompt_gradient(moment)])
    weights = gradient.by_span(tokens, vector, [TokenSpan("", (), "pooled")])
    assert weights[0] == pytest.approx(float(gradient.prompt_gradient(moment)[1].norm(dim=-1).mean()), rel=1e-5)


def test_what_is_not_covered_has_no_gradient():
    coverage = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    coverage[..., :2] = True
    moment, weights = linear(coverage=coverage)
    gap = (moment.evidence.noise_cond - moment.evidence.noise_uncond) * coverage
    unit = gap / gap.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    expected = torch.einsum("bcxy,bcxynd->bnd", unit, weights)
    torch.testing.assert_close(gradient.prompt_gradient(moment)[0], expected, rtol=1e-4, atol=1e-5)


def test_half_precision_stays_within_two_percent():
    text, _ = gradient.prompt_gradient(linear(dtype=torch.float16)[0])
    exact, _ = gradient.prompt_gradient(linear()[0])
    assert float((text - exact).norm() / exact.norm()) < 0.02


def test_nan_has_a_remedy():
    moment, _ = linear()
    broken = Moment(moment.evidence, moment.prompt, None, lambda prompt: moment.predict(prompt) * torch.nan)
    with pytest.raises(FloatingPointError, match="run the model in float32, or use method ablation"):
        gradient.prompt_gradient(broken)


@pytest.mark.parametrize("way", ["detached", "constant", "no_grad"])
def test_a_model_that_computes_without_gradients_has_a_reason_and_no_weights(way):
    moment, _ = linear()

    def without(prompt):
        if way == "constant":  # a graph that does not lead to the prompt
            return moment.evidence.noise_cond * torch.ones((), requires_grad=True)
        with torch.no_grad():
            found = moment.predict(prompt)
        # an extension's own part without gradients, the model's with: the graph leads to the prompt with nothing in it
        return found + 0 * prompt.text.sum() if way == "detached" else found

    with pytest.raises(NoGradient, match="^no gradient reaches the prompt"):
        gradient.prompt_gradient(replace(moment, predict=without))


def test_a_prompt_that_is_its_own_reference_has_a_reason_of_its_own():
    moment, _ = linear()
    same = replace(moment.evidence, noise_cond=moment.evidence.noise_uncond)
    with pytest.raises(NoGradient, match="exactly as what it is compared with"):
        gradient.prompt_gradient(replace(moment, evidence=same, predict=lambda p: 0 * p.text.sum() + same.noise_cond))


def test_a_model_that_cannot_be_differentiated_is_a_reason():
    moment, _ = linear()

    def in_place(prompt):
        root = moment.predict(prompt).sqrt()
        root.mul_(2)  # the square root is saved for the way back
        return root

    with pytest.raises(NoGradient, match="cannot be differentiated: something in it computes in place"):
        gradient.prompt_gradient(Moment(moment.evidence, moment.prompt, None, in_place))


def test_a_way_back_to_the_words_that_is_broken_is_a_reason():
    zeros = torch.zeros(1, TOKENS, WIDTH)
    tokens, vector = gradient.significance([(zeros, torch.ones(1, WIDTH))])
    assert not tokens.any() and float(vector) == WIDTH
    with pytest.raises(NoGradient, match="^no gradient reaches the prompt"):
        gradient.significance([(zeros, torch.ones(1, WIDTH))], lambda *_: torch.zeros(1, TOKENS))


def test_the_effect_of_a_word_is_the_fall_without_it():
    moment, _ = linear()
    encoded = {"fox": torch.randn(1, TOKENS, WIDTH), "red ": torch.randn(1, TOKENS, WIDTH)}
    asked = []

    def encode(texts):
        asked.extend(texts)
        return [Encoded(encoded[text]) for text in texts]

    falls = ablation.effects([moment], WORDS, "red fox", encode)
    assert asked == ["fox", "red "]
    for index, text in enumerate(asked):
        after = moment.norms(moment.predict(Encoded(encoded[text].expand(3, -1, -1))))[0]
        torch.testing.assert_close(falls[0, index], moment.scores - after)
    without_bos = moment.prompt.text.clone()
    without_bos[:, 0] = 0
    torch.testing.assert_close(falls[0, 2], moment.scores - moment.norms(moment.predict(Encoded(without_bos)))[0])


@pytest.mark.parametrize(
    ("substitute", "texts"), [("", ["fox", "red "]), ("a", ["a fox", "red a"]), ("blue", ["blue fox", "red blue"])]
)
def test_a_word_is_dropped_or_replaced_in_the_text(substitute, texts):
    assert ablation.variants("red fox", WORDS, substitute) == [*texts, None, None]


def test_ablation_takes_no_gradient_and_gives_nan_where_nothing_can_be_taken_out():
    moment, _ = linear()
    without = Moment(moment.evidence, moment.prompt, None, moment.predict)
    falls = ablation.effects([without], (WORDS[2], TokenSpan("gone", (), place=(8, 12))), "red fox gone", encode=None)
    assert not falls.requires_grad
    assert torch.isnan(falls).all()


def test_memory_that_runs_out_makes_smaller_batches(monkeypatch):
    moment, _ = linear()
    sizes = []

    def predict(prompt):
        sizes.append(len(prompt.text))
        if len(prompt.text) > 3:
            raise torch.OutOfMemoryError
        return moment.predict(prompt)

    poor = Moment(moment.evidence, moment.prompt, moment.reference, predict)
    falls = ablation.effects([poor], WORDS[2:], "red fox", encode=None)
    torch.testing.assert_close(falls, ablation.effects([moment], WORDS[2:], "red fox", encode=None))
    assert sizes == [6, 3, 3]


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 7))
def test_masses_of_all_columns_add_up_to_one_for_any_shape(batch, heads, positions, tokens):
    g = torch.Generator().manual_seed(positions)
    q, k = torch.randn(batch, positions, heads * 2, generator=g), torch.randn(batch, tokens, heads * 2, generator=g)
    found = attention.Projected(q, k, heads).probabilities()
    assert found.shape == (batch, positions, tokens)
    torch.testing.assert_close(attention.mass(found).sum(-1), torch.ones(batch))


def test_probabilities_are_those_of_plain_attention():
    q, k = torch.randn(2, 9, 8), torch.randn(2, 5, 8)
    heads = [torch.softmax(q[..., i : i + 4] @ k[..., i : i + 4].mT / 2, -1) for i in (0, 4)]
    torch.testing.assert_close(attention.Projected(q, k, 2).probabilities(), sum(heads) / 2)


def test_entropy_takes_zeros():
    mass = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(attention.entropy(mass), torch.tensor([math.log(2), 0.0]))
    part = attention.entropy(mass, torch.tensor([[True, False, True]]))
    torch.testing.assert_close(part, torch.tensor([0.5 * math.log(2), 0.0]))


def layers(size, tokens=4, images=2):
    """Return projections whose attention of token t is highest where the position's number is t modulo 4."""
    height, width = size
    q = torch.eye(tokens).repeat(height * width // tokens + 1, 1)[: height * width]
    return attention.Projected((20 * q).expand(images, -1, -1), torch.eye(tokens).expand(images, -1, -1), 1, 1.0)


def test_the_map_of_a_word_is_where_it_is_attended():
    tally = maps.MapTally((4, 4))
    here = layers((4, 4)).probabilities()
    for _ in range(3):
        tally.add({"down_blocks.0": here, "mid_block": here})
    expected = torch.zeros(4, 4)
    expected[:, 1] = 1
    torch.testing.assert_close(tally.word((1,)), expected.expand(2, -1, -1), atol=1e-6, rtol=0)
    torch.testing.assert_close(tally.word((1, 2))[0], (expected + expected.roll(1, 1)) / 2, atol=1e-6, rtol=0)


def test_a_layer_that_changes_its_size_counts_at_each_size():
    """Deep Shrink: the same layer is smaller in the first steps; the map is that of the resized steps."""
    small, full = layers((2, 2)).probabilities(), layers((4, 4)).probabilities()
    tally = maps.MapTally((4, 4))
    tally.add({"down.0": small})
    tally.add({"down.0": full})
    first, second = (maps.MapTally((4, 4)) for _ in range(2))
    first.add({"down.0": small})
    second.add({"down.0": full})
    raw = [
        maps._resize(next(iter(each._sums["down.0"].values()))[:, [1]].mean(1), (4, 4), "bicubic")
        for each in (first, second)
    ]
    torch.testing.assert_close(tally.word([1]), (sum(raw) / 2).clamp(min=0))
    torch.testing.assert_close(tally.bright_ending([3]), second.bright_ending([3]))


def test_a_layer_that_is_no_copy_of_the_latent_is_left_out_and_named():
    good, odd = layers((4, 4)).probabilities(), layers((3, 5)).probabilities()
    tally, plain = maps.MapTally((4, 4)), maps.MapTally((4, 4))
    tally.add({"down.0": good, "down.1": odd})
    plain.add({"down.0": good})
    assert tally.left == {"down.1"}
    torch.testing.assert_close(tally.word([1]), plain.word([1]))
    torch.testing.assert_close(tally.bright_ending([3]), plain.bright_ending([3]))


def test_bright_ending_reads_the_last_step_of_the_two_largest_down_layers():
    tally = maps.MapTally((4, 4))
    silent = torch.full((2, 16, 4), 0.25)
    tally.add({"down_blocks.0": silent, "up_blocks.0": silent})
    large, half = layers((4, 4)).probabilities(), layers((2, 2)).probabilities()
    tally.add({"down_blocks.0": large, "down_blocks.1": half, "up_blocks.0": large})
    own = torch.zeros(4, 4)
    own[:, 3] = 1
    small = torch.nn.functional.interpolate(torch.tensor([[[[0.0, 0.0], [0.0, 1.0]]]]), (4, 4), mode="bilinear")[0, 0]
    torch.testing.assert_close(tally.bright_ending([3])[0], (own + small) / 2, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("size", "positions", "grid"), [((64, 64), 4096, (64, 64)), ((64, 96), 384, (16, 24))])
@pytest.mark.parametrize("odd", [False, True])
def test_the_grid_of_a_layer(size, positions, grid, odd):
    assert maps.grid(positions, size) == grid
    if odd:
        assert maps.grid(5 * 7, (9, 13)) == (5, 7)


def test_a_foreign_number_of_positions_is_named():
    with pytest.raises(ValueError, match="^17 positions are no scaled copy of a latent of 8 x 8$"):
        maps.grid(17, (8, 8))


def test_smoothing_keeps_a_flat_map_and_the_mean_of_the_window():
    flat = torch.full((1, 6, 6), 2.0)
    torch.testing.assert_close(maps.smooth(flat, 3), flat)
    point = torch.zeros(1, 5, 5)
    point[0, 2, 2] = 9.0
    assert maps.smooth(point, 3)[0, 1:4, 1:4].tolist() == [[1.0] * 3] * 3


def test_normalizing_takes_a_flat_map():
    assert maps.normalize(torch.tensor([[[1.0, 3.0]], [[2.0, 2.0]]])).tolist() == [[[0.0, 1.0]], [[0.0, 0.0]]]


@pytest.mark.parametrize("order", ["large first", "small first"])
def test_bright_ending_takes_two_down_layers_and_no_third(order):
    """Each layer's EOS is of another strength, so that the mean tells which layers it is of."""

    def flat(side, eos):
        return torch.tensor([[1 - eos, eos]]).expand(1, side * side, 2).clone()

    found = {"down_blocks.0": flat(8, 0.8), "down_blocks.1": flat(8, 0.6), "down_blocks.2": flat(4, 0.2)}
    if order == "small first":
        found = dict(reversed(found.items()))
    tally = maps.MapTally((8, 8))
    tally.add({**found, "mid_block": flat(8, 0.1), "up_blocks.0": flat(8, 0.1)})
    torch.testing.assert_close(tally.bright_ending([1]), torch.full((1, 8, 8), 0.7))


def test_a_words_map_is_nowhere_below_zero():
    one = torch.zeros(1, 16, 1)
    one[0, 5] = 1.0  # enlarged by a cubic, a single bright place has dark edges
    tally = maps.MapTally((16, 16))
    tally.add({"down_blocks.0": one})
    found = tally.word([0])
    assert float(found.min()) == 0.0
    assert int((found == 0).sum()) > 0 and float(found.max()) > 0.5


def test_the_window_of_the_smoothing_is_13_pixels():
    point = torch.zeros(1, 27, 27)
    point[0, 13, 13] = 169.0
    found = maps.smooth(point)[0]
    assert int((found > 0).sum()) == 169
    assert float(found[13, 13]) == pytest.approx(1.0)


def test_gradients_too_small_for_half_precision_are_scaled():
    moment, weights = linear()
    tiny = 1e-7  # near the smallest float16; times 4096 it is far from it

    def predict(prompt):
        text = prompt.text.half().float().unflatten(0, (-1, 3))
        return torch.einsum("vbnd,bcxynd->vbcxy", text, weights * tiny).flatten(0, 1)

    small = replace(moment, predict=predict)
    text, _ = gradient.prompt_gradient(small)
    gap = predict(small.prompt) - small.evidence.noise_uncond
    unit = gap / gap.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(text, torch.einsum("bcxy,bcxynd->bnd", unit, weights * tiny), rtol=1e-2, atol=1e-10)


def test_no_forward_of_an_ablation_has_more_than_32_rows():
    moment, _ = linear(images=3)
    sizes = []

    def predict(prompt):
        sizes.append(len(prompt.text))
        return moment.predict(prompt)

    spans = tuple(TokenSpan("x", (1,), place=(0, 1)) for _ in range(25))
    ablation.effects([replace(moment, predict=predict)], spans, "x", lambda texts: [moment.prompt.row(0)] * len(texts))
    assert sizes == [30, 30, 15]


def test_the_weight_of_a_word_is_the_mean_fall_over_images_and_steps():
    first, second = linear(images=2, seed=0)[0], linear(images=2, seed=5)[0]
    spans = (*WORDS[2:], TokenSpan("cut", (), place=(0, 3)))
    found = weighing.by_ablation(weighing.start("ablation", spans, [first, second]), [first, second], "x", encode=None)
    falls = ablation.effects([first, second], spans, "x", encode=None)
    assert falls.shape == (2, 3, 2)
    expected = [float(falls[:, i].mean()) for i in range(2)]
    assert found.weights == pytest.approx((*expected, 0.0))
    assert found.token_scores == pytest.approx((expected[0], 0.0, 0.0, 0.0, expected[1]))
    assert found.unit == ablation.UNIT
