"""Pictures and scores for an audit: the seeds of ``generate``, nothing drawn beside, memory that runs out."""

import inspect

import numpy as np
import pytest
import torch

from memguard.hosts.diffusers import auditing, scan
from memguard.troubles import NotFinite
from memguard_pack.tests.hosts import tiny

MAKING = auditing.Making(images=2, steps=2, guidance=3.0, seed=5)


def alone(pipe, caption, seed):
    made = pipe(caption, num_inference_steps=2, guidance_scale=3.0, generator=torch.manual_seed(seed), output_type="np")
    return np.round(made.images[0] * 255)


def test_the_same_pictures_as_one_by_one_and_other_seeds_for_a_caption_that_comes_again():
    pipe = tiny.sd()
    captions = ["a red fox", "a cat", "a red fox"]
    assert auditing.seeds(captions, MAKING) == [[5, 6], [5, 6], [7, 8]]
    state = torch.get_rng_state()
    found = list(auditing.generate(pipe, captions, MAKING))
    assert torch.equal(torch.get_rng_state(), state)
    assert [each.dtype for each in found] == 3 * [np.uint8]
    for made, caption, seeds in zip(found, captions, auditing.seeds(captions, MAKING), strict=True):
        for picture, seed in zip(made, seeds, strict=True):
            assert np.abs(picture.astype(float) - alone(pipe, caption, seed)).max() <= 1


def test_one_at_a_time_when_memory_runs_out(monkeypatch):
    pipe = tiny.sd()
    asked = list(auditing.generate(pipe, ["a cat"], MAKING))
    whole, calls = type(pipe).__call__, []

    def small(self, prompt, **given):
        calls.append(len(prompt))
        if len(prompt) > 1:
            raise torch.OutOfMemoryError
        return whole(self, prompt, **given)

    small.__signature__ = inspect.signature(whole)
    monkeypatch.setattr(type(pipe), "__call__", small)
    found = list(auditing.generate(pipe, ["a cat"], MAKING))
    assert calls == [2, 1, 1] and np.abs(found[0].astype(float) - asked[0]).max() <= 1


def test_scores_are_those_of_a_scan():
    pipe = tiny.sd()
    captions = ["a red fox", "two blue houses"]
    expected = [report.findings[0].score for report in scan(pipe, captions, seed=5)]
    assert auditing.scores(pipe, captions, MAKING) == expected


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [(torch.float32, ", in float32: its weights are too large"), (torch.bfloat16, "; try --dtype float32")],
)
def test_nan_is_said_with_a_remedy_that_can_help(dtype, remedy):
    pipe = tiny.sd()
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("nan"))
    pipe.to(dtype)
    caption = "a cat " + "and a dog " * 9
    with pytest.raises(NotFinite) as told:
        list(auditing.generate(pipe, [caption], MAKING))
    assert str(told.value) == f"the pictures of '{caption[:57]}...' came to NaN{remedy}"
