"""Neurons on diffusers pipelines: P14, P15, P17, both searches on planted neurons, hooks, precision, reasons."""

import math
from functools import lru_cache

import pytest
import torch

import memguard
from memguard import neurons, testbed
from memguard.hosts.diffusers import blocking, probing
from memguard.records import NeuronSet
from memguard_pack.benchmarks.planting import plant
from memguard_pack.tests.hosts import tiny

PROMPTS = ["a red fox", "two blue houses on a hill", "cat", "an ugly roof, oil on canvas"]
SIDE = 16


def pipeline(**settings):
    return tiny.sd(sample_size=SIDE, **settings)


def encoded(pipe, prompt: str) -> torch.Tensor:
    ids = pipe.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        return pipe.text_encoder(ids)[0]


def seed_noise(rows: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def hooks(pipe) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules())


def scaled(noise: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    found = noise - x
    for row in found:
        for channel in row:
            channel.copy_((channel - channel.min()) / (channel.max() - channel.min()))
    return found


def test_the_functions_are_reached_through_memguard():
    from memguard.hosts.diffusers import neurons as hosted

    for name in ("statistics", "select", "noise_difference", "localize", "calibrate"):
        assert getattr(memguard.neurons, name) is getattr(hosted, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        memguard.neurons.nothing  # noqa: B018


@pytest.mark.parametrize("batch_size", [1, 3])
def test_statistics_are_those_of_what_to_v_gives_inside_the_unet(batch_size):
    """P14; the activations of a whole UNet pass at any latent and timestep are bit for bit the same."""
    pipe, seen = pipeline(), []
    found = neurons.statistics(pipe, iter(PROMPTS), batch_size=batch_size)
    names = [n for n, m in pipe.unet.named_modules() if n.endswith("attn2") and n.startswith(("down", "mid"))]
    assert list(found.mean) == names and len(names) == 3 and found.count == 4
    modules = dict(pipe.unet.named_modules())
    for step, prompt in enumerate(PROMPTS):
        row = {}
        handles = [
            modules[n].to_v.register_forward_hook(lambda m, i, out, n=n, row=row: row.update({n: out[0]}))
            for n in names
        ]
        with torch.no_grad():
            pipe.unet(seed_noise(1, step), 1 + 300 * step, encoder_hidden_states=encoded(pipe, prompt))
        for handle in handles:
            handle.remove()
        seen.append({n: values.abs().mean(0) for n, values in row.items()})
    alone = probing.activations(probing.value_layers(pipe.unet), encoded(pipe, PROMPTS[2]))
    for n in names:
        rows = torch.stack([row[n] for row in seen])
        assert torch.equal(alone[n][0], rows[2])
        torch.testing.assert_close(found.mean[n], rows.mean(0), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found.std[n], rows.std(0, unbiased=True), rtol=1e-4, atol=1e-7)
    assert hooks(pipe) == 0


def test_the_official_noise_difference():
    """P15: the second timestep (961) on noise that no step has touched, scaled per picture and channel."""
    pipe = pipeline()
    x = seed_noise(3)
    with torch.no_grad():
        noise = pipe.unet(x, 961, encoder_hidden_states=encoded(pipe, PROMPTS[0]).repeat(3, 1, 1)).sample
    found = neurons.noise_difference(pipe, PROMPTS[0], 3, parity="official")
    torch.testing.assert_close(found, scaled(noise, x), rtol=1e-5, atol=1e-6)
    assert found.shape == (3, 4, SIDE, SIDE) and hooks(pipe) == 0


def test_the_default_noise_difference_is_of_the_first_step():
    pipe = pipeline()
    x = seed_noise(2, 7)
    with torch.no_grad():
        noise = pipe.unet(x, 981, encoder_hidden_states=encoded(pipe, PROMPTS[1]).repeat(2, 1, 1)).sample
    found = neurons.noise_difference(pipe, PROMPTS[1], 2, seed=7)
    torch.testing.assert_close(found, scaled(noise, x), rtol=1e-5, atol=1e-6)


def test_v_predictions_are_compared_in_units_of_epsilon():
    pipe = pipeline(plan=tiny.scheduler(prediction_type="v_prediction"))
    x, t = seed_noise(1), 981
    with torch.no_grad():
        v = pipe.unet(x, t, encoder_hidden_states=encoded(pipe, "cat")).sample
    alpha = pipe.scheduler.alphas_cumprod[t]
    expected = scaled(alpha.sqrt() * v + (1 - alpha).sqrt() * x, x)
    torch.testing.assert_close(neurons.noise_difference(pipe, "cat", 1), expected, rtol=1e-4, atol=1e-4)


def test_blocking_zeroes_columns_of_to_v_on_all_rows_and_tokens():
    """P17, with the neurons cut out of the weights instead."""
    pipe = pipeline()
    layers = probing.value_layers(pipe.unet, "all")
    first, last = list(layers)[0], list(layers)[-1]
    cut = NeuronSet({first: (0, 5), last: (1, 2, 3)}, scale=0.25)
    found = neurons.noise_difference(pipe, "cat", 2, neurons=cut)
    plain = neurons.noise_difference(pipe, "cat", 2)
    with torch.no_grad():
        for name, indices in cut.indices.items():
            layers[name].to_v.weight[list(indices)] *= 0.25
    torch.testing.assert_close(neurons.noise_difference(pipe, "cat", 2), found, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-4)


def test_masks_of_a_batch_are_per_row_and_rows_are_counted():
    pipe = pipeline()
    probe = probing.probe_of(pipe, "cat", 3, 1, None)
    x, t = probe.start()
    assert (t, probe.rows.total, x.shape[0]) == (981.0, 0, 3)
    name = list(probe.layers)[1]
    factors = torch.ones(3, probe.layers[name])
    factors[1, :4], factors[2, 7] = 0.0, 0.5
    with torch.no_grad():
        together = probe.noise(x, t, {name: factors})
        alone = [probe.noise(x[i : i + 1], t, {name: factors[i : i + 1]}) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert probe.rows.forward == 6 and hooks(pipe) == 0


def test_gate_gradients_of_the_unet_are_finite_differences():
    pipe = pipeline()
    for parameter in pipe.unet.parameters():
        parameter.requires_grad_(True)
    probe = probing.probe_of(pipe, "cat", 1, 1, "all")
    x, t = probe.start()
    gates = {n: torch.full((1, w), 0.5, requires_grad=True) for n, w in probe.layers.items()}
    with probe.gradients(gates) as cost:
        loss = (probe.noise(x, t, {}) * torch.linspace(-1, 1, x.numel()).view_as(x)).sum()
        gradients = torch.autograd.grad(loss, list(gates.values()))
    assert cost == 3 and hooks(pipe) == 0 and all(p.requires_grad and p.grad is None for p in pipe.unet.parameters())
    for (name, width), gradient in zip(probe.layers.items(), gradients, strict=True):
        step = torch.zeros(1, width)
        step[0, 3] = 1e-2
        with torch.no_grad():
            masks = {n: torch.full((1, w), 0.5) for n, w in probe.layers.items()}
            ends = [probe.noise(x, t, masks | {name: masks[name] + sign * step}).double() for sign in (1, -1)]
        weights = torch.linspace(-1, 1, x.numel()).view_as(x).double()
        slope = float(((ends[0] - ends[1]) * weights).sum() / 2e-2)
        assert float(gradient[0, 3]) == pytest.approx(slope, rel=0.05, abs=2e-4)


def test_select_is_the_candidate_rule_on_this_prompt():
    pipe = pipeline()
    statistics = neurons.statistics(pipe, PROMPTS, layers="all")
    found = neurons.select(pipe, "a fox", statistics, theta=1.5, top_k=2)
    values = probing.activations(probing.value_layers(pipe.unet, "all"), encoded(pipe, "a fox"))
    for name, row in values.items():
        z = (row[0] - statistics.mean[name]).abs() / statistics.std[name]
        expected = {i for i in range(len(z)) if z[i] > 1.5} | set(row[0].topk(2).indices.tolist())
        assert found.indices[name] == tuple(sorted(expected))
    assert len(found.indices) == 7 and found.model == statistics.model


@lru_cache(maxsize=1)
def planted():
    """The test bed with one prompt's memory in one neuron per head."""
    pipe, prompt = testbed.pipeline(), testbed.originals()[0].caption
    before = neurons.noise_difference(pipe, prompt, 2)
    ordinary = testbed.prompts("ordinary")
    where = plant(pipe, prompt, ordinary[:150])
    torch.testing.assert_close(neurons.noise_difference(pipe, prompt, 2), before, rtol=0, atol=1e-4)
    return pipe, prompt, where, neurons.statistics(pipe, ordinary[150:250], layers="all")


@pytest.mark.parametrize("mode", ["fast", "official"])
def test_planted_neurons_are_found(mode):
    pipe, prompt, where, statistics = planted()
    found = neurons.localize(pipe, prompt, statistics, mode, parity="official", num_images=4, threshold=0.5)
    assert 1 <= found.count <= 20 and all(set(found.indices[n]) <= set(where[n]) for n in found.indices)
    assert found.ssim_before > 0.5 >= found.ssim_after and hooks(pipe) == 0
    assert "4 of 4 seeds" in found.provenance
    after = neurons.noise_difference(pipe, prompt, 4, neurons=found, parity="official")
    plain = neurons.noise_difference(pipe, prompt, 4, parity="official")
    from memguard.neurons.msssim import batch_spans, ms_ssim

    assert float(ms_ssim(plain, after, batch_spans(plain, after)).max()) == pytest.approx(found.ssim_after, abs=1e-4)


def test_an_ordinary_prompt_has_an_empty_set_and_a_cancelled_search_leaves_no_hook(tmp_path):
    pipe, prompt, _, statistics = planted()
    held = testbed.prompts("held")[0]
    found = neurons.localize(pipe, held, statistics, num_images=3)
    assert found.indices == {} and found.rows == 3 and "does not look memorized" in found.provenance

    left = iter(range(4))

    def cancel():
        if next(left, None) is None:
            raise KeyboardInterrupt

    path = tmp_path / "state.safetensors"
    settings = {"num_images": 3, "threshold": 0.55, "resume": path}
    with pytest.raises(KeyboardInterrupt):
        neurons.localize(pipe, prompt, statistics, cancel=cancel, **settings)
    assert path.is_file() and hooks(pipe) == 0
    seen = []
    whole = neurons.localize(pipe, prompt, statistics, progress=lambda p: seen.append(p.rows), **settings)
    assert seen[0] > 3  # the rows of the first run are counted, and not spent again
    again = neurons.localize(pipe, prompt, statistics, **settings)
    assert again.indices == whole.indices and again.rows == whole.rows
    with pytest.raises(ValueError, match="belongs to another search"):
        neurons.localize(pipe, prompt, statistics, **settings | {"seed": 2})


def test_calibrate_is_mean_and_deviation_of_the_seeds_similarity():
    pipe = pipeline()
    from memguard.neurons.msssim import ms_ssim

    best = []
    for prompt in PROMPTS[:3]:
        deltas = neurons.noise_difference(pipe, prompt, 3)
        best.append(max(float(ms_ssim(deltas[i : i + 1], deltas[j : j + 1])) for i, j in ((0, 1), (0, 2), (1, 2))))
    mean = sum(best) / 3
    spread = math.sqrt(sum((b - mean) ** 2 for b in best) / 2)
    assert neurons.calibrate(pipe, PROMPTS[:3], 3) == pytest.approx(mean + spread, abs=1e-6)


@pytest.mark.skipif(not tiny.same_noise(torch.float16), reason="this torch draws other noise in half precision")
def test_float16():
    pipe = pipeline().to(torch.float16)
    statistics = neurons.statistics(pipe, PROMPTS, layers=["mid_block.attentions.0.transformer_blocks.0.attn2"])
    assert statistics.mean[list(statistics.mean)[0]].dtype == torch.float32
    found = neurons.noise_difference(pipe, "cat", 2, parity="official")
    expected = neurons.noise_difference(pipeline(), "cat", 2, parity="official")
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    searched = neurons.localize(pipe, "cat", statistics, num_images=2, threshold=0.001)
    assert searched.ssim_after is not None and "no gradient" not in searched.provenance


def test_float8_weights_are_ranked_by_z_score_and_the_reason_is_said():
    pipe = pipeline()
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    statistics = neurons.statistics(pipe, PROMPTS)
    found = neurons.localize(pipe, "cat", statistics, num_images=2, threshold=0.001)
    assert "no gradient, so candidates are ranked by their z-score: the weights are quantised (" in found.provenance
    assert "float8_e4m3fn" in found.provenance and "\n" not in found.provenance


def test_sdxl():
    pipe = tiny.sdxl()
    pipe.unet.config["sample_size"] = SIDE
    statistics = neurons.statistics(pipe, PROMPTS)
    size = {"height": 64, "width": 64}
    found = neurons.localize(pipe, "cat", statistics, num_images=2, threshold=0.001, **size)
    assert found.model == statistics.model and found.rows > 2
    both = neurons.noise_difference(pipe, "cat", 2, **size)
    assert both.shape[0] == 2 and float(both.max()) == 1.0


@pytest.mark.parametrize("build", [tiny.sd3, tiny.flux])
def test_models_without_cross_attention_are_refused_with_the_reason(build):
    pipe = build()
    reason = "has no cross-attention layers: prompt and picture share their attention"
    with pytest.raises(ValueError, match=reason):
        neurons.statistics(pipe, PROMPTS)
    with pytest.raises(ValueError, match=reason):
        neurons.noise_difference(pipe, "cat", 2)


def test_what_does_not_fit_is_refused_in_one_line():
    pipe = pipeline()
    statistics = neurons.statistics(pipe, PROMPTS)
    name = list(statistics.mean)[0]
    with pytest.raises(
        ValueError, match="layers: 'attn9' is no cross-attention layer of this model; it has down_blocks.0"
    ):
        neurons.statistics(pipe, PROMPTS, layers=["attn9"])
    with pytest.raises(ValueError, match="prompt 2 is None; give texts"):
        neurons.statistics(pipe, ["a", None])
    with pytest.raises(ValueError, match="statistics of 0 prompts: give at least 2"):
        neurons.statistics(pipe, [])
    with pytest.raises(ValueError, match="neuron 99 of .* the model has 16 there"):
        neurons.noise_difference(pipe, "cat", 1, neurons=NeuronSet({name: (99,)}))
    other = NeuronSet({name: (1,)}, model="ffff")
    with pytest.raises(ValueError, match=f"made for model ffff, and this is model {statistics.model}"):
        neurons.noise_difference(pipe, "cat", 1, neurons=other)
    assert neurons.noise_difference(pipe, "cat", 1, neurons=other, force=True).shape[0] == 1
    with pytest.raises(ValueError, match="num_images is 0; at least 1"):
        neurons.localize(pipe, "cat", statistics, num_images=0)
    with pytest.raises(ValueError, match="prompt is 3; give a text"):
        neurons.select(pipe, 3, statistics, 1.0)
    with pytest.raises(ValueError, match="num_images is 1; seeds are compared with each other"):
        neurons.calibrate(pipe, PROMPTS, 1)


def test_fused_projections_are_named_and_hooks_are_gone_after_errors():
    pipe = pipeline()
    pipe.unet.fuse_qkv_projections()
    name = list(probing.value_layers(pipe.unet))[0]
    with pytest.raises(ValueError, match="the values of .* cannot be blocked: its projections are fused or replaced"):
        neurons.noise_difference(pipe, "cat", 1, neurons=NeuronSet({name: (1,)}))
    assert hooks(pipe) == 0
    pipe.unet.unfuse_qkv_projections()
    layers = probing.value_layers(pipe.unet)
    with pytest.raises(ZeroDivisionError), blocking.blocking(layers, {name: torch.ones(1, 16)}):
        raise ZeroDivisionError
    assert hooks(pipe) == 0


def test_a_compiled_unet_is_asked_as_it_was_written():
    pipe = pipeline()
    expected = neurons.noise_difference(pipe, "cat", 1)
    pipe.unet.compile(backend="eager")
    call = pipe.unet._compiled_call_impl
    assert torch.equal(neurons.noise_difference(pipe, "cat", 1), expected)
    assert pipe.unet._compiled_call_impl is call
    wrapped = pipeline()
    wrapped.unet = torch.compile(wrapped.unet, backend="eager")
    assert torch.equal(neurons.noise_difference(wrapped, "cat", 1), expected)
    assert hasattr(wrapped.unet, "_orig_mod")
