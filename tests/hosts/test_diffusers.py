"""The diffusers host on tiny random pipelines, against the contract and against plain computations."""

import math

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)

import memguard
from memguard import Guard
from memguard.hosts.diffusers.levels import level
from memguard.hosts.diffusers.rows import Unscored
from tests.hosts import tiny
from tests.hosts.contract import SIDE, HostContract
from tests.hosts.contract_treated import TreatedContract

STEPS = 4


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def generate(pipe, guard=None, **changes) -> torch.Tensor:
    """Latents of a run of four steps from seed 3."""
    settings = {"num_inference_steps": STEPS, "generator": seeded(), "output_type": "latent", **changes}
    if guard is None:
        return pipe(**settings).images
    with guard.attach(pipe):
        return pipe(**settings).images


def noise_gap(pipe, prompt: str, seed: int = 3, images: int = 1, negative: str = "", size=(8, 8)) -> torch.Tensor:
    """The noise gap at the first step of a Stable Diffusion pipeline, [images, 4, h, w], two plain UNet calls."""
    plan = pipe.scheduler
    plan.set_timesteps(STEPS)
    t = plan.timesteps[0]
    x = torch.randn(images, 4, *size, generator=seeded(seed)) * plan.init_noise_sigma
    x = plan.scale_model_input(x, t)
    with torch.no_grad():
        cond, uncond = pipe.encode_prompt([prompt], "cpu", images, True, [negative])
        return pipe.unet(x, t, encoder_hidden_states=cond).sample - pipe.unet(x, t, encoder_hidden_states=uncond).sample


class Diffusers:
    steps = STEPS

    def __init__(self):
        self.pipe = tiny.sd()
        self.count, self.error, self.button = 0, None, None
        self.pipe.unet.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, module, args, kwargs):
        self.count += len(kwargs["encoder_hidden_states"])
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if self.button is not None:
            self.button -= 1
            if self.button < 0:
                self.button, self.pipe._interrupt = None, True

    def sample(self, guard, prompts=("a red fox",), cfg=7.5, size=(SIDE, SIDE), seed=3):
        pixels = {name: self.pipe.vae_scale_factor * side for name, side in zip(("height", "width"), size, strict=True)}
        more = {"num_inference_steps": self.steps, "generator": seeded(seed), **pixels}
        return generate(self.pipe, guard, prompt=list(prompts), guidance_scale=cfg, **more)

    def noise(self, images, seed=3):
        return torch.randn(images, 4, SIDE, SIDE, generator=seeded(seed))

    def rows(self):
        return self.count

    def hooks(self):
        module = self.pipe.unet
        own = [vars(self.pipe).get(name) for name in ("__call__", "encode_prompt", "prepare_latents")]
        replaced = type(self.pipe) is not diffusers.StableDiffusionPipeline
        replaced += "step" in vars(self.pipe.scheduler)
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        layers = sum("forward" in vars(layer) for layer in module.modules())
        return hooks + layers + sum(o is not None for o in own) + replaced + (module._compiled_call_impl is not None)

    def break_model(self, error):
        self.error = error

    def interrupt(self, call):
        self.button = call

    def score(self, prompt, size=(SIDE, SIDE)):
        return float(noise_gap(self.pipe, prompt, size=size).norm())


class TestContract(HostContract):
    @pytest.fixture
    def host(self):
        return Diffusers()


class TestTreated(TreatedContract):
    @pytest.fixture
    def host(self):
        return Diffusers()


@pytest.fixture(scope="module")
def pipe():
    return tiny.sd()


def finding(guard):
    return guard.report.findings[0]


def test_the_facts_of_the_run_are_in_the_report(pipe):
    guard = Guard()
    generate(pipe, guard, prompt="a red fox", negative_prompt="ugly", guidance_scale=5.0)
    report = guard.report
    assert (report.host, report.host_version) == ("diffusers", diffusers.__version__)
    assert (report.prompt, report.negative_prompt, report.seeds) == ("a red fox", "ugly", (3,))
    assert (report.sampler, report.steps, report.cfg) == ("DDIMScheduler", STEPS, 5.0)
    assert (report.width, report.height) == (16, 16)
    assert len(report.model) == 16 and report.model == memguard.calibration.fingerprint(pipe.unet.parameters())
    assert report.noise_gap_map.shape == (1, 8, 8)


