"""The test bed on a GPU: half precision, offload and compilation change no picture and keep what the CPU measures."""

import json
from statistics import median

import pytest
import torch

import memguard
from memguard import Guard, testbed
from memguard.cli import main
from memguard.mitigations import available, get
from tests.hosts import tiny
from tests.hosts.test_diffusers_mitigation import NEEDS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

COPIED, ORDINARY = testbed.originals()[0].caption, testbed.prompts("held")[0]
DETECTORS = ("text_noise_norm", "attention_entropy")
# relative, to float32 on the CPU
NEAR = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 4e-2}
# that keeps a network of the pipeline elsewhere until it is called
OFFLOADS = ("enable_model_cpu_offload", "enable_sequential_cpu_offload")


def bed(dtype="float32", device="cuda"):
    return testbed.pipeline().to(device, getattr(torch, dtype))


def draw(pipe, guard=None, prompt=COPIED, **changes):
    """The latents of four steps from the same noise everywhere: a pipeline draws other noise in another format."""
    if "generator" not in changes:
        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
        changes["latents"] = noise.to(pipe.unet.dtype)
    settings = {"num_inference_steps": 4, "output_type": "latent", **changes}
    if guard is None:
        return pipe(prompt, **settings).images
    with guard.attach(pipe):
        return pipe(prompt, **settings).images


@pytest.fixture(scope="module")
def expected():
    """Scores on the CPU in float32."""
    pipe, found = bed(device="cpu"), {}
    for prompt in (COPIED, ORDINARY):
        guard = Guard(DETECTORS)
        draw(pipe, guard, prompt)
        found[prompt] = guard.report.findings[0].scores
    return found


@pytest.mark.parametrize("dtype", NEAR)
def test_watching_changes_nothing_and_the_score_is_that_of_the_cpu(expected, dtype):
    pipe = bed(dtype)
    for prompt in (COPIED, ORDINARY):
        guard = Guard(DETECTORS)
        assert torch.equal(draw(pipe, guard, prompt), draw(pipe, prompt=prompt))
        finding = guard.report.findings[0]
        assert finding.status == "ok"
        assert finding.scores == pytest.approx(expected[prompt], rel=NEAR[dtype])


def test_noise_of_the_gpu_s_own_generator_stays_what_it_was():
    pipe = bed("float16")
    draws = []
    for guard in (None, Guard(DETECTORS, reference="empty")):
        generator = torch.Generator("cuda").manual_seed(5)
        torch.cuda.manual_seed(6)
        latents = draw(pipe, guard, generator=generator, negative_prompt="ugly")
        draws.append((latents, torch.rand(4, device="cuda"), torch.rand(4, device="cuda", generator=generator)))
    assert all(map(torch.equal, *draws))


@pytest.mark.parametrize("offload", OFFLOADS)
class TestOffload:
    @pytest.fixture
    def pipe(self, offload):
        pytest.importorskip("accelerate")
        pipe = testbed.pipeline()
        getattr(pipe, offload)()
        return pipe

    def test_watching_changes_nothing_and_the_score_is_that_of_the_cpu(self, expected, pipe):
        guard = Guard(DETECTORS, reference="empty")
        assert torch.equal(draw(pipe, guard, negative_prompt="ugly"), draw(pipe, negative_prompt="ugly"))
        assert guard.report.findings[0].scores == pytest.approx(expected[COPIED], rel=NEAR["float32"])

    @pytest.mark.parametrize("method", ["gradient", "ablation", "attention"])
    def test_the_weights_of_words_are_those_of_the_cpu(self, pipe, method):
        there = memguard.explain(pipe, COPIED, method, num_inference_steps=4)
        here = memguard.explain(bed(device="cpu"), COPIED, method, num_inference_steps=4)
        assert there.status == here.status == "ok" and there.method == here.method
        assert there.weights == pytest.approx(here.weights, rel=1e-2, abs=1e-3)

    def test_two_text_encoders_one_after_the_other(self, offload):
        pipe = tiny.sdxl()
        before = memguard.explain(pipe, "a red fox", num_inference_steps=4)
        getattr(pipe, offload)()
        after = memguard.explain(pipe, "a red fox", num_inference_steps=4)
        assert after.status == before.status == "ok" and after.notes == before.notes
        assert after.weights == pytest.approx(before.weights, rel=1e-2, abs=1e-3)

    @pytest.mark.parametrize("name", [name for name in available() if name != "neuron_mask"])
    def test_every_mitigation_changes_the_picture_and_leaves_nothing_behind(self, pipe, name):
        changes_and_leaves_nothing(pipe, name)


def test_a_compiled_network(expected):
    pipe = bed()
    pipe.unet.compile()
    guard = Guard(("text_noise_norm",))
    assert torch.equal(draw(pipe, guard), draw(pipe))
    assert guard.report.findings[0].scores == pytest.approx(expected[COPIED], rel=NEAR["float32"])


@pytest.mark.parametrize("method", ["gradient", "ablation", "attention"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_heaviest_word_is_that_of_the_cpu(method, dtype):
    settings = {"num_inference_steps": 4}
    there = memguard.explain(bed(dtype), COPIED, method, **settings)
    here = memguard.explain(bed(device="cpu"), COPIED, method, **settings)
    assert there.status == here.status == "ok"
    heaviest = [max(range(len(each.weights)), key=each.weights.__getitem__) for each in (there, here)]
    assert heaviest[0] == heaviest[1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in available() if name != "neuron_mask"])
def test_every_mitigation_changes_the_picture_and_leaves_nothing_behind(name, dtype):
    changes_and_leaves_nothing(bed(dtype), name)


def changes_and_leaves_nothing(pipe, name):
    plain = draw(pipe)
    changed = draw(pipe, get(name, **NEEDS.get(name, {})))
    assert torch.isfinite(changed).all()
    assert not torch.equal(changed, plain)
    assert torch.equal(draw(pipe), plain)


def test_a_scan_scores_as_on_the_cpu_and_in_half_precision_tells_copies_from_others(tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join([each.caption for each in testbed.originals()[:8]] + testbed.prompts("held")[:8]))

    def scores(device, dtype):
        out = tmp_path / f"{device} {dtype}.jsonl"
        words = ("scan", prompts, "--model", "testbed", "--device", device, "--dtype", dtype, "--out", out)
        assert main([str(word) for word in words]) == 0, capsys.readouterr().err
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        return [row["findings"][0]["scores"][0] for row in rows]

    assert scores("cuda", "float32") == pytest.approx(scores("cpu", "float32"), rel=NEAR["float32"])
    half = scores("cuda", "auto")
    assert median(half[:8]) > 2 * median(half[8:])
