"""Networks as loops hold them: wrapped, in half precision, with dropout, with the caption in more than one place."""

import json
import logging
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from memguard.training import EntropyFilter, JsonLines, Meter, NormFilter, weighted
from memguard.troubles import Refused
from tests.hosts import tiny

NOISY, STEPS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([900, 100])
TEXT = torch.randn(3, 7, tiny.WIDTH, generator=torch.Generator().manual_seed(4))


def network(**settings):
    torch.manual_seed(0)
    return tiny.unet(**settings).train()


def seen(norm, *call, **more):
    norm(*call, names=range(len(call[1])), **more)
    return [norm.seen[name].highest for name in sorted(norm.seen)]


def test_an_infinite_loss_that_is_left_out_poisons_nothing():
    values = torch.tensor([1.0, math.inf], requires_grad=True)
    loss = weighted(values * 2, torch.tensor([1.0, 0.0]))
    loss.backward()
    assert loss.item() == 1.0 and values.grad.tolist() == [1.0, 0.0]


def lora(unet):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(unet, peft.LoraConfig(target_modules=["to_q", "to_k"]))


def parallel(unet):
    wrapped = torch.nn.DataParallel(unet)
    wrapped.device_ids = []  # as where there is no GPU
    return wrapped.to("cpu")


@pytest.mark.parametrize("wrapped", [parallel, lora])
def test_wrapped_networks_are_read_as_themselves(wrapped):
    expected = []
    for wrap in (lambda unet: unet, wrapped):
        unet, entropy = wrap(network()), EntropyFilter(1.0)
        with entropy.reading(unet):
            predicted = unet(NOISY, STEPS, TEXT[:2]).sample
        entropy(names="ab")
        norm = seen(NormFilter(1.0, TEXT[2:]), unet, NOISY, STEPS, predicted)
        expected.append([*norm, *(entropy.seen[name].highest for name in "ab")])
    assert expected[0] == pytest.approx(expected[1], rel=1e-4) and min(expected[0]) > 0


def test_a_transformer_is_read_and_its_gradient_is_that_of_the_plain_step():
    network = tiny.pixart().transformer.train()
    size, width = network.config.in_channels, network.config.caption_channels
    noisy = torch.randn(2, size, 8, 8, generator=torch.Generator().manual_seed(5))
    text = torch.randn(2, 7, width, generator=torch.Generator().manual_seed(6))
    gradients, entropy = [], EntropyFilter(1.0)
    for reading in (nullcontext(), entropy.reading(network)):
        network.zero_grad()
        with reading:
            made = network(noisy, encoder_hidden_states=text, timestep=STEPS).sample
        made.square().mean().backward()
        gradients.append({name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None})
    entropy(names="ab")
    assert all(entropy.seen[name].highest > 0 for name in "ab")
    assert any("attn2.to_k" in name and grad.abs().max() > 0 for name, grad in gradients[0].items())
    assert gradients[0].keys() == gradients[1].keys()
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad, rtol=1e-4, atol=1e-7, msg=name)


def test_an_autocast_prediction_is_compared_in_its_own_precision():
    unet = network()
    with torch.autocast("cpu", torch.bfloat16):
        predicted = unet(NOISY, STEPS, TEXT[2:].expand(2, -1, -1)).sample
    assert predicted.dtype == torch.bfloat16
    # the caption is the empty one, so any gap is rounding: that of float32 against bfloat16 is .001 and more
    assert seen(NormFilter(1.0, TEXT[2:]), unet, NOISY, STEPS, predicted) == [0.0, 0.0]


def test_residuals_of_a_controlnet_are_cut_to_the_judged_samples():
    unet, more = network(), {"mid_block_additional_residual": torch.ones(2, 32, 4, 4)}
    shapes = [(16, 8, 8), (16, 8, 8), (16, 4, 4), (32, 4, 4)]
    more["down_block_additional_residuals"] = tuple(torch.ones(2, *shape) for shape in shapes)
    predicted = unet(NOISY, STEPS, TEXT[:2], **more).sample
    both = seen(NormFilter(1.0, TEXT[2:]), unet, NOISY, STEPS, predicted, **more)
    assert seen(NormFilter(1.0, TEXT[2:], least=500), unet, NOISY, STEPS, predicted, **more) == pytest.approx(both[:1])


