"""What is kept of a generation that an error has ended, of which no script is told; no host."""

import gc
import weakref
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from memguard.run import ENDED
from memguard_pack.tests.hosts.webui.stand_ins import Processing, session


class Denoiser(nn.Module):
    """The host's, which tells of a call before and after it; ``breaks`` says where the memory is out."""

    def __init__(self, door, network, breaks):
        super().__init__()
        self.door, self.inner_model, self.breaks, self.p, self.sampler = door, network, breaks, None, None

    def forward(self, x):
        text = torch.zeros(1, 77, 8)
        self.door.before(
            SimpleNamespace(
                denoiser=self, x=x, sigma=torch.full((2,), 14.6), text_cond=text, text_uncond=text, image_cond=x
            )
        )
        if self.breaks == "model":
            raise torch.OutOfMemoryError
        self.door.after(SimpleNamespace(x=self.inner_model(x)))
        return x


class Network(nn.Conv2d):
    def sigma_to_t(self, sigma):
        return 999.0 + 0 * sigma


class Sampler:
    def __init__(self, denoiser):
        self.model_wrap_cfg = denoiser
        parts = [[SimpleNamespace(weight=1.0)]]
        self.sampler_extra_args = {"cond": SimpleNamespace(batch=parts)}

    def sample(self, p, x):
        return self.model_wrap_cfg(x)


class Engine:
    """The host's model around the network."""

    def __init__(self, network):
        self.model = SimpleNamespace(diffusion_model=network)
        self.alphas_cumprod = torch.linspace(0.99, 0.005, 1000)


def ended_by_an_error(door, breaks, told=True):
    """A generation that runs out of memory in the model's call or when it is decoded; the host calls no more of ours.

    Returns:
        the processing, and weak references to network and watch.

    """
    network, p, made = Network(4, 4, 1), Processing(), session(explain="always")
    denoiser = Denoiser(door, network, breaks)
    p.sd_model, p.sampler = Engine(network), Sampler(denoiser)
    denoiser.p, denoiser.sampler = p, p.sampler
    door.begin(p, made)
    door.script.process_batch(p, batch_number=0)
    if told:
        door.script.process_before_every_sampling(p)
    with suppress(torch.OutOfMemoryError):
        p.sampler.sample(p, torch.ones(2, 4, 8, 8))
        raise torch.OutOfMemoryError
    if told and breaks == "model":
        (report,) = made.reports
        assert (report.findings[0].status, report.error) == (ENDED, None)
    else:
        assert made.now is not None and made.now.reader is not None and made.now.run.report.error is None
        assert made.now.calls == (breaks == "decoding")
    return p, weakref.ref(network), weakref.ref(getattr(p, door.webui.HELD))


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("breaks", ["model", "decoding"])
def test_a_generation_that_an_error_has_ended_keeps_no_network(door, breaks, told):
    """The host loads the next checkpoint before it tells of the next generation."""
    p, *gone = ended_by_an_error(door, breaks, told)
    del p
    gc.collect()
    assert [each() for each in gone] == [None, None]
    assert door.jobs.owner() is None
    door.jobs.clear()
    assert not door.jobs._open


def test_what_a_pass_that_nobody_announced_left_in_the_network_goes_with_the_next_job(door, host):
    p, network, _ = ended_by_an_error(door, "model", told=False)
    kept = network()
    door.jobs.clear()
    assert kept._forward_hooks  # the job goes on
    host.shared.state.time_start += 1
    door.begin(Processing(), session())
    assert not kept._forward_hooks and not kept._forward_pre_hooks


def test_a_watch_whose_processing_is_gone_is_left(door):
    p, left = Processing(), []
    door.begin(p, session())
    watch = getattr(p, door.webui.HELD)
    watch.leave = lambda: left.append(True)
    del p
    gc.collect()
    door.jobs.clear()
    assert left and not door.jobs._open


def test_a_pass_inside_of_a_generation_is_its_own_after_the_inner_one_has_failed(door):
    p, made = Processing(), session()
    door.begin(p, made)
    inner, *_ = ended_by_an_error(door, "decoding")
    assert door.jobs.of(Processing()) is getattr(inner, door.webui.HELD)
    del inner
    gc.collect()
    assert door.jobs.of(Processing()) is getattr(p, door.webui.HELD) and door.jobs.owner() is p
    door.script.postprocess(p, SimpleNamespace(images=[], infotexts=[]))
    assert door.jobs.of(Processing()) is None and not door.jobs._open
