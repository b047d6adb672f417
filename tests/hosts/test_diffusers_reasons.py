"""What is said of a run without a score in diffusers is true, and policy stop ends it."""

from types import SimpleNamespace

import diffusers
import pytest
import torch

import memguard
from memguard import Guard, MemorizationStop
from memguard.hosts.diffusers import probing, treating
from memguard.hosts.diffusers.attention import no_layers
from memguard.hosts.diffusers.calls import Call, prompt_of
from memguard.hosts.diffusers.levels import level
from memguard.hosts.diffusers.pipes import family, latent_pixels, learns_variance
from memguard.hosts.diffusers.rows import UNKNOWN, Prompts, Unscored, _split
from memguard.mitigations import get
from memguard.troubles import NotFinite
from tests.hosts import tiny
from tests.hosts.test_diffusers import FLUX, finding, generate

PROMPT = "a red fox"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"guidance_scale": 1.0}, "cfg is 1"),
        ({"negative_prompt": PROMPT}, "the prompt and the negative prompt are the same"),
    ],
)
def test_stop_ends_a_run_that_has_no_score(changes, reason):
    pipe, calls = tiny.sd(), []
    pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    guard = Guard(policy="stop")
    with pytest.raises(MemorizationStop, match=reason):
        generate(pipe, guard, prompt=PROMPT, **changes)
    assert len(calls) == 1 and reason in finding(guard).status
    assert type(pipe) is diffusers.StableDiffusionPipeline and not pipe.unet._forward_hooks


def test_stop_ends_a_run_whose_model_was_not_seen(monkeypatch):
    pipe = tiny.sd()
    whole, guard = pipe.unet, Guard(policy="stop")
    monkeypatch.setattr("memguard.hosts.diffusers.pipes.denoiser", lambda _: tiny.unet())  # another network
    with pytest.raises(MemorizationStop, match="did not call its unet or transformer, so nothing could be seen"):
        generate(pipe, guard, prompt=PROMPT)
    assert pipe.unet is whole
    monkeypatch.setattr("memguard.hosts.diffusers.pipes.denoiser", lambda _: None)
    with pytest.raises(MemorizationStop, match="has neither a unet nor a transformer"):
        generate(pipe, guard, prompt=PROMPT)


def test_reasons_are_true():
    class PixArtTransformer2DModel(torch.nn.Module):
        pass

    assert no_layers(PixArtTransformer2DModel()).startswith("MemGuard does not know the attention of PixArt")
    assert no_layers(tiny.sd3().transformer).endswith("prompt and picture share their attention")
    pipe = tiny.flux()
    guard = Guard()
    generate(pipe, guard, **FLUX | {"guidance_scale": 7.5})  # Flux: one call, and no negative prompt is encoded
    assert "cfg is 7.5" not in finding(guard).status


def test_texts_pooled_vectors_and_masks_are_told_by_their_shape():
    text, other, mask, pooled = torch.ones(2, 7, 5), torch.zeros(2, 7, 5), torch.ones(2, 7), torch.ones(2, 4)
    for result in ((text, mask, other, mask), (text, torch.zeros(7, 3), mask, other, torch.zeros(7, 3), mask)):
        cond, uncond = _split(result)
        assert cond.text is text and uncond.text is other and cond.pooled is None and uncond.pooled is None
    cond, uncond = _split((text, other, pooled, 2 * pooled))
    assert cond.pooled is pooled and torch.equal(uncond.pooled, 2 * pooled)
    with pytest.raises(Exception, match=UNKNOWN):
        _split(([text[0]], [other[0]]))  # Z-Image: lists


def test_half_of_the_channels_may_be_the_variance():
    pipe = tiny.sd()
    x, text, t = torch.randn(2, 6, 8, 8), torch.randn(2, 3, 4), torch.tensor(5)
    given = {"sample": x, "timestep": t, "encoder_hidden_states": text}
    made = torch.randn(2, 6, 8, 8)
    call = Call.of(pipe.unet, (), given, (made,), variance=True)  # IF's super-resolution: picture and small picture in
    assert torch.equal(call.prediction, made[:, :3]) and torch.equal(call.x, x[:, :3])
    assert not learns_variance(pipe)
    pipe.scheduler.register_to_config(variance_type="learned_range")
    assert learns_variance(pipe)
    assert family(type("Flux2Transformer2DModel", (torch.nn.Module,), {})()) == "other"


def test_a_row_is_counted_when_it_is_made(monkeypatch):
    pipe, guard = tiny.sd(), Guard(reference="empty")
    monkeypatch.setattr(Call, "repeat", lambda *_, **__: 1 / 0)
    generate(pipe, guard, prompt=PROMPT, guidance_scale=1.0)
    assert finding(guard).scores == () and guard.report.extra_rows == 0


