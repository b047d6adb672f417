"""Some images of a batch are mitigated as if they stood alone, and the others are left bit by bit as they are."""

from dataclasses import replace

import pytest
import torch

from memguard.attributions.moment import Encoded
from memguard.mitigations import get
from memguard.mitigations.attention_scaling import ScaleAndMask
from memguard.mitigations.base import Step, Treatment
from memguard.mitigations.edit import PADDING, AttentionSite
from memguard.mitigations.neuron_mask import Mask
from memguard.mitigations.subset import EditImages, Subset

from .conftest import TOKENS, WIDTH, layout

IMAGES = [1, 2]
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


@pytest.fixture
def batch(start):
    """Four images, the prompt of 1 and 2 another one than that of 0 and 3."""
    generator = torch.Generator().manual_seed(5)
    one, other = torch.randn((2, TOKENS, WIDTH), generator=generator)
    return start(rows=4, prompt=Encoded(torch.stack([one, other, other, one])), texts=("a", "b", "b", "a"))


def alone(batch, formula):
    """The same images in a run of their own."""
    own = batch.noise[IMAGES]
    return replace(
        batch,
        prompt=batch.prompt.rows(torch.tensor(IMAGES)),
        reference=batch.reference.rows(torch.tensor(IMAGES)),
        noise=own,
        groups=layout(3, 2),
        texts=("b", "b"),
        predict=lambda view: formula(view, own),
    )


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("prompt_optimization", {"iterations": 3}),
        ("noise_adjustment", {}),
        ("noise_adjustment", {"method": "sample", "iterations": 2}),
        ("padding", {"variant": "partial"}),
    ],
)
def test_the_images_are_treated_as_if_alone_and_the_others_keep_their_bits(batch, formula, name, settings):
    subset, mitigation = Subset(batch, IMAGES), get(name, **settings)
    found = mitigation.treat(subset.start, Treatment())
    expected = mitigation.treat(alone(batch, formula), Treatment())
    wide = subset.widened(found)
    assert wide.images.tolist() == IMAGES
    for here, there, own in ((wide.prompt, expected.prompt, batch.prompt), (wide.noise, expected.noise, batch.noise)):
        if there is None:
            assert here is None
            continue
        here, there, own = (getattr(value, "text", value) for value in (here, there, own))
        torch.testing.assert_close(here[IMAGES], there)
        assert not torch.equal(here[IMAGES], own[IMAGES])
        assert torch.equal(here[[0, 3]], own[[0, 3]])
    assert wide.prompt is not None or wide.noise is not None


def test_treatments_that_predict_alike_still_do_when_widened(batch):
    subset = Subset(batch, IMAGES)
    before = Treatment(edits=(Mask({LAYER: (0,)}, 0.0),), prompt=subset.start.prompt, noise=batch.noise[IMAGES])
    after = replace(before, guidance=(lambda gap, step: gap,))
    assert subset.widened(before).predicts_as(subset.widened(after))
    assert not subset.widened(before).predicts_as(subset.widened(replace(before, noise=before.noise.clone())))


def test_an_edit_acts_on_the_prompts_rows_of_these_images():
    edit = EditImages(Mask({LAYER: (0, 3)}, 0.0), torch.tensor(IMAGES), 4)
    v = torch.ones(8, TOKENS, WIDTH)
    conditional = torch.arange(8) >= 4  # uncond first, as diffusers has it
    site = AttentionSite(LAYER, 2, 1.0, conditional)
    _, _, changed = edit(v, v, v, site)
    zeros = (changed == 0).any(-1).any(-1)
    assert zeros.tolist() == [False] * 5 + [True, True, False]
    assert torch.equal(changed[zeros][..., [0, 3]], torch.zeros(2, TOKENS, 2))


def test_keys_are_left_out_for_these_images_only():
    masks = EditImages(ScaleAndMask(1.25, (PADDING,), 1.0, None), torch.tensor([0]), 2)
    kept = masks.keep(torch.tensor([False, False, True, True]), layout(3, 4))
    assert kept.sum(1).tolist() == [TOKENS, TOKENS, 5, TOKENS]


def test_guidance_changes_the_gap_of_these_images_only(batch):
    seen = []

    def guidance(gap, step):
        seen.append((gap.shape, step.predict, step.prompt.text.shape))
        return gap * 0

    (wide,) = Subset(batch, IMAGES).widened(Treatment(guidance=(guidance,))).guidance
    gap = torch.rand(4, *batch.size)
    step = Step(0, 10, 14.6, 999.0, 7.5, batch.predict, batch.prompt, gap + 1, torch.ones_like(gap))
    out = wide(gap, step)
    assert torch.equal(out[[0, 3]], gap[[0, 3]])
    assert not out[IMAGES].any()
    assert seen[0][0] == (2, *batch.size)
    assert seen[0][2] == (2, TOKENS, WIDTH)
