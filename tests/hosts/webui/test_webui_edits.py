"""Edits inside a network of the original code's layout, against attention that is written out; no host."""

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from memguard import Guard
from memguard.hosts.webui.edits import Editor
from memguard.hosts.webui.layers import cross_layers
from memguard.hosts.webui.sampling import UNSEEN
from memguard.hosts.webui.session import Session
from memguard.hosts.webui.treated import Again, Treated
from memguard.mitigations.attention_scaling import ScaleAndMask
from memguard.mitigations.base import Treatment
from memguard.mitigations.edit import BOS, EOS, PADDING, WORD, Edit
from memguard.mitigations.neuron_mask import Mask
from memguard.mitigations.spike_attenuation import Attenuate
from memguard.troubles import careful

HEADS, WIDTH, TOKENS = 2, 8, 77
DOWN = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = HEADS
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH))

    def forward(self, x, context=None, value=None, **_):
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context if value is None else value)
        return self.to_out(written_out(q, k, v))


class BasicTransformerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn2 = Attention()


class SpatialTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock()])


class ResBlock(nn.Module):
    pass


class Downsample(nn.Module):
    pass


class Upsample(nn.Module):
    pass


class Network(nn.Module):
    """Two levels, as SD's: attention on the upper one going down, in the middle, and on both going up."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.input_blocks = _blocks(
            [nn.Conv2d(1, 1, 1)], [ResBlock(), SpatialTransformer()], [Downsample()], [ResBlock()]
        )
        self.middle_block = nn.Sequential(ResBlock(), SpatialTransformer(), ResBlock())
        self.output_blocks = _blocks(
            [ResBlock(), SpatialTransformer()],
            [ResBlock(), SpatialTransformer(), Upsample()],
            [ResBlock(), SpatialTransformer()],
        )

    def forward(self, x, timesteps=None, context=None, **named):
        for layer in cross_layers(self).values():
            x = x + layer(x, context=context)
        return x


def _blocks(*parts):
    return nn.ModuleList([nn.Sequential(*part) for part in parts])


def split(t):
    return t.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def written_out(q, k, v, change=lambda logits: logits):
    logits = change(split(q) @ split(k).transpose(-1, -2) * (WIDTH // HEADS) ** -0.5)
    return (logits.softmax(-1) @ split(v)).transpose(1, 2).flatten(2)


@pytest.fixture
def network():
    return Network().eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn((4, 6, WIDTH), generator=generator), torch.randn((4, TOKENS, WIDTH), generator=generator)


def table(rows=2, words=3):
    row = [BOS, *words * [WORD], EOS, *(TOKENS - words - 2) * [PADDING]]
    return torch.tensor(rows * [row], dtype=torch.int8)


def edited(network, edits, x, context, marks=(False, False, True, True), slices=(slice(None),), repeats=False):
    editor = Editor(network, repeats)
    editor.edits, editor.table = edits, table()
    asked = [0]

    def told(rows, named):
        asked[0] += rows
        return marks[asked[0] - rows : asked[0]]

    with torch.no_grad(), editor.installed(told):
        out = torch.cat([network(x[part], context=context[part]) for part in slices])
    assert not [layer for layer in network.modules() if "forward" in vars(layer)]
    assert not network._forward_hooks and not network._forward_pre_hooks
    return out


def test_layers_have_their_diffusers_names(network):
    assert list(cross_layers(network)) == [
        DOWN,
        "mid_block.attentions.0.transformer_blocks.0.attn2",
        "up_blocks.0.attentions.0.transformer_blocks.0.attn2",
        "up_blocks.0.attentions.1.transformer_blocks.0.attn2",
        "up_blocks.1.attentions.0.transformer_blocks.0.attn2",
    ]
    assert cross_layers(nn.Linear(1, 1)) == {}


def test_an_edit_that_changes_nothing_changes_no_bit(network, inputs):
    x, context = inputs
    with torch.no_grad():
        assert torch.equal(edited(network, (Edit(),), x, context), network(x, context=context))


def test_scaling_and_masking_is_the_formula_on_the_prompts_rows(network, inputs):
    x, context = inputs
    layers = list(cross_layers(network).values())
    with torch.no_grad():
        expected = x
        for layer in layers:
            q, k, v = layer.to_q(expected), layer.to_k(context), layer.to_v(context)
            plain = written_out(q, k, v)

            def change(logits):
                logits = logits.clone()
                logits[..., 0] *= 1.25
                logits[..., 5:] = -torch.inf
                return logits

            out = torch.cat([plain[:2], written_out(q, k, v, change)[2:]])
            expected = expected + layer.to_out(out)
    found = edited(network, (ScaleAndMask(1.25, (PADDING,), 1.0, None),), x, context)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "edit", [ScaleAndMask(1.25, (PADDING,), 1.0, None), Mask({DOWN: (0, 3)}, 0.0), Attenuate(0.3, 0.01)]
)
def test_calls_in_slices_give_what_one_call_gives(network, inputs, edit):
    x, context = inputs
    whole = edited(network, (edit,), x, context)
    slices = edited(network, (edit,), x, context, slices=(slice(0, 1), slice(1, 3), slice(3, 4)))
    one_image_each = edited(network, (edit,), x, context, slices=(slice(0, 2), slice(2, 4)))
    torch.testing.assert_close(one_image_each, whole)
    if not isinstance(edit, ScaleAndMask):
        torch.testing.assert_close(slices, whole)
    with torch.no_grad():
        # with a bias the rows without the prompt go through torch's attention and not through the layer's own
        if isinstance(edit, Attenuate):
            torch.testing.assert_close(whole[:2], network(x, context=context)[:2])
        else:
            assert torch.equal(whole[:2], network(x, context=context)[:2])
        assert not torch.allclose(whole[2:], network(x, context=context)[2:])


def test_prompts_of_a_common_length(network, inputs):
    """Forge repeats a prompt; A1111 appends to it, and what it appends is neither word nor padding."""
    x, context = inputs
    repeated, appended = torch.cat([context, context], 1), torch.cat([context, torch.randn_like(context)], 1)
    edit, mask = (Mask({DOWN: (0, 3)}, 0.0),), (ScaleAndMask(1.25, (PADDING,), 1.0, None),)
    for each in (edit, mask):
        torch.testing.assert_close(edited(network, each, x, repeated, repeats=True), edited(network, each, x, context))
    # the same columns as a repeated prompt's padding, and here they act
    other = appended.clone()
    other[:, context.shape[1] :][:, (table() == PADDING).any(0)] += 1
    kept, changed = (edited(network, mask, x, each) for each in (appended, other))
    assert not torch.allclose(kept[2:], changed[2:])
    kept, changed = (edited(network, mask, x, each, repeats=True) for each in (appended, other))
    torch.testing.assert_close(kept[2:], changed[2:])


def test_an_exception_leaves_nothing_behind(network, inputs):
    x, context = inputs
    editor = Editor(network)
    editor.edits = (Edit(),)

    def broken(rows, named):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), editor.installed(broken):
        network(x, context=context)
    assert not [layer for layer in network.modules() if "forward" in vars(layer)]
    assert not network._forward_hooks and not network._forward_pre_hooks
    assert editor.widths == dict.fromkeys(cross_layers(network), WIDTH)


class Sampler:
    def __init__(self, network, error=None):
        self.network, self.error, self.starts = network, error, []

    def sample(self, p, x, context):
        self.starts.append(x)
        if self.error is not None:
            raise self.error
        return self.network(x, context=context)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_whatever_ends_the_sampling_nothing_stays_in_the_network(network, inputs, error):
    x, context = inputs
    treated = Treated(Session(Guard(), "a1111", "v1", lambda: None))
    treated.edit(network)
    sampler = Sampler(network, error)
    treated.before_sampling(network, sampler)
    treated.edit(network)
    now = treated.session.begin("pass")
    treated.adopt(now, Treatment(edits=(Mask({DOWN: (0,)}, 0.0),)), None)
    assert [layer for layer in network.modules() if "forward" in vars(layer)]
    with pytest.raises(type(error)):
        sampler.sample(None, x, context)
    assert not [layer for layer in network.modules() if "forward" in vars(layer)]
    assert not network._forward_hooks and not network._forward_pre_hooks
    # an interrupt of the host's is no error: scripts are told of the end
    assert len(treated.session.reports) == isinstance(error, Exception)


@pytest.mark.parametrize("policy", ["observe", "mitigate"])
def test_a_session_that_is_kept_keeps_no_network(policy, inputs):
    """The reports of many jobs are kept, each of which may have had a checkpoint of its own."""
    x, context = inputs
    network = Network()
    gone = weakref.ref(network)
    asked = {"detectors": "attention_entropy", "policy": policy}
    if policy == "mitigate":
        asked["mitigation"] = "attention_scaling"
    treated = Treated(Session(Guard(**asked), "a1111", "v1", lambda: None, explain="always"))
    sampler = Sampler(network, None)
    treated.edit(network)
    treated.before_sampling(network, sampler)
    now = treated.session.begin("pass")
    now.reader = treated.reader
    sampler.sample(None, x, context)
    treated.finish()
    assert len(treated.session.reports) == 1
    del network, sampler, now
    gc.collect()
    assert gone() is None


def test_other_noise_starts_the_sampler_once_more(network, inputs):
    x, context = inputs
    session = Session(Guard(), "a1111", "v1", lambda: None)
    treated, sampler = Treated(session), Sampler(network, Again())
    session.begin("pass")
    treated.before_sampling(network, sampler)
    treated.before_sampling(network, sampler)  # hires asks twice
    treated.treatment = Treatment(noise=torch.ones_like(x), images=torch.tensor([1, 3]))
    with pytest.raises(Again):  # and not a third time
        sampler.sample(None, x, context)
    first, second = sampler.starts
    assert torch.equal(first, x)
    assert torch.equal(second[[0, 2]], x[[0, 2]]) and torch.equal(second[[1, 3]], torch.ones_like(x)[[1, 3]])


def test_a_sampler_whose_calls_nobody_tells_of_is_stopped():
    """As in a WebUI that calls none of our functions."""

    class Interrupted(BaseException):
        pass

    class Watch(Treated):
        def interrupt(self):
            raise Interrupted

    class Silent:
        def __init__(self):
            self.model_wrap_cfg, self.calls = torch.nn.Identity(), 0

        def sample(self, p, x):
            for _ in range(4):
                self.calls += 1
                x = self.model_wrap_cfg(x)
            return x

    for policy, calls in (("observe", 4), ("stop", 1)):
        session, sampler = Session(Guard(policy=policy), "a1111", "v1", lambda: None), Silent()
        Watch(session).before_sampling(torch.nn.Identity(), sampler)
        with nullcontext() if policy == "observe" else pytest.raises(Interrupted):
            sampler.sample(None, torch.zeros(1))
        session.end()
        assert session.reports[0].findings[0].status == UNSEEN
        assert sampler.calls == calls and bool(session.stopped) == (policy == "stop")
        assert not sampler.model_wrap_cfg._forward_hooks


def test_an_edit_that_breaks_leaves_the_call_as_it_was(network, inputs):
    x, context = inputs
    plain = network(x, context=context)
    editor, errors = Editor(network), []

    class Broken(Edit):
        def __call__(self, q, k, v, site):
            raise KeyError("inside")

    editor.edits = (Broken(),)
    with editor.installed(lambda rows, named: rows * [True], lambda: careful(errors.append)):
        assert torch.equal(network(x, context=context), plain)
    assert errors and isinstance(errors[0], KeyError)
    with pytest.raises(KeyError), editor.following((Broken(),)):  # a call of our own: the loop is told
        network(x, context=context)
    assert torch.equal(network(x, context=context), plain)
