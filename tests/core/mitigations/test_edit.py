"""Edits of cross-attention against attention that is written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memguard.mitigations import get
from memguard.mitigations.attention_scaling import ScaleAndMask
from memguard.mitigations.base import Treatment
from memguard.mitigations.edit import BOS, EOS, PADDING, AttentionSite, Edit, Plan, last_share
from memguard.mitigations.neuron_mask import Mask
from memguard.mitigations.spike_attenuation import Attenuate
from memguard.records import NeuronSet

from .conftest import TOKENS, layout

HEADS, DIM = 2, 5
EARLY, LATE = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2",
    "up_blocks.1.attentions.0.transformer_blocks.0.attn2",
)
SCALE = DIM**-0.5


def tensors(rows=4, tokens=TOKENS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, 12, HEADS * DIM), (rows, tokens, HEADS * DIM), (rows, tokens, HEADS * DIM))
    return tuple(torch.randn(shape, generator=generator) * 2 for shape in shapes)


def split(values):
    return values.unflatten(-1, (HEADS, DIM)).transpose(1, 2)


def backend(q, k, v, bias, rows=None, columns=None):
    """Attention of the host: it knows queries, keys, values and a bias, and nothing of edits."""
    out = torch.nn.functional.scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=bias)
    return out.transpose(1, 2).flatten(2)


def written_out(q, k, v, logits=lambda values: values):
    """Attention by the formula, with logits [rows, heads, positions, tokens] changed in between."""
    changed = logits(split(q) @ split(k).transpose(-1, -2) * SCALE)
    return (changed.softmax(-1) @ split(v)).transpose(1, 2).flatten(2)


def conditional(rows=4):
    """Prompt rows 0 and 3: no order that a half would give."""
    return torch.tensor([i in (0, 3) for i in range(rows)])


def run(edit, layer=EARLY, groups=None, rows=4, tokens=TOKENS):
    q, k, v = tensors(rows, tokens)
    plan = Plan([edit], conditional(rows), groups)
    return plan.attend(layer, HEADS, SCALE, q, k, v, backend), (q, k, v)


def test_an_edit_that_changes_nothing_gives_the_hosts_own_output():
    found, (q, k, v) = run(Edit(), groups=layout(3, 4))
    assert torch.equal(found, backend(q, k, v, None))


def test_bos_is_scaled_on_the_prompts_rows_only():
    found, (q, k, v) = run(ScaleAndMask(1.25, (), 1.0, None), groups=layout(3, 4))

    def by_hand(logits):
        logits = logits.clone()
        logits[[0, 3], :, :, 0] *= 1.25
        return logits

    torch.testing.assert_close(found, written_out(q, k, v, by_hand))
    assert torch.equal(found[1:3], backend(q, k, v, None)[1:3])


@pytest.mark.parametrize(("masked", "left"), [((PADDING,), 5), ((PADDING, EOS), 4)])
def test_masked_keys_take_no_part_in_the_prompts_rows(masked, left):
    found, (q, k, v) = run(ScaleAndMask(1.0, masked, 1.0, None), groups=layout(3, 4))

    def by_hand(logits):
        logits = logits.clone()
        logits[[0, 3], :, :, left:] = -torch.inf
        return logits

    torch.testing.assert_close(found, written_out(q, k, v, by_hand))


def test_masked_keys_are_left_out_and_not_computed():
    seen = []

    def counting(q, k, v, bias, rows, columns):
        seen.append((torch.arange(4)[rows].tolist(), torch.arange(77)[columns].tolist()))
        return backend(q, k, v, bias)

    q, k, v = tensors()
    Plan([ScaleAndMask(1.0, (PADDING,), 1.0, None)], conditional(), layout(3, 4)).attend(
        EARLY, HEADS, SCALE, q, k, v, counting
    )
    assert sorted(seen) == [([0, 3], list(range(5))), ([1, 2], list(range(77)))]


def test_every_chunk_of_a_long_prompt_has_its_own_bos_and_padding():
    groups = layout(3, 4, chunks=3)
    found, (q, k, v) = run(ScaleAndMask(2.0, (PADDING,), 1.0, None), groups=groups, tokens=231)

    def by_hand(logits):
        logits = logits.clone()
        for first in (0, 77, 154):
            logits[[0, 3], :, :, first] *= 2
            logits[[0, 3], :, :, first + 5 : first + 77] = -torch.inf
        return logits

    torch.testing.assert_close(found, written_out(q, k, v, by_hand))


def test_a_prompt_repeated_to_a_common_length_keeps_its_output():
    edit = ScaleAndMask(1.5, (PADDING,), 1.0, None)
    q, k, v = tensors()
    groups = layout(3, 4)
    once = Plan([edit], conditional(), groups).attend(EARLY, HEADS, SCALE, q, k, v, backend)
    twice = Plan([edit], conditional(), groups.repeat(1, 2)).attend(
        EARLY, HEADS, SCALE, q, k.repeat(1, 2, 1), v.repeat(1, 2, 1), backend
    )
    torch.testing.assert_close(once, twice)


def test_prompts_of_different_length_in_one_batch_have_their_own_masks():
    groups = torch.cat([layout(2), layout(9), layout(4), layout(30)])
    found, (q, k, v) = run(ScaleAndMask(1.0, (PADDING,), 1.0, None), groups=groups)

    def by_hand(logits):
        logits = logits.clone()
        logits[0, :, :, 4:] = logits[3, :, :, 32:] = -torch.inf
        return logits

    torch.testing.assert_close(found, written_out(q, k, v, by_hand))


def test_official_rows_are_the_odd_ones_and_the_mask_is_for_all():
    found, (q, k, v) = run(ScaleAndMask(1.25, (PADDING,), 1.0, "official"), groups=layout(3, 4))

    def by_hand(logits):
        logits = logits.clone()
        logits[..., 5:] = -torch.inf
        logits[1::2, :, :, 0] *= 1.25
        return logits

    torch.testing.assert_close(found, written_out(q, k, v, by_hand))


def spikes(logits, tau=0.5, safe=(0,)):
    """Tokens whose largest logit is tau standard deviations above the others', by a loop over rows and heads."""
    found = torch.zeros(logits.shape[:2] + logits.shape[-1:], dtype=torch.bool)
    for row in range(len(logits)):
        for head in range(logits.shape[1]):
            for first in range(0, logits.shape[-1], TOKENS):
                highest = logits[row, head, :, first : first + TOKENS].amax(0)
                others = highest[1:]
                z = (highest - others.mean()) / (others.std() + 1e-6)
                found[row, head, first : first + TOKENS] = z > tau
                found[row, head, first] = False
    return found