def test_images_of_several_prompts_come_in_the_pipeline_s_order(pipe):
    guard = Guard()
    generate(pipe, guard, prompt=["a red fox", "a blue house"], num_images_per_prompt=2)
    generator = seeded()
    x = torch.randn(4, 4, 8, 8, generator=generator)
    expected = []
    for row, prompt in enumerate(["a red fox", "a red fox", "a blue house", "a blue house"]):
        with torch.no_grad():
            cond, uncond = pipe.encode_prompt([prompt], "cpu", 1, True)
            t = pipe.scheduler.timesteps[0]
            both = [pipe.unet(x[row : row + 1], t, encoder_hidden_states=e).sample for e in (cond, uncond)]
        expected.append(float((both[0] - both[1]).norm()))
    assert finding(guard).scores == pytest.approx(expected, rel=1e-4)
    assert guard.report.notes == ("scores of 2 prompts x 2 images, prompt by prompt",)


def test_prompt_embeddings_are_as_good_as_prompts(pipe):
    cond, uncond = pipe.encode_prompt(["a red fox"], "cpu", 1, True)
    guard = Guard()
    generate(pipe, guard, prompt_embeds=cond, negative_prompt_embeds=uncond)
    assert finding(guard).scores == (pytest.approx(float(noise_gap(pipe, "a red fox").norm()), rel=1e-4),)


@pytest.mark.parametrize("negative", [None, ""])
def test_the_empty_reference_is_free_where_the_negative_prompt_is_empty(pipe, negative):
    guard = Guard(reference="empty")
    generate(pipe, guard, prompt="a red fox", negative_prompt=negative)
    assert guard.report.extra_rows == 0
    assert finding(guard).reference == "empty"
    assert finding(guard).scores == (pytest.approx(float(noise_gap(pipe, "a red fox").norm()), rel=1e-4),)


def test_the_empty_reference_is_predicted_beside_a_negative_prompt(pipe):
    settings = {"prompt": "a red fox", "negative_prompt": "ugly", "num_images_per_prompt": 2}
    guard = Guard(reference="empty", steps=2)
    assert torch.equal(generate(pipe, **settings), generate(pipe, guard, **settings))
    assert guard.report.extra_rows == 4
    expected = noise_gap(pipe, "a red fox", images=2).flatten(1).norm(dim=1)
    assert finding(guard).per_step[0] == pytest.approx(expected.tolist(), rel=1e-4)


def test_the_negative_prompt_is_the_reference_otherwise(pipe):
    guard = Guard()
    generate(pipe, guard, prompt="a red fox", negative_prompt="ugly")
    assert finding(guard).reference == "negative"
    expected = noise_gap(pipe, "a red fox", negative="ugly").norm()
    assert finding(guard).scores == (pytest.approx(float(expected), rel=1e-4),)


def test_a_prompt_that_is_the_negative_prompt_has_no_score_and_a_reason(pipe):
    said = "the prompt and the negative prompt are the same for the model, so there is nothing to compare"
    guard = Guard()
    generate(pipe, guard, prompt="ugly", negative_prompt="ugly")
    assert (finding(guard).scores, finding(guard).status) == ((), said)
    generate(pipe, guard, prompt="")
    assert finding(guard).status == said
    flux = tiny.flux()  # two calls, that cannot be told apart
    generate(flux, guard, **FLUX | {"negative_prompt": "a red fox", "true_cfg_scale": 4.0})
    assert (finding(guard).scores, finding(guard).status) == ((), said)
    spending = Guard(reference="empty")  # compares with something else
    generate(pipe, spending, prompt="ugly", negative_prompt="ugly")
    assert finding(spending).scores == (pytest.approx(float(noise_gap(pipe, "ugly").norm()), rel=1e-4),)


def test_v_prediction_is_converted_to_epsilon():
    pipe = tiny.sd(tiny.scheduler(prediction_type="v_prediction"))
    guard = Guard()
    generate(pipe, guard, prompt="a red fox")
    t = int(pipe.scheduler.timesteps[0])
    root = math.sqrt(float(pipe.scheduler.alphas_cumprod[t]))
    assert finding(guard).scores == (pytest.approx(root * float(noise_gap(pipe, "a red fox").norm()), rel=1e-4),)


