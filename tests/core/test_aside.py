"""What is computed beside a run leaves the random generators alone."""

import random

import numpy as np
import pytest
import torch

from memguard.aside import aside


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_the_generators_go_on_as_if_nothing_had_been_drawn():
    network = torch.nn.Linear(1, 1)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = draws()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    with aside(torch.zeros(1), network, "cpu", None):
        torch.manual_seed(99)
        inside = draws()
    assert inside != expected
    assert draws() == expected


def test_also_after_an_error():
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    with pytest.raises(RuntimeError, match="broken"), aside():
        torch.rand(5)
        raise RuntimeError("broken")
    assert torch.equal(torch.rand(()), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_has_generators_of_its_own():
    torch.cuda.manual_seed(3)
    expected = torch.rand(4, device="cuda")
    torch.cuda.manual_seed(3)
    with aside("cuda"):
        torch.rand(4, device="cuda")
    assert torch.equal(torch.rand(4, device="cuda"), expected)


def test_generators_that_modules_hold_are_kept_and_new_ones_go_again():
    module = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    module[0].own = torch.Generator().manual_seed(3)
    shared = {"args": {"generator": None, "ratio": 0.5}}  # as tomesd has it, in every patched block
    module[0].info = module[1].info = shared
    before = module[0].own.get_state()
    with aside(module):
        torch.rand(3, generator=module[0].own)
        shared["args"]["generator"] = torch.Generator().manual_seed(1)
    assert torch.equal(module[0].own.get_state(), before)
    assert shared["args"]["generator"] is None
    made = shared["args"]["generator"] = torch.Generator().manual_seed(7)
    state = made.get_state()
    with aside(module):
        torch.rand(3, generator=made)
    assert shared["args"]["generator"] is made and torch.equal(made.get_state(), state)
