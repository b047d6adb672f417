"""What cross-attention by structure rests on: where tensors come from, whose rows are whose, what stands where."""

import pytest
import torch

from memguard.hosts.diffusers.lineage import JOINED, OTHER, PICTURE, TEXT, Lineage
from memguard.hosts.diffusers.masses import refuse_rows
from memguard.hosts.diffusers.rows import Unscored
from memguard.hosts.diffusers.structure import standing


def test_rows_that_are_repeated_as_a_whole_are_nobodys():
    text = torch.randn(2, 3, 4)
    key = text[:, None]
    refuse_rows("attn2", key.repeat_interleave(2, 0), text)
    alike = text[:1].expand(2, -1, -1)
    for keys, rows in ((key.repeat(2, 1, 1, 1), text), (alike.repeat(2, 1, 1)[:, None], alike)):
        with pytest.raises(Unscored, match="attn2 has 4 rows for 2 prompts, and which are whose cannot be told"):
            refuse_rows("attn2", keys, rows)


def test_a_forward_that_somebody_else_has_put_there_stays():
    layer, calls = torch.nn.Linear(2, 2), []

    def around(inner, *args):
        calls.append(1)
        return inner(*args)

    with standing(layer, around):
        inner = layer.forward
        layer.forward = theirs = lambda *args: inner(*args)  # and it is not taken away in time
        layer(torch.ones(1, 2))
    layer(torch.ones(1, 2))
    assert layer.forward is theirs and len(calls) == 1


def test_what_a_tensor_comes_from():
    text, picture, other = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    given = {"encoder_hidden_states": text, "hidden_states": picture, "image": other, "timestep": torch.ones(2)}
    with Lineage(given) as lineage:
        written = torch.zeros(2, 8, 4)
        written[:, :3] = text
        part = torch.zeros(2, 8, 4)
        part[:, 3:].copy_(picture)
        cases = (
            (text.view(2, 12), TEXT),
            (text * given["timestep"][:, None, None], TEXT),
            (torch.cat([text, picture], 1)[:, :3], TEXT | PICTURE | JOINED),
            (text + picture[:, :3], TEXT | PICTURE),  # a picture that has attended to the text is not joined with it
            (text.type_as(picture) + torch.zeros_like(picture[:, :3]), TEXT),
            (written.unbind(1)[0], TEXT),
            (part, PICTURE),
            (other.clone(), OTHER),
            (torch.ones(2), 0),
        )
    assert [lineage.of(tensor) for tensor, _ in cases] == [kind for _, kind in cases]
