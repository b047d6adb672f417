"""Cross-attention that is found by structure against softmax of what torch itself is called with, family by family."""

import math
from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional

import memguard
from memguard import Guard
from memguard.hosts.diffusers.attention import reading
from tests.hosts import tiny, tiny_crossed
from tests.hosts.breaking import broken, functions

E, D = "attention_entropy", "attention_entropy_late"
PROMPT = "a red fox"
WORDS = 3
# family -> its layers, in the order of execution, and how many of the model's calls make a step
FAMILIES = {
    "pixart": ("transformer_blocks.{}.attn2", 1),
    "sana": ("transformer_blocks.{}.attn2", 1),
    "ltx": ("transformer_blocks.{}.attn2", 1),
    "wan": ("blocks.{}.attn2", 2),
    "latte": ("transformer_blocks.{}.attn2", 1),
    "allegro": ("transformer_blocks.{}.attn2", 1),  # its rows are told by what the scheduler receives
}

MODULES = ("attended", "ids", "lineage", "masses", "projected", "structure")
# what stands around the hooks and is no hook itself
STAND = "Structure._call Structure._layer Structure._attention _Tap.__init__ _Tap.__torch_function__".split()
STAND += "Lineage.__torch_function__ Reading.guarded".split()


def layers(family):
    return [FAMILIES[family][0].format(number) for number in range(2)]


def run(pipe, family, guard=None, **changes):
    given = {"prompt": PROMPT, "negative_prompt": "ugly", "num_inference_steps": 2, "output_type": "latent"}
    given |= tiny_crossed.CALLS[family] | changes
    given["generator"] = torch.Generator("cpu").manual_seed(3)
    if guard is None:
        return pipe(**given)[0]
    with guard.attach(pipe):
        return pipe(**given)[0]


@contextmanager
def recording(module, names, near=1e-5):
    """Collect, per call of the denoiser, the probabilities of some layers from what torch's own function gets."""
    plain, calls, inside, handles = functional.scaled_dot_product_attention, [], [], []

    def attention(query, key, value, attn_mask=None, *args, scale=None, **kwargs):
        made = plain(query, key, value, attn_mask, *args, scale=scale, **kwargs)
        if inside:
            logits = query.double() @ key.double().transpose(-1, -2)
            logits *= scale or query.shape[-1] ** -0.5
            if attn_mask is not None and attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros(attn_mask.shape).masked_fill(~attn_mask, -math.inf)
            found = (logits if attn_mask is None else logits + attn_mask).softmax(-1)
            assert torch.allclose((found @ value.double()).float(), made.float(), atol=near)
            calls[-1][inside[-1]] = found.mean((1, 2))  # heads and positions
        return made

    handles.append(module.register_forward_pre_hook(lambda *_: calls.append({})))
    for name in names:
        layer = module.get_submodule(name)
        handles.append(layer.register_forward_pre_hook(lambda *_, name=name: inside.append(name)))
        handles.append(layer.register_forward_hook(lambda *_: inside.pop() and None))
    functional.scaled_dot_product_attention = attention
    try:
        yield calls
    finally:
        functional.scaled_dot_product_attention = plain
        for handle in handles:
            handle.remove()


def prompt_masses(family, call, rows=1):
    """Return layer -> the masses of the prompt's rows, [rows, tokens]; both prompts are in one call, or one is."""
    halves = 1 if FAMILIES[family][1] == 2 else 2
    return {name: p.unflatten(0, (halves, rows, -1)).mean(2)[-1] for name, p in call.items()}


