"""``explain`` on small pipelines of diffusers, against computations that share nothing with it."""

from functools import wraps

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

import memguard
from memguard.attributions.lean import lean
from memguard.hosts.diffusers import inputs
from memguard.hosts.diffusers.attention import cross_layers

from . import tiny

PROMPT = "a red fox on the roof"
SIZE = {"height": 16, "width": 16, "num_inference_steps": 4}


@pytest.fixture(scope="module")
def sd():
    return tiny.sd()


def ids(pipe, text):
    return pipe.tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


def scores(pipe, context, images=1, seed=0, t=None):
    """Return d_j of the first step by a plain call of the UNet; ``context`` may carry a graph."""
    pipe.scheduler.set_timesteps(4)
    t = pipe.scheduler.timesteps[0] if t is None else t
    noise = torch.randn((images, 4, 8, 8), generator=torch.Generator("cpu").manual_seed(seed))
    x = pipe.scheduler.scale_model_input(noise * pipe.scheduler.init_noise_sigma, t)
    empty = pipe.text_encoder(ids(pipe, "")).last_hidden_state.detach()
    gap = pipe.unet(x, t, context.expand(images, -1, -1)).sample - pipe.unet(x, t, empty.expand(images, -1, -1)).sample
    return gap.flatten(1).norm(dim=1)


def test_the_encoded_gradient_is_that_of_a_plain_backward(sd):
    found = memguard.explain(sd, PROMPT, num_images=3, respect_to="encoded", **SIZE)
    context = sd.text_encoder(ids(sd, PROMPT)).last_hidden_state.detach().requires_grad_(True)
    values = scores(sd, context, images=3)
    grads = torch.stack([torch.autograd.grad(value, context, retain_graph=True)[0][0] for value in values])
    torch.testing.assert_close(torch.tensor(found.token_scores), grads.norm(dim=-1).mean(0), rtol=1e-4, atol=1e-7)
    assert found.score == pytest.approx(float(values.mean()), rel=1e-5)
    assert found.groups["padding"] == pytest.approx(float(grads[:, 8:].flatten(1).norm(dim=1).mean()), rel=1e-4)


def test_the_input_gradient_goes_through_the_text_encoder(sd):
    found = memguard.explain(sd, PROMPT, num_images=2, **SIZE)
    layer = sd.text_encoder.get_input_embeddings()
    kept = []
    handle = layer.register_forward_hook(lambda _m, _i, out: kept.append(out.detach().requires_grad_(True)) or kept[-1])
    context = sd.text_encoder(ids(sd, PROMPT)).last_hidden_state
    handle.remove()
    grads = [torch.autograd.grad(v, kept[0], retain_graph=True)[0][0] for v in scores(sd, context, images=2)]
    expected = torch.stack(grads).norm(dim=-1).mean(0)
    torch.testing.assert_close(torch.tensor(found.token_scores), expected, rtol=1e-4, atol=1e-7)
    assert [word for word, _ in found.words] == PROMPT.split()


@pytest.mark.parametrize("asked", [{}, {"respect_to": "input"}, {"respect_to": "encoded"}])
def test_the_official_number_and_its_trajectory(sd, asked):
    """Batch norm over 2 n, and steps along the anti-guided trajectory; always of the encoded prompt."""
    found = memguard.explain(sd, PROMPT, num_images=2, steps=2, parity="official", **asked, **SIZE)
    sd.scheduler.set_timesteps(4)
    context = sd.text_encoder(ids(sd, PROMPT)).last_hidden_state.detach().requires_grad_(True)
    empty = sd.text_encoder(ids(sd, "")).last_hidden_state.detach()
    x = torch.randn((2, 4, 8, 8), generator=torch.Generator("cpu").manual_seed(0))
    steps = []
    for t in sd.scheduler.timesteps[:2]:
        cond, uncond = (sd.unet(x, t, c.expand(2, -1, -1)).sample for c in (context, empty))
        steps.append(torch.autograd.grad((cond - uncond).norm(), context, retain_graph=True)[0][0].norm(dim=-1) / 4)
        x = sd.scheduler.step((cond + 7.5 * (uncond - cond)).detach(), t, x).prev_sample
    torch.testing.assert_close(torch.tensor(found.token_scores), torch.stack(steps).mean(0), rtol=1e-4, atol=1e-7)
    own = memguard.explain(sd, PROMPT, num_images=2, steps=2, respect_to="encoded", **SIZE)
    assert own.token_scores != pytest.approx(found.token_scores, rel=0.05)


