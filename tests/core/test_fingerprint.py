import re

import pytest
import torch
from torch import nn

from memguard.calibration import fingerprint


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """The tensors of a small UNet-like model under ldm's names."""
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "input_blocks.0.0.weight": (32, 4, 3, 3),
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 77),
        "input_blocks.1.1.proj_in.weight": (32, 32, 1, 1),
        "middle_block.0.weight": (64, 32, 3, 3),
        "out.2.weight": (4, 32, 3, 3),
        "out.2.bias": (4,),
    }
    return {name: 0.1 * torch.randn(shape, generator=g) for name, shape in shapes.items()}


def as_diffusers(ldm: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The same model in another order, with a 1x1 convolution stored as a linear layer."""
    changed = {**ldm, "input_blocks.1.1.proj_in.weight": ldm["input_blocks.1.1.proj_in.weight"].flatten(1)}
    return [changed[name] for name in sorted(changed, key=lambda n: n[::-1])]


def test_the_same_checkpoint_has_one_name_in_every_host():
    ldm = weights()
    name = fingerprint(ldm.values())
    assert re.fullmatch("[0-9a-f]{16}", name)
    assert fingerprint(as_diffusers(ldm)) == name
    assert fingerprint(reversed(list(ldm.values()))) == name
    assert fingerprint(w.half() for w in ldm.values()) == name
    assert fingerprint(w.half().float() for w in ldm.values()) == name


@pytest.mark.parametrize("size", [1e-9, 1e-6, 1.0])
def test_the_same_values_have_one_name_in_every_dtype(size):
    """Rounded twice too, and where half precision has no such small numbers."""
    ldm = [size * w for w in weights().values()]
    name = fingerprint(ldm)
    assert fingerprint(w.half() for w in ldm) == name
    assert fingerprint(w.bfloat16() for w in ldm) == name
    assert fingerprint(w.half().bfloat16() for w in ldm) == name
    assert fingerprint(w.bfloat16().half().float() for w in ldm) == name


def test_memory_format_and_gradients_do_not_matter():
    ldm = weights()
    channels_last = [w.to(memory_format=torch.channels_last) if w.ndim == 4 else w for w in ldm.values()]
    assert not channels_last[0].is_contiguous()
    assert fingerprint(channels_last) == fingerprint(ldm.values())
    assert fingerprint(nn.Parameter(w) for w in ldm.values()) == fingerprint(ldm.values())


def test_another_model_of_the_same_shape_has_another_name():
    assert fingerprint(weights(0).values()) != fingerprint(weights(1).values())
    for size in (1e-2, 1.0):  # of a step of training, relative to the weights
        trained = weights(0)
        trained["middle_block.0.weight"] += 0.1 * size * torch.randn(64, 32, 3, 3)
        assert fingerprint(trained.values()) != fingerprint(weights(0).values())
    smaller = [w for name, w in weights(0).items() if not name.startswith("out")]
    assert fingerprint(smaller) != fingerprint(weights(0).values())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_have_no_name(dtype):
    """One of sizes alone would be shared by every checkpoint of that architecture."""
    assert fingerprint(w.to(dtype) for w in weights().values()) == ""
    some = [*list(weights().values())[:-3], weights()["middle_block.0.weight"].to(dtype)]
    assert fingerprint(some) == ""


def test_weights_that_are_not_loaded_have_no_name():
    assert fingerprint(w.to("meta") for w in weights().values()) == ""
    some = list(weights().values())
    assert fingerprint([some[0].to("meta"), *some[1:]]) == ""
    assert fingerprint([]) == fingerprint([torch.ones(4)]) == ""