@pytest.mark.parametrize("chunks", [1, 2])
def test_spikes_by_the_official_rule(chunks):
    found, (q, k, v) = run(Attenuate(0.3, 0.5, official=True), groups=layout(3, 4, chunks), tokens=77 * chunks)

    def by_hand(logits):
        factor = torch.where(spikes(logits), 0.3, 1.0)
        factor[1:3] = 1
        return logits * factor[:, :, None]

    torch.testing.assert_close(found, written_out(q, k, v, by_hand))


def test_spikes_by_the_safe_rule_never_raise_a_logit():
    found, (q, k, v) = run(Attenuate(0.3, 0.5), groups=layout(3, 4))

    def by_hand(logits):
        factor = torch.where(spikes(logits), 0.3, 1.0)
        factor[1:3] = 1
        return torch.where(logits > 0, logits * factor[:, :, None], logits)

    torch.testing.assert_close(found, written_out(q, k, v, by_hand), atol=1e-5, rtol=1e-4)


def test_spikes_cut_at_a_cap():
    found, (q, k, v) = run(Attenuate(0.3, 0.5, cap=1.0), groups=layout(3, 4))

    def by_hand(logits):
        highest = logits.amax(2)[..., 1:]
        limit = (highest.mean(-1) + 0.5 * highest.std(-1)).clamp(min=0)[..., None, None]
        cut = torch.minimum(logits, limit)
        cut[..., 0] = logits[..., 0]
        cut[1:3] = logits[1:3]
        return cut

    torch.testing.assert_close(found, written_out(q, k, v, by_hand), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("strength", "share"), [(1.0, 1.0), (0.25, 0.25)])
def test_a_cap_goes_part_of_the_way_and_never_cuts_below_zero(start, strength, share):
    (edit,) = get("spike_attenuation", rule="cap", strength=strength, tau=0.5).treat(start(4), Treatment()).edits
    k = torch.tensor([-3.0, -1.0, -4.0, -4.0, -4.0]).reshape(1, 5, 1)  # the second one is a spike
    words = torch.tensor([[BOS, 2, 2, 2, 2]], dtype=torch.int8)
    q, site = torch.ones(1, 1, 1), AttentionSite(EARLY, 1, 1.0, torch.tensor([True]), words)
    assert not edit.bias(q, k, site).any(), "all logits are below zero, and so is their limit"
    high = torch.tensor([-3.0, 7.0, 1.0, 1.0, 1.0]).reshape(1, 5, 1)
    limit = high[0, 1:].mean() + 0.5 * high[0, 1:].std()
    expected = torch.tensor([0.0, float(share * (limit - 7.0)), 0.0, 0.0, 0.0])
    torch.testing.assert_close(edit.bias(q, high, site).flatten(), expected)


