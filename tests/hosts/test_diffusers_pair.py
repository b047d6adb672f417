"""The step of a pipeline as the driver sees it: other noise, several prompts, other predictions in its output."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from memguard.hosts.diffusers.calls import Call
from memguard.hosts.diffusers.latents import Latents
from memguard.hosts.diffusers.pair import Pair
from tests.hosts import tiny
from tests.hosts.test_diffusers import seeded

IMAGES = 2


def step(target="epsilon"):
    """Return the first step of two images, the call that it was made by, and its output."""
    pipe = tiny.sd()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, prediction_type=target)
    pipe.scheduler.set_timesteps(4)
    text = torch.randn(2 * IMAGES, 5, pipe.unet.config.cross_attention_dim, generator=seeded(1))
    own = torch.randn(IMAGES, 4, 8, 8, generator=seeded(2)) * pipe.scheduler.init_noise_sigma
    x = pipe.scheduler.scale_model_input(own.repeat(2, 1, 1, 1), pipe.scheduler.timesteps[0])
    args, kwargs = (x, pipe.scheduler.timesteps[0]), {"encoder_hidden_states": text, "return_dict": False}
    with torch.no_grad():
        output = pipe.unet(*args, **kwargs)
    latents = Latents(pipe)
    latents.keep(own)
    call = Call.of(pipe.unet, args, kwargs, output)
    blocks = {"negative": slice(0, IMAGES), "prompt": slice(IMAGES, 2 * IMAGES)}
    return Pair(pipe.scheduler, [(call, blocks)], latents, 5.0), call, output


def test_noise_that_is_put_in_is_the_noise_that_was_there_and_other_images_keep_theirs():
    pair, call, _ = step()
    torch.testing.assert_close(pair.latents(pair.noise), pair.x, rtol=1e-5, atol=1e-6)
    moved = pair.latents(-pair.noise, torch.tensor([1]))
    assert torch.equal(moved[0], pair.x[0])
    torch.testing.assert_close(moved[1], -pair.x[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", ["epsilon", "v_prediction", "sample"])
def test_several_prompts_for_each_image_are_predicted_as_one_after_the_other(target):
    pair, _, _ = step(target)
    own, other = pair.given["prompt"], pair.given["negative"]
    both = type(own)(torch.cat([own.text, other.text]))
    with torch.no_grad():
        made = pair.predict("prompt", both, pair.x)
    expected = torch.cat([pair.predicted["prompt"], pair.predicted["negative"]])
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["epsilon", "v_prediction", "sample"])
def test_what_is_put_stands_in_the_output_in_the_model_s_own_units(target):
    pair, call, output = step(target)
    assert pair.output(output) is None
    wanted = 2 * pair.predicted["prompt"] + 1
    pair.put({"prompt": wanted}, torch.tensor([0]))
    (made,) = pair.output(output)
    assert torch.equal(made[:IMAGES], output[0][:IMAGES]) and torch.equal(made[IMAGES + 1], output[0][IMAGES + 1])
    again = pair.made([Call.of(call.module, (), call.arguments, (made,))])
    torch.testing.assert_close(again.predicted["prompt"][0], wanted[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(again.predicted["negative"], pair.predicted["negative"])
