"""What edits do inside ComfyUI's cross-attention, compared with an explicit softmax over the layer's own weights."""

import comfy.ldm.modules.attention as backends
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper

from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.scene import LAYER, Scene, encode, made
from memguard_pack.tests.hosts.comfyui.test_comfyui_attention import BACKENDS
from memguard_pack.tests.hosts.comfyui.test_comfyui_scenarios import limited, patched

C1 = 1.25
LONG = "a red fox on the roof of a house by the sea " * 14  # three chunks


@pytest.fixture
def scene(monkeypatch):
    return lambda **settings: Scene(monkeypatch, **settings)


class Seen:
    """What went in and out of one cross-attention layer of a network; of a replaced one only what came out."""

    def __init__(self, model, path="input_blocks.1.1"):
        self.layer = model.model.diffusion_model.get_submodule(f"{path}.transformer_blocks.0.attn2")
        self.calls = []

    def __enter__(self):
        now = {}
        pairs = (("q", self.layer.to_q), ("k", self.layer.to_k), ("v", self.layer.to_v))
        self._handles = [
            part.register_forward_hook(
                lambda _m, ins, out, n=name: now.update({n: out.clone(), f"{n} of": ins[0].clone()})
            )
            for name, part in pairs
        ]
        out = self.layer.to_out[0].register_forward_pre_hook(
            lambda _m, ins: self.calls.append({**now, "out": ins[0].clone()})
        )
        self._handles.append(out)
        return self

    def __exit__(self, *_):
        for handle in self._handles:
            handle.remove()


def explicit(q, k, v, heads, factor, keep, bias=None):
    """Return attention term by term: logits times a factor [B, tokens], and keys that do not take part."""
    rows = []
    for row in range(len(q)):
        made = []
        for a, b, c in zip(q[row].chunk(heads, -1), k[row].chunk(heads, -1), v[row].chunk(heads, -1), strict=True):
            logits = (a.float() @ b.float().T) / a.shape[-1] ** 0.5 * factor[row]
            if bias is not None:
                logits = logits + bias(logits) if bias.rows[row] else logits
            weights = logits.masked_fill(~keep[row], -torch.inf).softmax(-1)
            made.append(weights @ c.float())
        rows.append(torch.cat(made, -1))
    return torch.stack(rows)


def of_prompt(call, vectors):
    """Return which rows of a call have this prompt, repeated or not."""
    context = call["k of"]
    copies, rest = divmod(context.shape[1], vectors.shape[1])
    whole = vectors.repeat(1, copies, 1)
    return torch.tensor([not rest and torch.allclose(row, whole[0].to(row), atol=1e-3) for row in context])


