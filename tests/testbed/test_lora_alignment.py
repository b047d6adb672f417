"""The directions of a LoRA and what the rules of benchmarks/lora_alignment.py leave of them."""

import pytest
import torch

pytest.importorskip("diffusers")

from benchmarks import lora_alignment  # noqa: E402


def layer(seed=0, rank=4):
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(shape, generator=generator) for shape in ((rank, 96), (64, rank), (64, 96))]
    return draw[0], draw[1], torch.linalg.svd(draw[2], full_matrices=False)


def test_directions_make_up_the_change():
    down, up, _ = layer()
    u, s, v = lora_alignment.split(down, up)
    torch.testing.assert_close((u * s) @ v, up @ down)
    torch.testing.assert_close(u.T @ u, torch.eye(4), atol=1e-5, rtol=0)


def test_a_direction_of_the_base_is_kept_and_another_is_not():
    _, _, (basis, _, transposed) = layer()
    change = (basis[:, [0, 40]], torch.tensor([3.0, 2.0]), transposed[[0, 40]])
    given = {
        "hard .0625 2": [3, 0],
        "opposite .0625 2": [0, 2],
        "soft .0625 64": [3 * 19.2 / 64, 0],
        "scale .5": [1.5, 1],
    }
    for rule, left in given.items():
        torch.testing.assert_close(
            lora_alignment.strengths(rule, change, basis, transposed), torch.tensor(left, dtype=torch.float32)
        )


def test_random_directions_are_aligned_once():
    changes = [layer(seed) for seed in range(40)]
    basis, _, transposed = changes[0][2]
    kept = [
        lora_alignment.strengths("soft .125 1000", split, basis, transposed) / split[1] * 1000
        for split in (lora_alignment.split(down, up) for down, up, _ in changes)
    ]
    assert float(torch.stack(kept).mean()) == pytest.approx(1, abs=0.1)