def test_the_effect_of_a_word_is_that_of_a_scan_without_it(sd):
    found = memguard.explain(sd, PROMPT, "ablation", num_images=2, **SIZE)
    texts = [PROMPT, "red fox on the roof", "a red on the roof", "a red fox on the "]
    scanned = [report.findings[0].score for report in memguard.scan(sd, texts, num_images=2, **SIZE)]
    weights = dict(found.words)
    for word, score in zip(("a", "fox", "roof"), scanned[1:], strict=True):
        assert weights[word] == pytest.approx(scanned[0] - score, abs=1e-5)


def test_attention_is_that_of_a_processor_that_computes_it(sd):
    found = memguard.explain(sd, PROMPT, "attention", num_images=2, **SIZE)
    seen = {}

    class Recording:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            q, k, v = (
                attn.head_to_batch_dim(f(h))
                for f, h in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
            )
            p = attn.get_attention_scores(q, k)
            if encoder_hidden_states is not None:
                seen[attn] = p.unflatten(0, (-1, attn.heads)).mean((1, 2))
            return attn.to_out[0](attn.batch_to_head_dim(p @ v))

    before = sd.unet.attn_processors
    sd.unet.set_attn_processor(Recording())
    context = sd.text_encoder(ids(sd, PROMPT)).last_hidden_state
    noise = torch.randn((2, 4, 8, 8), generator=torch.Generator("cpu").manual_seed(0))
    with torch.no_grad():
        sd.scheduler.set_timesteps(4)
        sd.unet(noise, sd.scheduler.timesteps[0], context.expand(2, -1, -1))
    sd.unet.set_attn_processor(before)
    for name, layer in cross_layers(sd.unet).items():
        row = seen[layer].mean(0)
        expected = [float(row[list(span.columns)].sum()) for span in found.spans]
        assert found.layers[name] == pytest.approx(expected, rel=1e-4)
    assert sum(found.weights) == pytest.approx(1, abs=1e-5)


def test_layers_stand_in_the_order_of_execution(sd):
    assert [name.split("_")[0] for name in cross_layers(sd.unet)] == ["down"] * 2 + ["mid"] + ["up"] * 4


def test_checkpointing_changes_no_gradient_and_leaves_nothing(sd):
    x, t, context = torch.randn(1, 4, 8, 8), 500, torch.randn(1, 77, tiny.WIDTH, requires_grad=True)
    plain = torch.autograd.grad(sd.unet(x, t, context).sample.norm(), context)[0]
    with lean(sd.unet) as blocks:
        assert blocks > 6
        again = torch.autograd.grad(sd.unet(x, t, context).sample.norm(), context)[0]
    torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)  # sums of another order
    assert all(weight.requires_grad for weight in sd.unet.parameters())
    assert not any("forward" in module.__dict__ for module in sd.unet.modules())


@pytest.mark.parametrize("method", ["gradient", "ablation", "attention"])
@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_every_family_has_weights_or_a_reason(family, method):
    found = memguard.explain(getattr(tiny, family)(), PROMPT, method, **SIZE)
    if method == "attention" and family in ("sd3", "flux"):
        assert found.status.endswith("has no cross-attention layers: prompt and picture share their attention")
        return
    assert (found.status, found.method, found.notes) == ("ok", method, ())
    assert [word for word, _ in found.words] == PROMPT.split()
    assert all(weight == weight and (weight or method == "ablation") for weight in found.weights)
    assert ("pooled" in found.groups) == (family != "sd" and method == "ablation")


