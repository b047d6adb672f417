"""Token attributions in the real ComfyUI, in inference mode as inside a node, against computations without autograd."""

import comfy.sd1_clip
import pytest
import torch

from memguard_pack.memguard import Guard
from memguard_pack.memguard.hosts.comfyui import explaining, preflight, tokens, weighing
from memguard_pack.memguard.hosts.inference import differentiable
from memguard_pack.tests.hosts.comfyui import tiny

PROMPT = "a red fox on the roof"
NO_NEGATIVE = ""


class Clip:
    """ComfyUI's own tokenizer and text model, the model with random weights and of the width of a tiny network."""

    def __init__(self, kind="sd15", embeddings=None):
        width = tiny.WIDTH[kind]
        config = {
            "num_hidden_layers": 2,
            "hidden_size": width,
            "num_attention_heads": 2,
            "intermediate_size": width,
            "hidden_act": "quick_gelu",
            "eos_token_id": 49407,
            "max_position_embeddings": 77,
            "vocab_size": 49408,
        }
        torch.manual_seed(0)
        self.tokenizer = comfy.sd1_clip.SD1Tokenizer(embedding_directory=embeddings)
        self.tokenizer.clip_l.embedding_size = width
        self.cond_stage_model = comfy.sd1_clip.SD1ClipModel(
            device="cpu",
            clip_model=comfy.sd1_clip.SDClipModel,
            textmodel_json_config=config,
            layer_norm_hidden_state=False,
        )
        for weight in self.cond_stage_model.parameters():
            weight.copy_(torch.randn(weight.shape) * (0.3 if weight.ndim > 1 else 0.05))
        self.pooled = torch.randn(width, tiny.POOLED[kind]) if kind in tiny.POOLED else None

    def load_model(self):
        pass

    def tokenize(self, text, return_word_ids=False, **_):
        return self.tokenizer.tokenize_with_weights(text, return_word_ids)

    def encode_from_tokens(self, tokens, return_pooled=False, return_dict=False):
        cond, pooled = self.cond_stage_model.encode_token_weights(tokens)
        if self.pooled is not None:
            pooled = pooled @ self.pooled
        return {"cond": cond, "pooled_output": pooled}

    def encode_from_tokens_scheduled(self, tokens):
        found = self.encode_from_tokens(tokens)
        return [[found.pop("cond"), found]]


@pytest.fixture
def parts():
    """A function that returns a model, a CLIP and a negative prompt as a node gets them: inference tensors."""

    def build(kind="sd15", **settings):
        with torch.inference_mode():
            clip = Clip(kind, **settings)
            return tiny.build(kind), clip, clip.encode_from_tokens_scheduled(clip.tokenize(NO_NEGATIVE))

    return build


def explain(model, clip, negative, text=PROMPT, kind="sd15", batch=1, **settings):
    with torch.inference_mode():
        return explaining.explain(model, clip, text, negative, {"samples": tiny.latent(kind, batch)}, 11, **settings)


def score(model, positive, negative, kind="sd15", batch=1):
    with torch.inference_mode():
        report = preflight.check(Guard(), model, positive, negative, {"samples": tiny.latent(kind, batch)}, [11])
    return report.findings[0].score


def encode(clip, text=PROMPT):
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3", "flux"])
def test_the_gradient_is_the_finite_difference_of_the_check(kind, parts):
    model, clip, negative = parts(kind)
    found = explain(model, clip, negative, kind=kind, respect_to="encoded")
    assert found.status == "ok" and [word for word, _ in found.words] == PROMPT.split()
    (cond, extra) = encode(clip)[0]
    assert found.score == pytest.approx(score(model, [[cond, extra]], negative, kind), rel=1e-5)
    # along the unit vector of steepest ascent of one word, the slope is its significance; a bound on every other
    column, h = found.spans[2].columns[0], 0.02
    slopes = []
    for axis in range(cond.shape[-1]):
        ends = []
        for sign in (1, -1):
            with torch.inference_mode():
                moved = cond.clone()
                moved[0, column, axis] += sign * h
            ends.append(score(model, [[moved, extra]], negative, kind))
        slopes.append((ends[0] - ends[1]) / (2 * h))
    assert found.weights[2] == pytest.approx(float(torch.tensor(slopes).norm()), rel=0.02)
    assert ("pooled" in found.groups) == (kind != "sd15")


def test_the_input_gradient_is_the_finite_difference_through_the_text_encoder(parts):
    model, clip, negative = parts()
    found = explain(model, clip, negative)
    layer = clip.cond_stage_model.clip_l.transformer.get_input_embeddings()
    column, h, slopes = found.spans[2].columns[0], 0.02, []
    for axis in range(tiny.WIDTH["sd15"]):
        ends = []
        for sign in (1, -1):

            def move(_module, _inputs, output, sign=sign, axis=axis):
                output = output.clone()
                output[0, column, axis] += sign * h
                return output

            handle = layer.register_forward_hook(move)
            ends.append(score(model, encode(clip), negative))
            handle.remove()
        slopes.append((ends[0] - ends[1]) / (2 * h))
    assert found.weights[2] == pytest.approx(float(torch.tensor(slopes).norm()), rel=0.02)