def test_sdxl_s_pooled_caption_is_taken_out_too():
    unet = tiny.sdxl().unet.train()
    text, pooled = torch.randn(3, 7, 2 * tiny.WIDTH), torch.randn(3, tiny.WIDTH)
    times = torch.ones(2, 6)
    more = {"added_cond_kwargs": {"text_embeds": pooled[:2], "time_ids": times}}
    predicted = unet(NOISY, STEPS, text[:2], **more).sample
    with torch.no_grad():
        empty = {"text_embeds": pooled[2:].expand(2, -1), "time_ids": times}
        without = unet(NOISY, STEPS, text[2:].expand(2, -1, -1), added_cond_kwargs=empty).sample
    norm = NormFilter(1.0, text[2:], instead={"added_cond_kwargs": {"text_embeds": pooled[2:]}})
    expected = (predicted - without).pow(2).mean((1, 2, 3)).sqrt()
    assert seen(norm, unet, NOISY, STEPS, predicted, **more) == pytest.approx(expected.tolist(), rel=1e-5)
    with pytest.raises(Refused, match="text_embeds carries the caption too; give the empty caption's as instead="):
        NormFilter(1.0, text[2:])(unet, NOISY, STEPS, predicted, **more)


def test_transformers_are_called_by_name():
    torch.manual_seed(0)
    net = tiny.sd3().transformer.train()
    text, pooled = torch.randn(3, 7, 2 * tiny.WIDTH), torch.randn(3, 2 * tiny.WIDTH)

    def call(text, pooled):
        return net(hidden_states=NOISY, encoder_hidden_states=text, pooled_projections=pooled, timestep=STEPS).sample

    predicted = call(text[:2], pooled[:2])
    with torch.no_grad():
        without = call(text[2:].expand(2, -1, -1), pooled[2:].expand(2, -1))
    norm = NormFilter(1.0, text[2:], instead={"pooled_projections": pooled[2:]})
    expected = (predicted - without).pow(2).mean((1, 2, 3)).sqrt()
    assert seen(norm, net, NOISY, STEPS, predicted, pooled_projections=pooled[:2]) == pytest.approx(
        expected.tolist(), rel=1e-5
    )


def test_dropout_is_said_once(caplog):
    unet, norm = network(dropout=0.1), NormFilter(1.0, TEXT[2:])
    with caplog.at_level(logging.WARNING, logger="memguard"):
        for _ in range(2):
            norm(unet, NOISY, STEPS, unet(NOISY, STEPS, TEXT[:2]).sample)
    assert caplog.messages == ["the network drops values at random, which adds to every noise gap; set dropout to 0"]
    caplog.clear()
    norm = NormFilter(1.0, TEXT[2:])
    norm(network(), NOISY, STEPS, NOISY)
    assert not caplog.messages


def test_the_meter_measures_without_dropout_and_leaves_the_modes():
    unet = network(dropout=0.3)
    unet.mid_block.eval()
    modes = [part.training for part in unet.modules()]

    def loss(_batch, timestep, _generator):
        return unet(NOISY, torch.tensor([timestep] * 2), TEXT[:2]).sample.pow(2)

    gaps = Meter(loss, [0], [0]).measure(0, unet)
    assert [each.gap for each in gaps] == [0.0] * 5
    assert [part.training for part in unet.modules()] == modes and any(modes) and not all(modes)


def test_numbers_of_other_libraries_and_names_of_layers(tmp_path):
    assert NormFilter(np.float32(0.5), TEXT[2:]).threshold == 0.5
    unet = network()
    with pytest.raises(Refused, match="no layer is called 'zz'"), EntropyFilter(1.0, layer="zz").reading(unet):
        unet(NOISY, STEPS, TEXT[:2])
    lines = JsonLines(tmp_path / "a.jsonl")
    lines.add(0, {"a": math.nan})
    lines.close()
    assert json.loads((tmp_path / "a.jsonl").read_text(), parse_constant=pytest.fail)["value"] is None