def test_sample_prediction_is_converted_to_epsilon():
    pipe = tiny.sd(tiny.scheduler(prediction_type="sample"))
    guard = Guard()
    generate(pipe, guard, prompt="a red fox")
    bar = float(pipe.scheduler.alphas_cumprod[int(pipe.scheduler.timesteps[0])])
    expected = math.sqrt(bar / (1 - bar)) * float(noise_gap(pipe, "a red fox").norm())
    assert finding(guard).scores == (pytest.approx(expected, rel=1e-4),)


@pytest.mark.parametrize("cls", [DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_every_model_call_of_a_scheduler_is_a_step(cls):
    pipe = tiny.sd(tiny.scheduler(cls))
    guard = Guard(steps=4)
    calls = []
    handle = pipe.unet.register_forward_hook(lambda _m, _a, out: calls.append(out[0]))
    plain = generate(pipe, guard, prompt="a red fox")
    handle.remove()
    expected = [float((c - u).norm()) for u, c in (call.chunk(2) for call in calls[:4])]
    assert [row[0] for row in finding(guard).per_step] == pytest.approx(expected, rel=1e-4)
    assert torch.equal(plain, generate(pipe, prompt="a red fox"))
    t = float(pipe.scheduler.timesteps[0])
    bars = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    bar = float(bars[round(t)])
    assert finding(guard).timestep == t
    assert finding(guard).sigma == pytest.approx(math.sqrt((1 - bar) / bar), rel=1e-3)


def test_sigma_is_the_scheduler_s_own_with_karras_spacing():
    plan = tiny.scheduler(EulerDiscreteScheduler, use_karras_sigmas=True)
    plan.set_timesteps(10)
    for i in (0, 3, 8):
        assert level(plan, plan.timesteps[i]).sigma == pytest.approx(float(plan.sigmas[i]), rel=1e-3)


def test_sigma_max_is_that_of_the_training_schedule():
    plan = tiny.scheduler()
    plan.set_timesteps(50)
    here = level(plan, plan.timesteps[0])
    sigmas = pytest.approx(13.1204, abs=1e-4), pytest.approx(14.6146, abs=1e-4)
    assert (here.timestep, here.sigma, here.sigma_max) == (981, *sigmas)


def test_a_run_of_few_steps_starts_from_noise_and_an_img2img_run_does_not(pipe):
    guard = Guard()
    generate(pipe, guard, prompt="a red fox")
    assert "not from pure noise" not in finding(guard).threshold_source
    other = tiny.sd(cls=diffusers.StableDiffusionImg2ImgPipeline)
    picture = torch.rand(1, 3, 16, 16, generator=seeded())
    plain = generate(other, prompt="a red fox", image=picture, strength=0.5)
    watched = generate(other, guard, prompt="a red fox", image=picture, strength=0.5)
    assert torch.equal(plain, watched)
    assert finding(guard).status == "ok"
    assert finding(guard).threshold_source.endswith("not from pure noise")


def test_zero_terminal_snr_is_a_reason(pipe):
    pipe = tiny.sd(tiny.scheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"))
    guard = Guard()
    generate(pipe, guard, prompt="a red fox")
    assert "zero terminal SNR" in finding(guard).status


def test_an_unknown_schedule_is_a_reason():
    plan = diffusers.EDMEulerScheduler()
    plan.set_timesteps(4)
    with pytest.raises(Unscored, match="EDMEulerScheduler"):
        level(plan, plan.timesteps[0])


def test_guidance_rescale_and_half_precision_change_nothing_of_the_score(pipe):
    guard = Guard()
    generate(pipe, guard, prompt="a red fox", guidance_rescale=0.7)
    exact = finding(guard).scores[0]
    assert exact == pytest.approx(float(noise_gap(pipe, "a red fox").norm()), rel=1e-4)
    half = tiny.sd().to(torch.bfloat16)
    given = {"prompt": "a red fox", "latents": torch.randn(1, 4, 8, 8, generator=seeded()).bfloat16()}
    assert torch.equal(generate(half, **given), generate(half, guard, **given))
    assert finding(guard).scores[0] == pytest.approx(exact, rel=0.1)


def test_a_stochastic_scheduler_draws_the_same_noise_when_watched():
    pipe = tiny.sd(tiny.scheduler(EulerAncestralDiscreteScheduler))
    guard = Guard(reference="empty", steps=3)
    settings = {"prompt": "a red fox", "negative_prompt": "ugly"}
    assert torch.equal(generate(pipe, **settings), generate(pipe, guard, **settings))
    assert guard.report.extra_rows == 3


@pytest.mark.parametrize("compiled", ["the module", "a wrapper"])
def test_a_compiled_denoiser_is_watched_outside_its_graph(compiled):
    small = {"block_out_channels": (8,), "up_block_types": ("UpBlock2D",), "down_block_types": ("DownBlock2D",)}
    pipe = tiny.sd(**small)
    expected = float(noise_gap(pipe, "a red fox").norm())
    if compiled == "the module":
        pipe.unet.compile(backend="eager", fullgraph=True)
    else:
        pipe.unet = torch.compile(pipe.unet, backend="eager", fullgraph=True)
    guard = Guard()
    plain = generate(pipe, prompt="a red fox")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert torch.equal(plain, generate(pipe, guard, prompt="a red fox"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert finding(guard).scores == (pytest.approx(expected, rel=1e-4),)


def test_two_guards_on_one_pipeline_do_not_disturb_each_other(pipe):
    outer, inner = Guard(reference="empty"), Guard(reference="empty")
    settings = {"prompt": "a red fox", "guidance_scale": 1.0}
    with outer.attach(pipe):
        generate(pipe, inner, **settings)
    expected = pytest.approx(float(noise_gap(pipe, "a red fox").norm()), rel=1e-4)
    assert finding(outer).scores == finding(inner).scores == (expected,)
    assert outer.report.extra_rows == inner.report.extra_rows == 1


def test_lora_layers_are_noted_and_do_not_hide_the_checkpoint(pipe):
    guard = Guard()
    generate(pipe, guard, prompt="a red fox")
    plain = guard.report.model
    other = tiny.sd()
    layer = other.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    layer.lora_down = torch.nn.Linear(tiny.WIDTH, 2)  # the name that every LoRA layer has
    generate(other, guard, prompt="a red fox")
    assert guard.report.model == plain
    assert guard.report.notes[0].startswith("LoRA layers are loaded")


def test_a_pipeline_without_encode_prompt_is_a_reason():
    pipe = tiny.sd(cls=diffusers.StableDiffusionInstructPix2PixPipeline, in_channels=8)
    guard = Guard()
    generate(pipe, guard, prompt="a red fox", image=torch.rand(1, 3, 16, 16))
    assert finding(guard).scores == ()
    assert "encode_prompt" in finding(guard).status


def test_a_denoiser_without_a_prompt_is_a_reason():
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    model = diffusers.UNet2DModel(sample_size=8, norm_num_groups=4, layers_per_block=1, **blocks)
    pipe = tiny.quiet(diffusers.DDPMPipeline(model.eval(), diffusers.DDPMScheduler()))
    guard = Guard()
    with guard.attach(pipe):
        pipe(num_inference_steps=2, output_type="np")
    assert "encoded prompt" in finding(guard).status


def test_a_wrong_argument_is_the_pipeline_s_own_error(pipe):
    with pytest.raises(ValueError, match="Provide either `prompt`"):
        generate(pipe, Guard(), promt="a red fox")
    assert type(pipe) is diffusers.StableDiffusionPipeline


def test_a_broken_prediction_is_named(pipe):
    pipe = tiny.sd()
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(math.nan)
    guard = Guard()
    generate(pipe, guard, prompt="a red fox")
    assert finding(guard).status == "the model's prediction at step 0 holds NaN or infinity"


def test_a_second_attach_after_the_block_is_gone(pipe):
    guard = Guard()
    generate(pipe, guard, prompt="a red fox")
    run = guard.report.run
    generate(pipe, prompt="a red fox")
    assert guard.report.run == run
    assert type(pipe) is diffusers.StableDiffusionPipeline


# --- other families ---------------------------------------------------------------------------------------------------


def spied(pipe, **settings) -> list[tuple[dict, torch.Tensor]]:
    """Arguments and predictions of every denoiser call of an unwatched run."""
    calls = []
    module = getattr(pipe, "unet", None) or pipe.transformer
    handle = module.register_forward_hook(lambda _m, a, k, o: calls.append((k, o[0].clone())), with_kwargs=True)
    try:
        generate(pipe, **settings)
    finally:
        handle.remove()
    return calls


@pytest.mark.parametrize("zeros", [True, False])
def test_sdxl(zeros):
    pipe = tiny.sdxl(zeros=zeros)
    guard = Guard(steps=2)
    uncond, cond = spied(pipe, prompt="a red fox")[1][1].chunk(2)
    generate(pipe, guard, prompt="a red fox")
    assert guard.report.family == "sdxl"
    assert finding(guard).per_step[1] == (pytest.approx(float((cond - uncond).norm()), rel=1e-5),)


def test_sdxl_spends_the_pipeline_s_own_empty_prompt():
    pipe = tiny.sdxl()
    free, spent = Guard(), Guard(reference="empty")
    generate(pipe, free, prompt="a red fox")
    settings = {"prompt": "a red fox", "negative_prompt": "ugly"}
    assert torch.equal(generate(pipe, **settings), generate(pipe, spent, **settings))
    assert spent.report.extra_rows == 1
    assert finding(spent).scores == pytest.approx(finding(free).scores, rel=1e-4)


def test_sd3_scores_the_velocity():
    pipe = tiny.sd3()
    guard = Guard(steps=2)
    uncond, cond = spied(pipe, prompt="a red fox")[0][1].chunk(2)
    assert torch.equal(generate(pipe, prompt="a red fox"), generate(pipe, guard, prompt="a red fox"))
    assert guard.report.family == "sd3"
    assert (finding(guard).sigma, finding(guard).timestep) == (1.0, 1000.0)
    assert finding(guard).per_step[0] == (pytest.approx(float((cond - uncond).norm()), rel=1e-5),)


def test_skip_layer_guidance_is_not_taken_for_a_step():
    pipe = tiny.sd3()
    settings = {"skip_guidance_layers": [0], "skip_layer_guidance_stop": 1.0, "skip_layer_guidance_start": 0.0}
    calls = spied(pipe, prompt="a red fox", **settings)
    pairs = [prediction.chunk(2) for _, prediction in calls if len(prediction) == 2]
    assert len(calls) > len(pairs) > 2
    for reference in ("negative", "empty"):
        guard = Guard(steps=3, reference=reference)
        generate(pipe, guard, prompt="a red fox", **settings)
        expected = [float((cond - uncond).norm()) for uncond, cond in pairs[:3]]
        assert [row[0] for row in finding(guard).per_step] == pytest.approx(expected, rel=1e-5)
        assert guard.report.extra_rows == 0


FLUX = {"prompt": "a red fox", "height": 32, "width": 64, "max_sequence_length": 16}


def test_flux_predicts_both_prompts_in_two_calls():
    pipe = tiny.flux()
    settings = {**FLUX, "negative_prompt": "ugly cat", "true_cfg_scale": 4.0, "num_images_per_prompt": 2}
    calls = spied(pipe, **settings)
    guard = Guard(steps=2)
    assert torch.equal(generate(pipe, **settings), generate(pipe, guard, **settings))
    assert guard.report.family == "flux" and guard.report.cfg == 4.0
    expected = [(calls[i][1] - calls[i + 1][1]).flatten(1).norm(dim=1).tolist() for i in (0, 2)]
    assert finding(guard).per_step[0] == pytest.approx(expected[0], rel=1e-5)
    assert finding(guard).per_step[1] == pytest.approx(expected[1], rel=1e-5)
    # 32 x 64 pixels, half of that per latent in this tiny autoencoder; packed tokens are unpacked again
    gap = (calls[2][1] - calls[3][1]).reshape(2, 8, 16, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 4, 16, 32)
    assert torch.allclose(guard.report.noise_gap_map, gap.pow(2).mean(1), rtol=1e-4)


def test_flux_with_built_in_guidance_says_so_and_can_spend_a_row():
    pipe = tiny.flux(guidance_embeds=True)
    guard = Guard()
    generate(pipe, guard, **FLUX)
    assert finding(guard).status.startswith("guidance is built into the model")
    spending = Guard(reference="empty")
    assert torch.equal(generate(pipe, **FLUX), generate(pipe, spending, **FLUX))
    cond = spied(pipe, **FLUX)[0][1]
    empty = spied(pipe, **{**FLUX, "prompt": ""})[0][1]
    assert spending.report.extra_rows == 1
    assert finding(spending).scores == (pytest.approx(float((cond - empty).norm()), rel=1e-4),)
