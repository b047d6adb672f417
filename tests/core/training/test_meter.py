"""The meter: formula, the same noise each time, and a model that overfits."""

import pytest
import torch

from memguard.training import Meter
from memguard.troubles import Refused


def test_the_gap_is_held_out_minus_trained_with_its_error():
    losses = {"t": torch.tensor([[1.0, 3.0], [4.0, 4.0]]), "h": torch.tensor([5.0, 7.0, 9.0])}
    told = []

    class Log:
        def add(self, step, values):
            told.append((step, values))

    meter = Meter(lambda batch, timestep, _: losses[batch] * timestep, ["t"], ["h"], timesteps=(1, 2), log=Log())
    one, two = meter.measure(7)
    assert (one.trained, one.held, one.gap, two.gap) == (3.0, 7.0, 4.0, 8.0)
    assert one.error == pytest.approx((2.0 / 2 + 4.0 / 3) ** 0.5)
    assert told[0] == (7, {"memorization/gap at 1": 4.0}) and told[-1] == (7, {"memorization/gap": 6.0})


def test_the_noise_is_the_same_each_time_and_no_generator_moves():
    seen = []

    def loss(batch, timestep, generator):
        seen.append(torch.randn(2, generator=generator))
        torch.rand(1)  # a network that draws
        assert not torch.is_grad_enabled()
        return torch.ones(2)

    meter = Meter(loss, [0], [1], timesteps=(100, 900))
    state = torch.random.get_rng_state()
    meter.measure(0)
    meter.measure(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(each, seen[0]) for each in seen) and len(seen) == 8


def test_it_rises_while_a_model_learns_its_pictures_by_heart():
    generator = torch.Generator().manual_seed(0)
    trained, held = (torch.randn(8, 16, generator=generator) for _ in range(2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(16, 256), torch.nn.ReLU(), torch.nn.Linear(256, 16))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)

    def loss(pictures, timestep, source):
        alpha = 1 - timestep / 1000
        noise = torch.randn(pictures.shape, generator=source)
        return (network(alpha**0.5 * pictures + (1 - alpha) ** 0.5 * noise) - pictures).pow(2)

    meter = Meter(loss, [trained], [held], timesteps=(100,))
    (before,) = meter.measure(0, network)
    for _ in range(300):
        optimizer.zero_grad()
        loss(trained, 100, generator).mean().backward()
        optimizer.step()
    (after,) = meter.measure(300, network)
    assert after.gap - before.gap > 5 * after.error and after.trained < 0.2


def test_both_sides_are_needed():
    with pytest.raises(Refused, match="held out"):
        Meter(lambda *_: torch.ones(1), [1], [])


@pytest.mark.parametrize(
    ("loss", "what"), [(torch.tensor(1.0), "one number for a batch"), (1.0, "one number for a batch"), ((), "a tuple")]
)
def test_a_reduced_loss_is_said(loss, what):
    with pytest.raises(Refused) as refused:
        Meter(lambda *_: loss, [1], [2]).measure(0)
    assert str(refused.value) == f"the meter's loss returned {what}; return the loss of each sample: reduction='none'"