def h(p):
    return torch.special.entr(p).sum(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_masses_are_those_of_torch_and_nothing_is_touched(family):
    pipe = getattr(tiny_crossed, family)()
    rows = []
    pipe.transformer.register_forward_pre_hook(lambda *_: rows.append(1))
    with recording(pipe.transformer, layers(family)) as calls:
        plain = run(pipe, family)
    count, hooks = len(rows), [len(m._forward_hooks) for m in pipe.transformer.modules()]
    guard = Guard(detectors=["text_noise_norm", E])
    assert torch.equal(run(pipe, family, guard), plain)
    norm, found = guard.report.findings
    first = prompt_masses(family, calls[0])  # Wan predicts with the prompt first
    assert list(first) == layers(family)
    assert found.scores == pytest.approx(h(first[layers(family)[-1]]).tolist(), rel=1e-5)
    assert norm.scores and guard.report.extra_rows == 0 and len(rows) == 2 * count
    assert [len(m._forward_hooks) for m in pipe.transformer.modules()] == hooks
    assert not any("forward" in vars(module) for module in pipe.transformer.modules())


@pytest.mark.parametrize("family", ["pixart", "wan"])
def test_late_entropy_is_of_the_steps_calls_with_the_prompt(family):
    pipe = getattr(tiny_crossed, family)()
    with recording(pipe.transformer, layers(family)) as calls:
        plain = run(pipe, family, num_inference_steps=5)
    guard = Guard(detectors=[E, D])
    assert torch.equal(run(pipe, family, guard, num_inference_steps=5), plain)
    first, last = (
        torch.stack(list(prompt_masses(family, calls[step * FAMILIES[family][1]]).values())).mean(0) for step in (0, 4)
    )
    summary = torch.arange(first.shape[-1]) >= WORDS
    part = [(torch.special.entr(p) * summary).sum(-1) for p in (first, last)]
    assert guard.report.findings[1].scores == pytest.approx((h(last) + (part[1] - part[0]).abs()).tolist(), rel=1e-4)


@pytest.mark.parametrize("family", ["pixart", "sana", "ltx", "latte"])
def test_columns_that_the_model_masks_have_no_mass(family):
    pipe = getattr(tiny_crossed, family)()
    kept = {}

    def look(module, args, kwargs, output):
        text = kwargs["encoder_hidden_states"]
        kept.update({n: f.probabilities().mean(1) for n, f in read.take(slice(1, 2), text).items()})

    with reading(pipe.transformer) as read:
        handle = pipe.transformer.register_forward_hook(look, with_kwargs=True)
        run(pipe, family, num_inference_steps=1)
        handle.remove()
    assert list(kept) == layers(family)
    for mass in kept.values():
        assert float(mass.sum()) == pytest.approx(1, rel=1e-5)
        assert not mass[:, WORDS:].any() and (mass[:, :WORDS] > 0).all()


def test_several_pictures_of_frames_keep_their_rows():
    pipe = tiny_crossed.latte()
    with recording(pipe.transformer, layers("latte")) as calls:
        run(pipe, "latte", num_images_per_prompt=2)
    guard = Guard(detectors=[E])
    run(pipe, "latte", guard, num_images_per_prompt=2)
    expected = h(prompt_masses("latte", calls[0], rows=2)[layers("latte")[-1]])
    assert guard.report.findings[0].scores == pytest.approx(expected.tolist(), rel=1e-5)


def test_words_and_their_maps_are_of_the_layers():
    pipe = tiny_crossed.pixart()
    found = memguard.explain(pipe, PROMPT, "attention", height=16, width=16, num_inference_steps=2, maps=["word"])
    assert [span.text for span in found.spans] == [*PROMPT.split(), ""] and found.spans[-1].group == "padding"
    assert sum(found.weights[:WORDS]) == pytest.approx(1, rel=1e-5) and found.weights[-1] == 0
    assert list(found.layers) == layers("pixart") and found.maps["word 1"].shape == (8, 8)


def test_a_template_around_the_prompt_has_no_words(caplog):
    found = memguard.explain(tiny_crossed.sana(), PROMPT, "attention", height=32, width=32, num_inference_steps=2)
    assert found.status == "the words cannot be told by their columns: the text encoder reads more than the prompt"


@pytest.mark.parametrize("family", ["sd3", "qwen", "cogvideox"])
def test_joint_attention_is_called_that(family):
    pipe = getattr(tiny, family)()
    text = {}

    def look(module, args, kwargs, output):
        with pytest.raises(Exception, match="prompt and picture share their attention$"):
            read.take(slice(0, 1), kwargs["encoder_hidden_states"])
        text["seen"] = True

    with reading(pipe.transformer) as read:
        handle = pipe.transformer.register_forward_hook(look, with_kwargs=True)
        size = {"height": 16, "width": 16}
        size |= {"width": 32, "num_frames": 9, **tiny_crossed.TOKENS} if family == "cogvideox" else {}
        pipe("a red fox", num_inference_steps=1, output_type="latent", **size)
        handle.remove()
    assert text["seen"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["pixart", "wan"])
def test_half_precision(family, dtype):
    pipe = getattr(tiny_crossed, family)().to(dtype=dtype)
    with recording(pipe.transformer, layers(family), near=0.05) as calls:
        plain = run(pipe, family)
    guard = Guard(detectors=[E])
    assert torch.equal(run(pipe, family, guard), plain)
    first = prompt_masses(family, calls[0])[layers(family)[-1]]
    assert guard.report.findings[0].scores == pytest.approx(h(first).tolist(), rel=1e-3)


def test_broken_numbers_are_called_that():
    pipe = tiny_crossed.pixart()
    pipe.transformer.transformer_blocks[1].attn2.to_q.weight.data.fill_(torch.nan)
    guard = Guard(detectors=[E])
    run(pipe, "pixart", guard)
    assert guard.report.findings[0].status == "the attention of step 0 holds NaN or infinity"


def entropy(pipe, family):
    guard = Guard(detectors=["text_noise_norm", E])
    plain = run(pipe, family)
    assert torch.equal(run(pipe, family, guard), plain) and guard.report.findings[0].scores
    return guard.report.findings[1]


def test_attention_that_torch_does_not_compute_is_called_that():
    class Written:
        """Softmax written out, as a processor of others may do it."""

        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
            return attn.to_out[0]((q @ k.transpose(1, 2)).softmax(-1) @ v)

    pipe = tiny_crossed.pixart()
    own = pipe.transformer.attn_processors
    pipe.transformer.set_attn_processor({n: Written() if "attn2" in n else each for n, each in own.items()})
    found = entropy(pipe, "pixart")
    assert not found.scores and found.status.startswith("MemGuard does not know the attention of PixArt")
    pipe.transformer.set_attn_processor(Written())
    found = entropy(pipe, "pixart")
    assert not found.scores and found.status.endswith("it is computed by another function than torch's own")


def test_what_is_not_the_softmax_has_no_number(monkeypatch):
    from memguard.hosts.diffusers import attended

    pipe, plain = tiny_crossed.pixart(), attended.Attended._softmax
    monkeypatch.setattr(attended.Attended, "_softmax", lambda self, *given: plain(self, *given).roll(1, -1))
    found = entropy(pipe, "pixart")
    assert not found.scores and found.status.endswith("attn2 gives out is not the softmax of its queries and keys")


def test_keys_of_pictures_are_not_the_prompts():
    """Each layer attends to a picture's tokens as well, as an IP-Adapter lets it."""
    pipe = tiny_crossed.pixart()
    picture = torch.randn(2, 5, 24)

    class Beside:
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
            made = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask)
            if encoder_hidden_states is None:
                return made
            return self.inner(attn, hidden_states, picture) + made

    plain = entropy(pipe, "pixart").scores
    inner = pipe.transformer.transformer_blocks[0].attn2.processor
    pipe.transformer.set_attn_processor(Beside(inner))
    with recording(pipe.transformer, layers("pixart")) as calls:
        run(pipe, "pixart")
    assert {name: p.shape[-1] for name, p in calls[0].items()} == dict.fromkeys(layers("pixart"), 5)
    found = entropy(pipe, "pixart")
    assert found.scores != plain and found.scores[0] < math.log(WORDS) + 1e-3  # of the prompt's three words alone