def scaled(call, heads, parts):
    """Return the output under attention scaling: ``parts`` are (vectors, columns of BOS, columns of padding)."""
    rows, tokens = call["k"].shape[:2]
    factor, keep = torch.ones(rows, tokens), torch.ones(rows, tokens, dtype=torch.bool)
    found = torch.zeros(rows, dtype=torch.bool)
    for vectors, bos, padding in parts:
        here = of_prompt(call, vectors)
        found |= here
        length = vectors.shape[1]
        for copy in range(tokens // length):
            for row in here.nonzero().flatten():
                factor[row, [b + copy * length for b in bos]] = C1
                keep[row, [p + copy * length for p in padding]] = False
    return explicit(call["q"], call["k"], call["v"], heads, factor, keep), found


SHORT = ([0], range(8, 77))  # BOS, six words, EOS, padding


@pytest.mark.parametrize("where", ["input_blocks.1.1", "middle_block.1", "output_blocks.2.1"])
def test_scaling_and_masking_are_right_in_a_batch_that_is_not_square(where, scene):
    here = scene()
    with Seen(here.model, where) as seen:
        here.sample(here.treated(made("attention_scaling")), image=torch.zeros((3, 4, 8, 12)))
    for call in seen.calls:
        expected, rows = scaled(call, seen.layer.heads, [(here.positive[0][0], *SHORT)])
        assert rows.tolist() == [False] * 3 + [True] * 3
        assert torch.allclose(call["out"], expected, atol=1e-5)
    assert len(seen.calls) == 3


def test_a_prompt_of_three_chunks(scene):
    here = scene(texts=(LONG,))
    long = encode(here.clip, LONG)
    assert long[0][0].shape[1] == 231
    with Seen(here.model) as seen:
        here.sample(here.treated(made("attention_scaling")), positive=long, image=torch.zeros((3, 4, 8, 12)))
    words = 12 * 14
    # ComfyUI fills a chunk before it opens the next: 75 + 75 + 18 words, then EOS and padding
    ends = range(2 * 77 + 1 + (words - 150) + 1, 231)
    expected, rows = scaled(seen.calls[0], seen.layer.heads, [(long[0][0], [0, 77, 154], ends)])
    assert rows.sum() == 3 and torch.allclose(seen.calls[0]["out"], expected, atol=1e-5)
    assert seen.calls[0]["k"].shape == (6, 231, 32)  # the negative prompt of 77 is repeated three times


def test_a_prompt_that_is_repeated_to_the_length_of_the_other(scene):
    here = scene()
    with Seen(here.model) as seen:
        here.sample(here.treated(made("attention_scaling")), negative=encode(here.clip, LONG))
    call = seen.calls[0]
    assert call["k"].shape[1] == 231
    expected, rows = scaled(call, seen.layer.heads, [(here.positive[0][0], *SHORT)])
    assert rows.sum() == 1 and torch.allclose(call["out"], expected, atol=1e-5)


def test_every_part_of_a_combined_prompt_has_its_own_tokens(scene):
    other = "blue whale"
    here = scene(texts=("a red fox on the roof", other))
    second = encode(here.clip, other)
    both = limited(here.positive, area=(8, 4, 0, 0), strength=1.0) + limited(second, area=(8, 4, 0, 4), strength=1.0)
    with Seen(here.model) as seen:
        here.sample(here.treated(made("attention_scaling")), positive=both)
    prompts = [(here.positive[0][0], *SHORT), (second[0][0], [0], range(4, 77))]
    changed = 0
    for call in seen.calls:
        expected, rows = scaled(call, seen.layer.heads, prompts)
        changed += int(rows.sum())
        assert torch.allclose(call["out"], expected, atol=1e-5)
    assert changed == 2 * 3


def test_neurons_are_zero_on_the_rows_of_the_prompt_only(scene):
    here = scene()
    with Seen(here.model) as seen:
        here.sample(here.treated(made("neuron_mask"), clip=False), image=tiny.latent(batch=2))
    call = seen.calls[0]
    rows = of_prompt(call, here.positive[0][0])
    v = call["v"].clone()
    v[rows.nonzero(), :, torch.tensor([0, 3, 5])] = 0
    ones = torch.ones(call["k"].shape[:2])
    expected = explicit(call["q"], call["k"], v, seen.layer.heads, ones, ones.bool())
    assert rows.tolist() == [False, False, True, True] and torch.allclose(call["out"], expected, atol=1e-5)
    with Seen(here.model, "middle_block.1") as seen:
        here.sample(here.treated(made("neuron_mask")))
    call = seen.calls[0]
    plain = explicit(call["q"], call["k"], call["v"], seen.layer.heads, ones[:2], ones[:2].bool())
    assert torch.allclose(call["out"], plain, atol=1e-5)


def attenuated(call, heads, rows, alpha=0.3, tau=0.01):
    """Return attention with the positive logits of spikes multiplied, from the words of the paper."""
    made = []
    for row in range(len(call["q"])):
        parts = []
        chunks = (call[name][row].chunk(heads, -1) for name in "qkv")
        for a, b, c in zip(*chunks, strict=True):
            logits = a @ b.T / a.shape[-1] ** 0.5
            if rows[row]:
                highest = logits.amax(0)
                rest = highest[1:]  # without BOS
                spikes = (highest - rest.mean()) / (rest.std() + 1e-6) > tau
                spikes[0] = False
                logits = torch.where(spikes & (logits > 0), logits * alpha, logits)
            parts.append(logits.softmax(-1) @ c)
        made.append(torch.cat(parts, -1))
    return torch.stack(made)


@pytest.mark.parametrize("backend", BACKENDS)
def test_spikes_are_attenuated_whatever_computes_attention(backend, scene):
    here = scene()
    calls = []

    def override(func, *args, **kwargs):
        calls.append(backend)
        return getattr(backends, backend)(*args, **{k: v for k, v in kwargs.items() if k != "transformer_options"})

    model = here.treated(made("spike_attenuation"))  # the override of another node comes after ours
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    with Seen(here.model) as seen:
        here.sample(model, image=tiny.latent(batch=2))
    call = seen.calls[0]
    rows = of_prompt(call, here.positive[0][0])
    assert calls and torch.allclose(call["out"], attenuated(call, seen.layer.heads, rows), atol=1e-5)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["attention_scaling", "spike_attenuation"])