def test_maps_come_with_the_picture_and_watching_changes_nothing(sd):
    plain = sd(PROMPT, generator=torch.Generator("cpu").manual_seed(5), output_type="np", **SIZE).images[0]
    found = memguard.explain(sd, PROMPT, "attention", maps=("noise_gap", "bright_ending", "word"), seed=5, **SIZE)
    assert ((255 * plain).round() == found.images[0]).all()
    assert set(found.maps) == {"noise_gap", "bright_ending", *(f"word {i}" for i in range(6))}
    assert {heat.shape for heat in found.maps.values()} == {(8, 8)}
    assert not any(module._forward_hooks for module in sd.unet.modules())


def test_one_side_and_guidance_1(sd):
    settings = {"num_inference_steps": 4, "num_images": 3}
    wide = memguard.explain(sd, PROMPT, "attention", width=32, maps=("word", "bright_ending"), **settings)
    assert {heat.shape for heat in wide.maps.values()} == {(8, 16)}
    free = memguard.explain(sd, PROMPT, guidance_scale=1.0, **settings)
    assert free.weights == pytest.approx(memguard.explain(sd, PROMPT, **settings).weights, rel=1e-4)
    with pytest.raises(ValueError, match="give multiples of 8"):
        memguard.explain(sd, PROMPT, width=33)


def test_textual_inversion_and_a_long_prompt(sd):
    pipe = StableDiffusionPipeline(**tiny.sd_parts())
    pipe.set_progress_bar_config(disable=True)
    pipe.tokenizer.add_tokens(["<cat>", "<cat>_1"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    found = memguard.explain(pipe, "a <cat> on the roof", **SIZE)
    assert [(s.text, len(s.columns)) for s in found.spans[:3]] == [("a", 1), ("<cat>", 2), ("on", 1)]
    long = memguard.explain(pipe, " ".join(["fox"] * 80), **SIZE)
    assert [len(span.columns) for span in long.spans if span.group == "word"] == [1] * 75 + [0] * 5
    assert long.notes == ("cut off, the model never sees: fox fox fox fox fox",)


def test_memory_that_runs_out_falls_back_to_ablation_and_says_so(sd, monkeypatch):
    def poor(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("memguard.attributions.gradient.prompt_gradient", poor)
    found = memguard.explain(sd, PROMPT, **SIZE)
    assert (found.method, found.notes) == ("ablation", ("not enough memory for gradients; ablation stood in",))
    assert found.weights == memguard.explain(sd, PROMPT, "ablation", **SIZE).weights


@pytest.mark.skipif(not tiny.same_noise(torch.float16), reason="this torch draws other noise in half precision")
def test_half_precision_is_within_two_percent():
    exact = memguard.explain(tiny.sd(), PROMPT, respect_to="encoded", **SIZE)
    half = memguard.explain(tiny.sd().to(torch.float16), PROMPT, respect_to="encoded", **SIZE)
    assert half.weights == pytest.approx(exact.weights, rel=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "magic"}, "method is 'magic'; use one of gradient, ablation, attention"),
        ({"maps": ("here",)}, "maps is 'here'; use one of noise_gap, bright_ending, word"),
        ({"parity": "official", "method": "ablation"}, "parity='official' is a number of method gradient"),
        ({"steps": 9, "num_inference_steps": 4}, "steps between 1 and num_inference_steps"),
        ({"prompt": " "}, "prompt is ' '; give the text to explain"),
    ],
)
def test_bad_input_is_named(sd, settings, message):
    with pytest.raises(ValueError) as error:
        memguard.explain(sd, **{"prompt": PROMPT, **settings})
    assert message in str(error.value)


def test_a_pipeline_that_fails_leaves_no_hook(sd):
    class Broken(DDIMScheduler):
        def step(self, *_args, **_kwargs):
            raise RuntimeError("broken")

    pipe = tiny.sd(tiny.scheduler(Broken))
    with pytest.raises(RuntimeError, match="broken"):
        memguard.explain(pipe, PROMPT, "attention", steps=2, **SIZE)
    assert not any(module._forward_hooks for module in pipe.unet.modules())
    assert type(pipe).__module__.startswith("diffusers")