def test_biases_of_two_mitigations_add_up():
    """Both attenuations answer with a bias; the second sees the same logits, since keys are unchanged."""
    first, second = Attenuate(0.3, 0.5), Attenuate(0.6, 0.5, cap=1.0)
    q, k, v = tensors()
    groups = layout(3, 4)
    site = AttentionSite(EARLY, HEADS, SCALE, conditional(), groups)
    biases = first.bias(q, k, site), second.bias(q, k, site)
    assert all(bias.any() for bias in biases)
    assert not torch.allclose(*biases)
    found = Plan([first, second], conditional(), groups).attend(EARLY, HEADS, SCALE, q, k, v, backend)
    torch.testing.assert_close(found, written_out(q, k, v, lambda logits: logits + sum(biases)), atol=1e-5, rtol=1e-4)


def test_a_share_of_the_padding_and_the_whole_eos_are_left_out(start):
    mitigation = get("attention_scaling", strength=0.5, mask_eos=True)
    (edit,) = mitigation.treat(start(1), Treatment()).edits
    groups = torch.tensor([[BOS, 2, EOS, *[PADDING] * 4]], dtype=torch.int8)
    kept = edit.keep(torch.tensor([True]), groups)
    assert kept.tolist() == [[True, True, False, True, True, False, False]]


def test_half_the_strength_of_a_neuron_mask_is_half_the_way_to_its_factor(start):
    (edit,) = get("neuron_mask", neurons=NeuronSet({EARLY: (1,)}), strength=0.5).treat(start(1), Treatment()).edits
    assert edit.factor == 0.5
    (edit,) = (
        get("neuron_mask", neurons=NeuronSet({EARLY: (1,)}, scale=0.4), strength=0.5).treat(start(1), Treatment()).edits
    )
    assert edit.factor == pytest.approx(0.7)


def test_spikes_are_attenuated_in_the_early_layers_only():
    found, (q, k, v) = run(Attenuate(0.3, 0.5), layer=LATE, groups=layout(3, 4))
    assert torch.equal(found, backend(q, k, v, None))


def test_without_a_layout_every_77th_column_is_bos():
    with_layout, _ = run(Attenuate(0.3, 0.5), groups=layout(3, 4, 2), tokens=154)
    without, _ = run(Attenuate(0.3, 0.5), groups=None, tokens=154)
    assert torch.equal(with_layout, without)


@pytest.mark.parametrize("everywhere", [False, True])
def test_masked_neurons_are_columns_of_the_values(everywhere):
    found, (q, k, v) = run(Mask({EARLY: (1, 7)}, 0.25, everywhere))
    v = v.clone()
    rows = slice(None) if everywhere else [0, 3]
    v[rows] = v[rows] * torch.tensor([1.0, 0.25, 1, 1, 1, 1, 1, 0.25, 1, 1])
    torch.testing.assert_close(found, written_out(q, k, v))


def test_neurons_of_other_layers_are_let_be():
    found, (q, k, v) = run(Mask({LATE: (1,)}, 0.0))
    assert torch.equal(found, backend(q, k, v, None))


def test_edits_add_up_in_any_order():
    edits = [ScaleAndMask(1.25, (PADDING,), 1.0, None), Mask({EARLY: (0, 4)}, 0.0)]
    q, k, v = tensors()
    one, other = (
        Plan(order, conditional(), layout(3, 4)).attend(EARLY, HEADS, SCALE, q, k, v, backend)
        for order in (edits, edits[::-1])
    )
    assert torch.equal(one, other)


def test_rows_that_a_layer_changed_do_not_fit_the_plan():
    plan = Plan([Edit()], conditional(4), layout(3, 4))
    assert plan.fits(torch.zeros(4, 77, 2))
    assert not plan.fits(torch.zeros(6, 77, 2))
    assert not plan.fits(torch.zeros(4, 81, 2))
    assert BOS == 1


@settings(deadline=None, max_examples=40)
@given(share=st.floats(0, 1), words=st.integers(0, 70))
def test_the_last_share_of_the_padding(share, words):
    pads = layout(words) == PADDING
    found = last_share(pads, share)
    assert found.sum() == torch.ceil(pads.sum() * torch.tensor(share)).clamp(max=pads.sum())
    assert not bool((found & ~pads).any())
    if found.any():
        assert bool(found[0, int(found[0].nonzero()[0]) :].all())