def test_a_replaced_block_is_called_with_what_was_edited(name, when, scene):
    here, calls = scene(), []

    def replace(q, k, v, extra_options):  # as IPAdapter: the text's attention and something beside it, by role
        calls.append((len(q), list(extra_options["cond_or_uncond"])))
        beside = torch.tensor([[1.0, 2.0][i] for i in extra_options["cond_or_uncond"]])
        beside = beside.repeat_interleave(len(q) // len(beside)).reshape(-1, 1, 1)
        return backends.optimized_attention(q, k, v, extra_options["n_heads"]) + beside

    model = here.model.clone()
    if when == "before":
        model.set_model_attn2_replace(replace, "input", 1)
    model = here.treated(made(name), model=model)
    if when == "after":
        model.set_model_attn2_replace(replace, "input", 1)
    with Seen(here.model) as seen:
        here.sample(model, image=tiny.latent(batch=2))
    call = seen.calls[0]
    rows = of_prompt(call, here.positive[0][0])
    if name == "attention_scaling":
        expected, _ = scaled(call, seen.layer.heads, [(here.positive[0][0], *SHORT)])
        assert calls[:2] in ([(2, [0]), (2, [1])], [(2, [1]), (2, [0])])
    else:
        expected = attenuated(call, seen.layer.heads, rows)
    beside = torch.where(rows, 1.0, 2.0).reshape(-1, 1, 1)
    assert torch.allclose(call["out"], expected + beside, atol=1e-5)


def test_two_nodes_in_a_row_edit_together(scene):
    here = scene()
    model = here.treated(made("neuron_mask"), model=here.treated(made("attention_scaling")))
    with Seen(here.model) as seen:
        here.sample(model)
    call = seen.calls[0]
    call["v"] = call["v"].clone()
    call["v"][of_prompt(call, here.positive[0][0]).nonzero(), :, torch.tensor([0, 3, 5])] = 0
    expected, _ = scaled(call, seen.layer.heads, [(here.positive[0][0], *SHORT)])
    assert torch.allclose(call["out"], expected, atol=1e-5)


def test_a_node_that_changes_the_rows_inside_is_left_alone_and_named(scene):
    """As regional prompts do it: rows are added before the attention and merged behind it."""
    here = scene()

    def more(n, context, value, extra_options):
        return torch.cat([n, n[-1:]]), torch.cat([context, context[-1:]]), torch.cat([value, value[-1:]])

    def less(n, extra_options):
        return n[:-1]

    model = here.model.clone()
    model.set_model_attn2_patch(more)
    model.set_model_attn2_output_patch(less)
    plain = here.sample(model)
    watched, watcher = here.watched(made("attention_scaling"), model=model)
    seen = here.sample(watched)
    assert torch.equal(plain, seen)
    report = watcher.report_of(seen)
    assert (
        "cross-attention was left alone in 7 layers: another node, or the model itself, changes its rows or columns"
        in report.notes
    )


def test_a_layer_that_another_node_computes_by_itself_is_left_alone(scene, monkeypatch):
    """Its mark must not be taken by the self-attention that comes next, which has as many keys here."""
    here = scene(texts=("a red fox on the roof",))
    layer = here.model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn2
    monkeypatch.setattr(layer, "forward", lambda x, **_: x * 0.5)
    short = [[here.positive[0][0][:, :64], {}]]  # as many columns as an 8 x 8 latent has positions
    watched, watcher = here.watched(made("neuron_mask"), clip=False)
    seen = here.sample(watched, positive=short, negative=[[here.negative[0][0][:, :64], {}]])
    report = watcher.report_of(seen)
    assert any("left alone in 1 layers" in note for note in report.notes)
    plain = here.sample(positive=short, negative=[[here.negative[0][0][:, :64], {}]])
    assert torch.equal(seen, plain)


def test_columns_that_another_node_appends_are_left_alone(scene):
    here = scene()

    def append(n, context, value, extra_options):
        return n, torch.cat([context, context[:, :4]], 1), torch.cat([value, value[:, :4]], 1)

    model = here.model.clone()
    model.set_model_attn2_patch(append)
    watched, watcher = here.watched(made("attention_scaling"), model=model)
    seen = here.sample(watched)
    assert torch.equal(here.sample(model), seen)
    assert any("7 layers" in note for note in watcher.report_of(seen).notes)


def test_a_lora_counts_and_stays(scene):
    here = scene()
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_v.weight"
    model = here.treated(made("attention_scaling"), model=patched(here.model, key))
    with Seen(here.model) as seen:
        here.sample(model)
    expected, _ = scaled(seen.calls[0], seen.layer.heads, [(here.positive[0][0], *SHORT)])
    assert torch.allclose(seen.calls[0]["out"], expected, atol=1e-5)
    assert model.patches.keys() == {key}


@pytest.mark.parametrize("gated", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_compiled_network_runs_as_it_is_and_says_so(gated, scene, watch):
    here = scene()
    torch._dynamo.reset()
    expected = here.sample(here.treated(made("spike_attenuation")))
    compiled = here.model.clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    if gated:
        watched, watcher = here.watched(made("spike_attenuation"), model=compiled)
    else:
        watched, watcher = watch(here.treated(made("spike_attenuation"), model=compiled))
    seen = here.sample(watched)
    assert torch.allclose(seen, expected, atol=1e-4)
    notes = " ".join(watcher.report_of(seen).notes)
    assert "the network ran as it is and not as compiled, so that the edits of its attention act" in notes


def test_layers_have_the_place_that_comfyui_gives_them(scene):
    here, places = scene(), {}

    def note(n, context, value, extra_options):
        places[extra_options["block"][0], extra_options["block"][1], extra_options["block_index"]] = None
        return n, context, value

    from memguard_pack.memguard.hosts.comfyui.edits import Editor

    class Guider:
        inner_model = here.model.model

    model = here.model.clone()
    model.set_model_attn2_patch(note)
    here.sample(model)
    editor = Editor(Guider, lambda cond: None, print)
    assert set(editor.layers) == set(places) and editor.layers["input", 1, 0] == LAYER
    assert editor.widths[LAYER] == 32 and len(editor.widths) == 7