def test_the_effect_of_a_word_is_the_difference_of_two_checks(parts):
    model, clip, negative = parts()
    found = explain(model, clip, negative, method="ablation", batch=2)
    whole = score(model, encode(clip), negative, batch=2)
    without = score(model, encode(clip, "a red on the roof"), negative, batch=2)
    assert dict(found.words)["fox"] == pytest.approx(whole - without, abs=1e-4 * whole)


def test_images_of_a_batch_are_averaged(parts):
    model, clip, negative = parts()
    one = explain(model, clip, negative, batch=1, respect_to="encoded")
    two = explain(model, clip, negative, batch=2, respect_to="encoded")
    assert len(one.weights) == len(two.weights) and one.weights != pytest.approx(two.weights, rel=1e-4)


def test_nothing_is_left_behind(parts):
    model, clip, negative = parts()
    before = negative[0][0].clone()
    network = model.model.diffusion_model
    explain(model, clip, negative)
    assert torch.equal(before, negative[0][0])
    for module in (network, clip.cond_stage_model):
        assert all(weight.is_inference() for weight in module.parameters())
        assert not any("forward" in part.__dict__ or part._forward_hooks for part in module.modules())
    with pytest.raises(RuntimeError, match="broken"), differentiable(network):
        raise RuntimeError("broken")
    assert all(weight.is_inference() for weight in network.parameters())


def test_a_guard_on_the_model_sees_no_run(parts, watch):
    model, clip, negative = parts()
    watched, made = watch(model)
    assert explain(watched, clip, negative).weights == explain(model, clip, negative).weights
    assert made.guard.report is None


def test_memory_that_runs_out_falls_back_to_ablation_and_says_so(parts, monkeypatch):
    def poor(*_):
        raise torch.OutOfMemoryError

    model, clip, negative = parts()
    monkeypatch.setattr(weighing.gradient, "prompt_gradient", poor)
    found = explain(model, clip, negative)
    assert (found.method, found.notes) == ("ablation", ("no gradient (not enough memory); ablation stood in",))
    assert found.weights == pytest.approx(explain(model, clip, negative, method="ablation").weights)


def test_weights_embeddings_and_chunks_have_their_columns(tmp_path, parts):
    import safetensors.torch

    safetensors.torch.save_file({"emb_params": torch.ones(2, tiny.WIDTH["sd15"])}, tmp_path / "cat.safetensors")
    model, clip, negative = parts(embeddings=str(tmp_path))
    text = "a (red fox:1.3), embedding:cat hat"
    found = explain(model, clip, negative, text)
    assert [(s.text, s.columns, s.emphasis) for s in found.spans if s.group == "word"] == [
        ("a", (1,), 1.0),
        ("red", (2,), 1.3),
        ("fox", (3,), 1.3),
        (",", (4,), 1.0),
        ("embedding:cat", (5, 6), 1.0),
        ("hat", (7,), 1.0),
    ]
    assert found.notes == (weighing.NO_INPUT,)
    assert [text[slice(*s.place)] for s in found.spans if s.place] == ["a", "red", "fox", ",", "embedding:cat", "hat"]

    long = explain(model, clip, negative, "fox " * 160)
    fox = [span.columns for span in long.spans if span.group == "word"]
    assert [c for columns in fox for c in columns] == [*range(1, 76), *range(78, 153), *range(155, 165)]
    groups = {span.group: span.columns for span in long.spans if span.group != "word"}
    assert (groups["bos"], groups["eos"]) == ((0, 77, 154), (76, 153, 165))
    assert groups["padding"] == tuple(range(166, 231))
    assert len(long.token_scores) == 231 and min(long.weights) > 0


def test_both_encoders_of_sdxl_share_their_columns():
    class Pair:
        clip_l, clip_g = comfy.sd1_clip.SDTokenizer(), comfy.sd1_clip.SDTokenizer(pad_with_end=False)

    class Sdxl:
        tokenizer = Pair

        def tokenize(self, text, return_word_ids=False):
            each = {"g": Pair.clip_g, "l": Pair.clip_l}
            return {key: one.tokenize_with_weights(text, return_word_ids) for key, one in each.items()}

    (part,) = tokens.columns(Sdxl(), "red fox")
    assert [(t.column, t.text) for t in part if t.group == "word"] == [(1, "red"), (2, "fox")]
    assert [name for name, _, _ in tokens.encoders(Sdxl(), "red fox")] == ["clip_l", "clip_g"]


def test_an_empty_text_is_named(parts):
    with pytest.raises(ValueError, match="^text is empty; give the prompt to explain$"):
        explain(*parts(), text=" ")
