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


def test_memory_format_and_gradients_do_not_matter():
    ldm = weights()
    channels_last = [w.to(memory_format=torch.channels_last) if w.ndim == 4 else w for w in ldm.values()]
    assert not channels_last[0].is_contiguous()
    assert fingerprint(channels_last) == fingerprint(ldm.values())
    assert fingerprint(nn.Parameter(w) for w in ldm.values()) == fingerprint(ldm.values())


def test_another_model_of_the_same_shape_has_another_name():
    assert fingerprint(weights(0).values()) != fingerprint(weights(1).values())
    trained = weights(0)
    trained["middle_block.0.weight"] = trained["middle_block.0.weight"] * 1.01
    assert fingerprint(trained.values()) != fingerprint(weights(0).values())
    smaller = [w for name, w in weights(0).items() if not name.startswith("out")]
    assert fingerprint(smaller) != fingerprint(weights(0).values())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_are_named_by_their_sizes(dtype):
    one, other = ([w.to(dtype) for w in weights(seed).values()] for seed in (0, 1))
    assert fingerprint(one) == fingerprint(other) != fingerprint(weights(0).values())


def test_weights_that_are_not_loaded_are_not_read():
    meta = [w.to("meta") for w in weights().values()]
    assert re.fullmatch("[0-9a-f]{16}", fingerprint(meta))