@pytest.mark.parametrize("respect_to", ["input", "encoded"])
def test_a_model_without_gradients_is_explained_by_ablation_and_says_so(sd, monkeypatch, respect_to):
    whole = type(sd.unet).forward
    monkeypatch.setattr(type(sd.unet), "forward", torch.no_grad()(whole))  # as some speed-up packs have it
    found = memguard.explain(sd, PROMPT, respect_to=respect_to, **SIZE)
    assert found.method == "ablation" and found.status == "ok"
    assert found.notes[0].startswith("no gradient reaches the prompt") and found.notes[0].endswith("ablation stood in")
    assert found.weights == memguard.explain(sd, PROMPT, "ablation", **SIZE).weights


def test_a_patch_that_computes_in_place_is_explained_by_ablation_and_says_so(sd, monkeypatch):
    layer = sd.unet.conv_out
    plain = layer.forward

    def in_place(x):
        return plain(x.sigmoid().mul_(2.0))  # what sigmoid saved for the way back is gone

    monkeypatch.setattr(layer, "forward", in_place)
    found = memguard.explain(sd, PROMPT, **SIZE)
    assert found.method == "ablation" and found.status == "ok"
    assert "computes in place" in found.notes[0]


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_template_that_is_taken_off_again_is_a_reason_and_no_error(monkeypatch, tokens):
    """As Ovis-Image does: the encoder's columns are not those that the model gets."""
    pipe = tiny.sd()
    whole = StableDiffusionPipeline.encode_prompt

    @wraps(whole)
    def without_template(*args, **named):
        return tuple(None if part is None else part[:, tokens:] for part in whole(*args, **named))

    monkeypatch.setattr(StableDiffusionPipeline, "encode_prompt", without_template)
    found = memguard.explain(pipe, PROMPT, **SIZE)
    assert found.status.startswith("the text encoder reads more tokens than the model gets") and not found.weights
    assert memguard.explain(pipe, PROMPT, respect_to="encoded", **SIZE).status == "ok"
    assert memguard.explain(pipe, PROMPT, method="ablation", **SIZE).status == "ok"


def test_freeu_is_explained(sd):
    pipe = tiny.sd()
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    found = memguard.explain(pipe, PROMPT, **SIZE)
    assert found.status == "ok" and all(weight != 0 for weight in found.weights)


class Fixed(StableDiffusionPipeline):
    """A pipeline whose call takes no guidance scale, as HunyuanImage's."""

    def __call__(self, prompt, num_images_per_prompt=1, num_inference_steps=4, generator=None, output_type="pil"):
        given = {"num_images_per_prompt": num_images_per_prompt, "num_inference_steps": num_inference_steps}
        given |= {"generator": generator, "output_type": output_type, "height": 16, "width": 16}
        return super().__call__(prompt, guidance_scale=7.5, **given)


def test_a_pipeline_is_given_what_its_call_knows(sd):
    pipe = tiny.sd(cls=Fixed)
    found = memguard.explain(pipe, PROMPT, "ablation", num_inference_steps=4)
    assert found.status == "ok" and found.weights == memguard.explain(sd, PROMPT, "ablation", **SIZE).weights
    text = memguard.mitigations.optimize_prompt(pipe, PROMPT, iterations=2, num_inference_steps=4)
    given = {"iterations": 2, **SIZE}
    assert torch.equal(text, memguard.mitigations.optimize_prompt(sd, PROMPT, **given))


class Moved:
    """A text encoder that offloading has moved."""

    def __init__(self, device):
        self.device, self.calls = torch.device(device), []

    def parameters(self):
        return iter((self,))

    def to(self, device):
        self.calls.append(str(device))


def test_text_encoders_that_were_moved_away_are_there_for_the_way_back_and_then_where_they_were():
    here, away, unloaded = Moved("cuda:0"), Moved("cpu"), Moved("meta")
    with pytest.raises(KeyError), inputs._at(torch.device("cuda:0"), [here, away, unloaded]):
        assert away.calls == ["cuda:0"]
        raise KeyError
    assert (here.calls, away.calls, unloaded.calls) == ([], ["cuda:0", "cpu"], [])
