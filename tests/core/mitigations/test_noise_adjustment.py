"""Adjusted starting noise against the formulas (Han et al., NeurIPS 2025; Jeon et al., ICML 2025)."""

import pytest
import torch

from memguard.mitigations import get
from memguard.mitigations.base import Treatment, Unsuitable, View
from memguard.mitigations.guidance_delay import Static

ROOT = (4 * 6 * 8 / 16384) ** 0.5  # the papers' numbers are for 16384 elements


def gap(formula, start, x):
    prompt = formula(View(start.prompt, x), start.noise)
    return prompt - formula(View(start.reference, x), start.noise)


def norms(values):
    return values.flatten(1).norm(dim=1)


def unit(values):
    return values / norms(values).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_batch_wise_steps(formula, start, rounds):
    began = start(3)
    x = began.noise
    rho = 50 * (4 * 6 * 8 / 16384) ** 0.5
    for _ in range(rounds):
        here = gap(formula, began, x)
        x = x - 0.7 * (gap(formula, began, x + rho * unit(here)) - here)
    found = get("noise_adjustment", rounds=rounds).treat(began, Treatment())
    torch.testing.assert_close(found.noise, x)


def test_batch_wise_delays_the_guidance(start):
    found = get("noise_adjustment").treat(start(), Treatment())
    assert isinstance(found.guidance[0], Static)
    assert found.guidance[0].until == 900


@pytest.mark.parametrize("parity", [None, "official"])
def test_each_sample_descends_for_itself(formula, start, parity):
    """Samples do not share a loss, so each one ends up where it would alone; by default on the starting norm."""
    began = start(3)
    settings = {"method": "sample", "iterations": 5, "target": 1e-9, "lr": 0.1, "parity": parity}
    together = get("noise_adjustment", **settings).treat(began, Treatment()).noise
    x = began.noise.clone().requires_grad_(True)
    adam = torch.optim.AdamW([x], lr=0.1, weight_decay=0.01 if parity else 0)
    for _ in range(5):
        adam.zero_grad()
        norms(gap(formula, began, x)).sum().backward()
        adam.step()
        if parity is None:
            with torch.no_grad():
                x.mul_((norms(began.noise) / norms(x)).reshape(-1, 1, 1, 1))
    torch.testing.assert_close(together, x.detach(), rtol=1e-4, atol=1e-5)
    if parity is None:
        torch.testing.assert_close(norms(together), norms(began.noise))


def test_a_sample_that_has_reached_the_target_stays(formula, start):
    began = start(3)
    first = norms(gap(formula, began, began.noise))
    target = float(first.sort().values[1]) * 1.0001  # two of three are there already
    found = get("noise_adjustment", method="sample", target=target, iterations=3, lr=0.1).treat(began, Treatment())
    stays = first <= target
    assert stays.sum() == 2
    assert torch.equal(found.noise[stays], began.noise[stays])
    assert not torch.equal(found.noise[~stays], began.noise[~stays])


@pytest.mark.parametrize("parity", [None, "official"])
def test_sail(formula, start, parity):
    began = start(2)
    x = began.noise.clone().requires_grad_(True)
    adam = torch.optim.Adam([x], lr=0.05)
    direction = None
    for _ in range(3):
        if direction is None or parity is None:
            direction = unit(gap(formula, began, x.detach()))
        adam.zero_grad()
        (norms(gap(formula, began, x + direction)) + 0.05 * norms(x)).sum().backward()
        adam.step()
        if parity is None:
            with torch.no_grad():
                x.mul_((norms(began.noise) / norms(x)).reshape(-1, 1, 1, 1))
    settings = {"method": "sail", "iterations": 3, "target": 1e-9, "parity": parity}
    found = get("noise_adjustment", **settings).treat(began, Treatment()).noise
    torch.testing.assert_close(found, x.detach(), rtol=1e-4, atol=1e-5)


def test_strength_goes_part_of_the_way_at_the_norm_of_the_starting_noise(start):
    began = start(2)
    whole = get("noise_adjustment").treat(began, Treatment()).noise
    half = get("noise_adjustment", strength=0.5).treat(began, Treatment()).noise
    torch.testing.assert_close(norms(half), norms(began.noise))
    assert 0 < float((half - began.noise).norm()) < float((whole - began.noise).norm())


def test_a_run_that_starts_from_a_picture_has_no_starting_noise(start):
    with pytest.raises(Unsuitable, match="starts from a picture"):
        get("noise_adjustment").treat(start(noise=None), Treatment())


def test_a_run_without_guidance_has_no_gap(start):
    with pytest.raises(Unsuitable, match="guidance is off"):
        get("noise_adjustment").treat(start(reference=None), Treatment())


@pytest.mark.parametrize(
    ("settings", "typical", "target"),
    [
        ({"method": "sample"}, None, 0.9 * ROOT),
        ({"method": "sample"}, 1e-4, 1e-4 * 192**0.5),
        ({"method": "sample"}, 1.0, 0.9 * ROOT),  # an ordinary prompt's above the paper's does not raise it
        ({"method": "sail"}, 1e-4, 8.2 * ROOT),
        ({"method": "sample", "target": 3.0}, 1e-4, 3.0),
    ],
)
def test_the_target_is_the_papers_for_this_size(start, settings, typical, target):
    assert get("noise_adjustment", **settings)._target(start(typical=typical)) == pytest.approx(target)


@pytest.mark.parametrize(("method", "lr", "iterations"), [("sample", 0.01, 1000), ("sail", 0.05, 10)])
def test_the_papers_learning_rate_and_number_of_iterations(start, method, lr, iterations, monkeypatch):
    rates, adam = [], torch.optim.AdamW

    def made(parameters, lr, **settings):
        rates.append(lr)
        return adam(parameters, lr=lr, **settings)

    monkeypatch.setattr(torch.optim, "AdamW", made)
    began = start(noise=torch.ones(1, 4, 6, 8) * 3)
    found = get("noise_adjustment", method=method, target=1e-12).treat(began, Treatment())
    assert rates == [lr]
    assert f"in {iterations} iterations" in found.notes[0]
