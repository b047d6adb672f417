"""Prompt optimisation against an AdamW that is written out here (Wen et al., ICLR 2024)."""

from dataclasses import replace

import pytest
import torch

from memguard.attributions.moment import Encoded
from memguard.mitigations import get
from memguard.mitigations.base import Treatment, View
from memguard.mitigations.prompt_optimization import optimize

from .conftest import WIDTH


def by_hand(formula, start, steps, official=False, lr=0.05, decay=0.01):
    """Adam with decoupled weight decay, by its formula; the gradient by autograd through the formula."""
    text = start.prompt.text[:1].clone()
    first, second = torch.zeros_like(text), torch.zeros_like(text)
    uncond = formula(View(start.reference), start.noise)
    losses = []
    for k in range(1, steps + 2):
        leaf = text.clone().requires_grad_(True)
        rows = leaf.expand(len(start.noise), -1, -1)
        norms = (formula(View(Encoded(rows)), start.noise) - uncond).flatten(1).norm(dim=1)
        loss = norms.square().sum().sqrt() if official else norms.mean()
        losses.append(loss.item())
        if k > steps:
            return text, losses
        (gradient,) = torch.autograd.grad(loss, leaf)
        gradient[:, 0] = 0
        shrunk = text * (1 - lr * decay)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        moved = shrunk - lr * (first / (1 - 0.9**k)) / ((second / (1 - 0.999**k)).sqrt() + 1e-8)
        if not official:
            moved[:, 0] = text[:, 0]
        text = moved


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("parity", [None, "official"])
def test_the_embedding_after_k_steps(formula, start, rows, steps, parity):
    began = start(rows)
    found, losses = optimize(
        get("prompt_optimization", iterations=steps, parity=parity), began, Treatment(), target=None
    )
    expected, by_formula = by_hand(formula, began, steps, official=parity == "official")
    torch.testing.assert_close(found.text, expected.expand(rows, -1, -1), rtol=1e-4, atol=1e-6)
    assert losses == pytest.approx(by_formula, rel=1e-4)


def test_bos_is_frozen_and_officially_shrinks_by_the_decay(start):
    began = start()
    for parity, factor in ((None, 1.0), ("official", (1 - 0.05 * 0.01) ** 4)):
        found, _ = optimize(get("prompt_optimization", iterations=4, parity=parity), began, Treatment(), None)
        torch.testing.assert_close(found.text[:, 0], began.prompt.text[:, 0] * factor, rtol=1e-6, atol=0)


def test_it_stops_before_the_step_at_which_the_target_is_reached(start):
    began = start(2)
    everything, losses = optimize(get("prompt_optimization", lr=0.005, iterations=8), began, Treatment(), None)
    assert losses == sorted(losses, reverse=True)
    target = (losses[3] + losses[4]) / 2
    found, stopped = optimize(get("prompt_optimization", lr=0.005, iterations=8), began, Treatment(), target)
    assert stopped == pytest.approx(losses[:5])
    four, _ = optimize(get("prompt_optimization", lr=0.005, iterations=4), began, Treatment(), None)
    assert torch.equal(found.text, four.text)
    assert not torch.equal(found.text, everything.text)


def test_what_is_predicted_without_the_prompt_is_predicted_once(formula, start):
    optimize(get("prompt_optimization", iterations=5), start(), Treatment(), None)
    assert formula.calls == 1 + 6


def test_several_prompts_of_one_batch_are_optimised_each_for_itself(formula, start):
    began = start(4)
    other = torch.randn((1, *began.prompt.text.shape[1:]), generator=torch.Generator().manual_seed(5))
    mixed = torch.cat([began.prompt.text[:2], other.expand(2, -1, -1)])
    both = replace(began, prompt=Encoded(mixed))
    found, _ = optimize(get("prompt_optimization", iterations=3), both, Treatment(), None)
    assert torch.equal(found.text[0], found.text[1])
    assert torch.equal(found.text[2], found.text[3])
    noise = began.noise[:2]
    alone = replace(
        began,
        prompt=Encoded(mixed[:2]),
        reference=Encoded(torch.zeros(2, *mixed.shape[1:])),
        noise=noise,
        predict=lambda view: formula(view, noise),
        groups=None,
    )
    by_itself, _ = optimize(get("prompt_optimization", iterations=3), alone, Treatment(), None)
    torch.testing.assert_close(found.text[0], by_itself.text[0], rtol=1e-4, atol=1e-5)


def test_a_target_that_cannot_be_reached_is_said_with_the_remedy(start):
    treatment = get("prompt_optimization", iterations=2, target=1e-6).treat(start(), Treatment())
    assert "the target 1e-06 was not reached, give it more iterations" in treatment.notes[0]
    assert treatment.prompt is not None


def test_without_a_target_the_profile_gives_one(start):
    began = start(typical=10.0)
    treatment = get("prompt_optimization").treat(began, Treatment())
    assert treatment.notes[0].startswith("prompt optimised for 0 iterations")


def test_the_profiles_target_is_three_quarters_of_the_median_prompts(start):
    norm = float(start().gap(Treatment()).flatten(1).norm(dim=1).mean())
    for share, reached in ((0.76, False), (0.74, True)):  # of what the target would have to be
        began = start(typical=norm / share / 192**0.5)
        note = get("prompt_optimization", iterations=0).treat(began, Treatment()).notes[0]
        assert ("was not reached" not in note) is reached


def test_not_a_number_ends_it_with_one_line(start):
    began = start(predict=lambda view: view.prompt.text.sum() * torch.full((1, 4, 6, 8), torch.nan))
    with pytest.raises(FloatingPointError, match="run the model in float32"):
        get("prompt_optimization").treat(began, Treatment())


def test_a_pooled_vector_is_optimised_if_asked_for(start):
    weights = torch.randn((WIDTH, 4), generator=torch.Generator().manual_seed(3))

    def predict(view):
        return (view.prompt.text.mean(1) @ weights + view.prompt.pooled @ weights)[..., None, None].expand(-1, 4, 6, 8)

    generator = torch.Generator().manual_seed(4)
    prompt = Encoded(torch.randn((1, 77, WIDTH), generator=generator), torch.randn((1, WIDTH), generator=generator))
    began = start(prompt=prompt, reference=Encoded(torch.zeros(1, 77, WIDTH), torch.zeros(1, WIDTH)), predict=predict)
    alone = get("prompt_optimization", iterations=3).treat(began, Treatment()).prompt
    both = get("prompt_optimization", iterations=3, pooled=True).treat(began, Treatment()).prompt
    assert torch.equal(alone.pooled, prompt.pooled)
    assert not torch.equal(both.pooled, prompt.pooled)