@pytest.mark.parametrize("name", ["random_tokens", "paraphrase", "noise_adjustment"])
def test_a_text_is_never_put_under_the_mask_of_another(name, caplog):
    pipe = tiny.pixart()
    given = {"prompt": PROMPT, "max_sequence_length": 16, "height": 16, "width": 16}
    given["clean_caption"] = False
    plain = generate(pipe, **given)
    settings = {"random_tokens": {"kind": "word"}, "paraphrase": {"text": "a blue house"}}.get(name, {})
    with get(name, **settings).attach(pipe):
        assert torch.equal(generate(pipe, **given), plain)
    (line,) = [line for line in caplog.messages if "left out" in line]
    assert line.endswith("encoder_attention_mask of another prompt is not known")  # there is no reference to choose
    guard = Guard(reference="empty")
    generate(pipe, guard, **given, negative_prompt="ugly")
    assert finding(guard).status.endswith("is not known; use the negative prompt as reference")
    (report,) = memguard.scan(pipe, [PROMPT], height=16, width=16, num_inference_steps=2)
    assert report.findings[0].status.endswith("is not known")
    assert memguard.explain(pipe, PROMPT, height=16, width=16, num_inference_steps=2).status.endswith("is not known")


@pytest.mark.parametrize(
    "name",
    ["encoder_attention_mask", "encoder_mask", "text_embedding_mask", "attention_mask"] + ["text_encoder_layers"],
)
def test_what_a_model_reads_beside_a_text_has_many_names(name):  # PixArt, Lumina, HunyuanDiT, Chroma, Bria Fibo
    pipe, x = tiny.sd(), torch.randn(1, 4, 8, 8)
    given = {"sample": x, "timestep": torch.tensor(5), "encoder_hidden_states": torch.randn(1, 3, tiny.WIDTH)}
    call = Call.of(pipe.unet, (), given, (x,))
    Call.of(pipe.unet, (), given | {name: None, "padding_mask": x}, (x,)).takes_another_prompt()
    call.arguments[name] = torch.ones(1, 3)
    with pytest.raises(Unscored, match=f"{name} of another prompt is not known"):
        call.repeat(slice(None), prompt_of(call.arguments))


def test_a_timestep_that_two_levels_could_be_is_the_one_whose_turn_it_is():
    plan = diffusers.FlowMatchEulerDiscreteScheduler()
    plan.set_timesteps(3)  # the last is 1, which is the first one, 1000, where a pipeline divides by 1000 (AuraFlow)
    assert plan.timesteps[-1] == 1
    assert level(plan, torch.tensor([1.0, 1.0])).full_noise
    sample = torch.zeros(1, 4, 8, 8)
    for t in plan.timesteps[:2]:
        sample = plan.step(sample, t, sample).prev_sample
    assert level(plan, torch.tensor(1.0)).timestep == 1  # SD3, which does not divide
    assert level(plan, torch.tensor(0.001)).timestep == 1
    plan.set_timesteps(3)
    assert level(plan, plan.timesteps[1] / 1000).timestep == plan.timesteps[1]


def test_one_prompt_in_two_encoders_is_not_called_two_prompts():
    def encode_prompt(prompt, negative_prompt=None):  # HunyuanDiT asks for CLIP's, then for T5's
        return torch.ones(1, 3, 4), torch.zeros(1, 3, 4)

    prompts = Prompts()
    for _ in range(2):
        prompts.learn(encode_prompt, (PROMPT,), {}, encode_prompt(PROMPT))
    with pytest.raises(Unscored, match="encodes its prompt more than once, so the rows that carry"):
        prompts.roles(torch.ones(2, 3, 4))


def test_a_pipeline_without_an_autoencoder_draws_pixels():
    assert latent_pixels(SimpleNamespace(unet=None)) == 1  # IF
    assert latent_pixels(SimpleNamespace(movq=tiny.vae())) == 8  # Kandinsky tells no factor
    assert latent_pixels(tiny.sd()) == 2


def test_an_encoder_that_is_told_how_many_is_told_how_many():
    def encode_prompt(prompt, batch_size=1):  # HunyuanImage
        return torch.ones(len(prompt), 3, 4).view(batch_size, 3, 4)

    prompts = Prompts()
    prompts.learn(encode_prompt, ([PROMPT], 1), {}, encode_prompt([PROMPT]))
    assert prompts.encode(["a", "fox", "red"]).text.shape == (3, 3, 4)


class TestAPipelineThatDoesNotCallItsModel:
    @pytest.fixture
    def idle(self):
        class Idle(type(tiny.sd())):
            def __call__(self, prompt=None, num_images_per_prompt=1, **_):
                return "picture"

        pipe = tiny.sd()
        pipe.__class__ = Idle
        return pipe

    @pytest.mark.parametrize(
        "ask", [memguard.mitigations.optimize_prompt, lambda pipe, text: probing.start(pipe, text, 1, 0)]
    )
    def test_who_asks_for_a_number_is_told(self, idle, ask):
        with pytest.raises(ValueError, match="did not call its unet or transformer"):
            ask(idle, "a red fox")

    def test_who_attached_a_mitigation_is_told(self, idle, caplog):
        with memguard.mitigations.get("guidance_delay").attach(idle):
            assert idle("a red fox") == "picture"
        assert "did not call its unet or transformer" in caplog.text


def test_a_gradient_that_is_not_finite_passes_optimize_prompt_as_it_says(monkeypatch):
    def fails(*_):
        raise NotFinite("the gradient holds NaN")

    monkeypatch.setattr(treating, "optimize", fails)
    with pytest.raises(FloatingPointError, match="holds NaN"):
        memguard.mitigations.optimize_prompt(tiny.sd(), "a red fox", num_inference_steps=2)
