"""Attention and words of a toy network and a toy text engine, against what is written out; no host."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from memguard.attributions.moment import Encoded
from memguard.hosts.webui import prompts, tokens
from memguard.hosts.webui.explanation import ENCODED, NO_TEXT, Asked, Explanation, grouped
from memguard.hosts.webui.layers import cross_layers
from memguard.hosts.webui.reading import EDITED, NO_LAYERS, Reader
from memguard.mitigations.base import Treatment
from memguard.mitigations.edit import Edit
from memguard.records import StepEvidence
from memguard.troubles import UNFORESEEN
from memguard_pack.tests.hosts.webui.test_webui_edits import HEADS, TOKENS, WIDTH, Network, inputs, split  # noqa: F401

MARKS = (False, True, False, True)


@pytest.fixture
def network():
    return Network().eval()


def reader(network, marks=MARKS, repeats=False):
    asked = [0]

    def told(rows, named):
        asked[0] += rows
        return marks[asked[0] - rows : asked[0]]

    return Reader(network, told, repeats)


def written_out(network, x, context):
    """The mass of each layer, mean over heads and positions, [B, tokens]."""
    found = {}
    for name, layer in cross_layers(network).items():
        logits = split(layer.to_q(x)) @ split(layer.to_k(context)).transpose(-1, -2) * (WIDTH // HEADS) ** -0.5
        found[name] = logits.softmax(-1).mean((1, 2))
        x = x + layer(x, context=context)
    return found


@pytest.mark.parametrize("slices", [(slice(None),), (slice(0, 1), slice(1, 3), slice(3, 4))])
def test_masses_are_those_of_the_prompt_s_rows(network, inputs, slices):  # noqa: F811
    x, context = inputs
    reading = reader(network)
    with torch.no_grad(), reading.installed():
        reading.arm(2, TOKENS, False)
        for part in slices:
            network(x[part], context=context[part])
        reading.disarm()
    expected = written_out(network, x, context)
    assert list(reading.masses) == list(expected) and reading.reason == ""
    for name, mass in reading.masses.items():
        torch.testing.assert_close(mass, expected[name][[1, 3]])
    assert not network._forward_hooks and not network._forward_pre_hooks
    assert not any(module._forward_hooks for module in network.modules())


def test_repeated_columns_are_added_up_and_appended_ones_left_out(network, inputs):  # noqa: F811
    x, context = inputs
    twice = torch.cat([context, context], 1)
    for repeats, expected in ((True, 1.0), (False, 0.5)):
        reading = reader(network, repeats=repeats)
        with torch.no_grad(), reading.installed():
            reading.arm(2, TOKENS, False)
            network(x, context=twice)
            reading.disarm()
        for mass in reading.masses.values():
            assert mass.shape == (2, TOKENS)
            torch.testing.assert_close(mass.sum(-1), torch.full((2,), expected))


def test_calls_of_our_own_are_not_read(network, inputs):  # noqa: F811
    x, context = inputs
    reading = reader(network)
    with torch.no_grad(), reading.installed():
        network(x, context=context)
    assert reading.masses == {} and reading.evidence(None) == {"unread": "attention was not read"}


def test_a_call_that_is_made_again_carries_its_own_attention(network, inputs):  # noqa: F811
    """Under a mitigation the first call is made again; judged by the old attention, its score could never fall."""
    x, context = inputs
    reading = reader(network)
    with torch.no_grad(), reading.installed():
        reading.arm(2, TOKENS, False)
        network(x, context=context)
        reading.disarm()
        before = dict(reading.masses)
        other = context[[1, 3]].flip(1)
        _, fields = reading.treated(Treatment(), Encoded(other), lambda: network(x[[1, 3]], context=other))
        edited = Treatment(edits=(Edit(),))
        _, unread = reading.treated(edited, Encoded(other), lambda: network(x[[1, 3]], context=other))
    expected = written_out(network, x[[1, 3]], other)
    for name, mass in fields["attention"].items():
        torch.testing.assert_close(mass, expected[name])
        assert not torch.equal(mass, before[name])
    assert unread == {"unread": EDITED}


def test_a_layer_of_other_rows_is_dropped_and_the_others_are_kept(network, inputs):  # noqa: F811
    x, context = inputs
    reading = reader(network)
    with torch.no_grad(), reading.installed():
        reading.arm(2, TOKENS, True)
        network(x, context=context)
        odd = next(iter(reading._found))
        reading._found[odd] = [each[:1] for each in reading._found[odd]]
        reading.disarm()
    assert odd not in reading.masses and len(reading.masses) == len(cross_layers(network)) - 1
    assert reading.evidence(None) == {"unread": "attention of 1 layers was not read: their rows are not the images"}
    assert reading.tally is not None and not reading.reason


def test_an_error_in_reading_is_a_reason_and_costs_no_call(network, inputs):  # noqa: F811
    x, context = inputs
    plain = network(x, context=context)

    def breaks(rows, named):
        raise KeyError("inside")

    reading = Reader(network, breaks)
    with torch.no_grad(), reading.installed():
        reading.arm(2, TOKENS, False)
        torch.testing.assert_close(network(x, context=context), plain)
        reading.disarm()
    assert reading.evidence(None) == {"unread": f"attention was not read: {UNFORESEEN}"}


def test_what_cannot_be_read_is_a_reason(network, inputs):  # noqa: F811
    x, context = inputs
    reading = reader(network, marks=(True,) * 4)
    with torch.no_grad(), reading.installed():
        reading.arm(2, TOKENS, False)
        network(x, context=context)
        reading.disarm()
    assert reading.evidence(None) == {"unread": "the network was not asked for one row per image"}
    assert Reader(nn.Linear(1, 1), lambda rows, named: ()).reason == NO_LAYERS


class Engine(nn.Module):
    """Splits at spaces; a prompt is one chunk of 8 columns."""

    id_start, id_end = 0, 1
    words = ("", "", "a", "red", "fox")

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.token_embedding, self.mix = nn.Embedding(5, WIDTH), nn.Linear(8, 8)
        self.tokenizer = SimpleNamespace(
            decode=lambda ids: self.words[ids[0]], convert_ids_to_tokens=lambda number: self.words[number] + "</w>"
        )

    def tokenize_line(self, text):
        own = [self.words.index(word) for word in text.split()]
        row = [0, *own, *(7 - len(own)) * [1]]
        return [SimpleNamespace(tokens=row, fixes=[], multipliers=[1.0] * 8)], len(own)

    def forward(self, texts):
        rows = torch.tensor([self.tokenize_line(text)[0][0].tokens for text in texts])
        return torch.tanh(self.mix(self.token_embedding(rows).movedim(1, 2))).movedim(2, 1)


def evidence(noise):
    return StepEvidence(0, 4, 14.6, 14.6, 999.0, noise, torch.zeros_like(noise))


@contextmanager
def grad():
    with torch.enable_grad():
        yield


def asked(engine, encoded, follow=grad):
    def predict(prompt):
        return (prompt.text.pow(2).sum((1, 2)).reshape(-1, 1, 1, 1) * torch.ones(1, 4, 2, 2)).sqrt()

    return Asked(Encoded(encoded), (("a red fox", (0, 1)),), engine, predict, nullcontext, follow)


def test_words_are_weighed_at_their_own_embeddings():
    engine = Engine()
    encoded = engine(["a red fox"]).detach()
    both = torch.cat([encoded, encoded])
    told = asked(engine, both)
    explanation = Explanation("flagged")
    assert not explanation.wants(False) and explanation.wants(True)
    explanation.take(told, evidence(told.predict(Encoded(both))), {})
    assert not explanation.wants(True) and explanation.rows == 2
    found = explanation.words()
    assert found.status == "ok" and [word for word, _ in found.words] == ["a", "red", "fox"] and found.notes == ()

    leaf = engine.token_embedding(torch.tensor(engine.tokenize_line("a red fox")[0][0].tokens)).detach()
    leaf.requires_grad_(True)
    text = torch.tanh(engine.mix(leaf.T)).T[None]
    score = told.predict(Encoded(text)).norm()
    (gradient,) = torch.autograd.grad(score, leaf)
    for column, (_, weight) in enumerate(found.words, 1):
        assert weight == pytest.approx(float(gradient[column].norm()), rel=1e-4)


def test_an_engine_without_a_way_back_gives_weights_of_the_encoded_prompt():
    engine = Engine()
    encoded = engine(["a red fox"] * 2).detach()
    told = asked(engine, encoded, follow=torch.no_grad)
    explanation = Explanation("always")
    explanation.take(told, evidence(told.predict(Encoded(encoded))), {})
    assert explanation.words().notes == (ENCODED,)


def test_an_unknown_engine_gives_columns():
    encoded = torch.randn(2, 8, WIDTH)
    told = asked(None, encoded)
    explanation = Explanation("always")
    explanation.take(told, evidence(told.predict(Encoded(encoded))), {})
    found = explanation.words()
    assert [span.text for span in found.spans][:2] == ["column 0", "column 1"] and NO_TEXT in found.notes


def test_attention_stands_in_where_the_gradient_fails():
    engine = Engine()
    encoded = engine(["a red fox"]).detach()
    told = asked(engine, encoded)

    def broken(prompt):
        raise RuntimeError("no derivative for quantised weights")

    broken_told = Asked(told.prompt, told.parts, engine, broken, nullcontext, grad)
    mass = torch.full((1, 8), 1 / 8)
    explanation = Explanation("always")
    explanation.take(broken_told, evidence(told.predict(Encoded(encoded))), {"down": mass})
    found = explanation.words()
    assert found.method == "attention" and "the gradient failed (the model cannot be differentiated" in found.notes[0]
    assert dict(found.words)["fox"] == pytest.approx(1 / 8)
    explanation = Explanation("always")
    explanation.take(broken_told, evidence(told.predict(Encoded(encoded))), {})
    assert explanation.words().status.startswith("the gradient failed (the model cannot be differentiated")
    two = Asked(told.prompt, (("a red", (0,)), ("fox", (1,))), engine, broken, nullcontext, grad)
    explanation = Explanation("always")
    explanation.take(two, evidence(told.predict(Encoded(encoded))), {"down": mass})
    assert "no attention was read" not in explanation.words().status  # it was


def test_texts_and_their_rows():
    texts = [["a", "b"], ["a", "c"]]
    assert grouped(texts, lambda image, part: part * 2 + image) == (("a", (0, 1)), ("b", (2,)), ("c", (3,)))


def test_the_texts_of_the_first_step():
    parser = SimpleNamespace(
        get_multicond_prompt_list=lambda given: ([[(0, 1.0), (1, 2.0)], [(0, 1.0)]], ["a [b:c:0.5]", "d"], {}),
        get_learned_conditioning_prompt_schedules=lambda texts, steps, hires: [[[steps, texts[0].split(":")[0]]]],
    )
    p = SimpleNamespace(prompts=["x", "y"], steps=4, is_hr_pass=False)
    assert prompts.spoken(parser, p) == [["a [b", "d"], ["a [b"]]


def test_embeddings_take_columns_of_their_own():
    engine = Engine()
    embedding = SimpleNamespace(vectors=2, name="style", vec={"clip_l": None, "clip_g": None})
    chunk = SimpleNamespace(tokens=[0, 2, 0, 0, 4, 1, 1, 1], fixes=[SimpleNamespace(offset=1, embedding=embedding)])
    chunk.multipliers = [1.0, 1.0, 1.3, 1.3, 1.0, 1.0, 1.0, 1.0]
    engine.tokenize_line = lambda text: ([chunk], 4)
    found = tokens.columns(engine, "a style fox")
    assert [token.group for token in found] == ["bos", *["word"] * 4, "eos", "padding", "padding"]
    assert [(token.name, token.opens) for token in found[2:4]] == [("style", True), ("style", False)]
    assert found[2].emphasis == 1.3