def test_a_compiled_part_has_a_reason():
    pipe = tiny_crossed.pixart()
    pipe.transformer.transformer_blocks[0]._compiled_call_impl = pipe.transformer.transformer_blocks[0]._call_impl
    assert "is compiled" in entropy(pipe, "pixart").status


def test_an_error_of_ours_costs_the_score_alone(monkeypatch):
    from memguard.hosts.diffusers.attended import Attended

    monkeypatch.setattr(Attended, "mass", lambda self: 1 / 0)
    found = entropy(tiny_crossed.pixart(), "pixart")
    assert not found.scores and found.status.startswith("the attention cannot be read: an error inside MemGuard")


def test_each_function_may_break_and_costs_no_picture():
    pipe, guards = tiny_crossed.pixart(), []
    plain = run(pipe, "pixart")

    def watched():
        guards.append(Guard(detectors=["text_noise_norm", E, D]))
        return run(pipe, "pixart", guards[-1])

    whole = watched()
    mine = [n for n in functions("memguard.hosts.diffusers", watched) if n[0].rsplit(".", 1)[-1] in MODULES]
    assert torch.equal(whole, plain) and len(mine) > 15
    for module, name in mine:
        if name in STAND:
            continue
        with broken("memguard.hosts.diffusers", module, name):
            made = watched()
        assert torch.equal(made, plain), name
        assert not any("list index" in finding.status for finding in guards[-1].report.findings), name
        assert not any("forward" in vars(part) for part in pipe.transformer.modules()), name
