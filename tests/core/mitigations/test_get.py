"""Names, parameters, strength, and the mitigations of text."""

from dataclasses import replace

import pytest
import torch

from memguard.attributions.moment import Encoded
from memguard.mitigations import available, get, parameters
from memguard.mitigations.base import Treatment, Unsuitable, blend
from memguard.records import NeuronSet

from .conftest import WIDTH, layout

NEEDS = {
    "neuron_mask": {"neurons": NeuronSet({"down_blocks.0.attentions.0.transformer_blocks.0.attn2": (1,)})},
    "paraphrase": {"text": "other words"},
}


@pytest.mark.parametrize("name", available())
def test_strength_0_is_the_treatment_of_before(name, start):
    before = Treatment(notes=("something",))
    assert get(name, **NEEDS.get(name, {}), strength=0).treat(start(), before) is before


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("attention_scaling", {"bos_scale": 1.0, "mask_padding": False}),
        ("spike_attenuation", {"alpha": 1.0}),
        ("neuron_mask", NEEDS["neuron_mask"] | {"factor": 1.0}),
        ("random_tokens", {"count": 0}),
    ],
)
def test_neutral_parameters_are_the_treatment_of_before(name, settings, start):
    before = Treatment()
    assert get(name, **settings).treat(start(), before) is before


@pytest.mark.parametrize(
    ("name", "settings", "line"),
    [
        ("colouring", {}, "there is no mitigation 'colouring'; use one of attention_scaling, "),
        ("padding", {"tau": 1}, "padding has no parameter 'tau'; it has strength, parity, variant, share"),
        ("padding", {"name": "x"}, "padding has no parameter 'name'"),
        ("padding", {"strength": 1.5}, "padding: strength is 1.5; give a number between 0 and 1; 0 changes nothing"),
        ("padding", {"parity": "paper"}, "padding: parity is 'paper'; use one of official, None"),
        ("attention_scaling", {"bos_scale": 0}, "attention_scaling: bos_scale is 0; give a number above 0"),
        ("attention_scaling", {"bos_scale": -1.5}, "bos_scale is -1.5; give a number above 0"),
        ("attention_scaling", {"bos_scale": float("nan")}, "bos_scale is nan; give a number above 0"),
        ("attention_scaling", {"bos_scale": float("inf")}, "give a number above 0, such as 1.25; 1 changes nothing"),
        ("spike_attenuation", {"alpha": 2}, "alpha is 2; give a number between 0 and 1; 1 changes nothing"),
        ("spike_attenuation", {"rule": "cut"}, "rule is 'cut'; use one of positive, cap"),
        ("guidance_delay", {"until": 1001}, "until is 1001; give a timestep between 0 and 1000"),
        ("prompt_optimization", {"lr": 0}, "lr is 0; give a learning rate above 0"),
        ("prompt_optimization", {"target": -1.0}, "target is -1.0; give a noise gap above 0"),
        ("noise_adjustment", {"method": "swap"}, "method is 'swap'; use one of batch, sample, sail"),
        ("neuron_mask", {"neurons": "a.safetensors"}, "neuron_mask: neurons is 'a.safetensors'; give a NeuronSet"),
        ("neuron_mask", {}, "neurons is empty; load a set, or find one with memguard neurons find"),
        ("paraphrase", {}, "text is empty; give the prompt in other words"),
        ("paraphrase", {"text": "x", "lower": 5, "upper": 4}, "upper is 4; give a noise gap above lower (5)"),
        ("local_guidance", {"decay": 1}, "decay is 1; give a share of at least 0 and below 1"),
    ],
)
def test_bad_settings_get_one_line_with_the_remedy(name, settings, line):
    with pytest.raises(ValueError) as refused:
        get(name, **settings)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_parameters_are_told_with_their_defaults():
    assert parameters("attention_scaling") == {
        "strength": 1.0,
        "parity": None,
        "bos_scale": 1.25,
        "mask_padding": True,
        "mask_eos": False,
    }


def test_attention_mitigations_say_what_they_miss(start):
    with pytest.raises(Unsuitable, match="no cross-attention layers"):
        get("attention_scaling").treat(start(widths={}), Treatment())
    with pytest.raises(Unsuitable, match="tokens are not known"):
        get("attention_scaling").treat(start(groups=None), Treatment())


class TestPadding:
    def encode(self, texts, padding=None):
        """A text encoder that writes the padding's token id into every padded column."""
        text = torch.arange(1.0, 78).reshape(1, 77, 1).repeat(len(texts), 1, WIDTH)
        text[:, 5:] = -1.0 if padding is None else 100.0 + padding
        return Encoded(text)

    def began(self, start, **known):
        return start(encode=self.encode, prompt=self.encode(["a red fox"]), **known)

    def test_swapped_padding_and_eos_set_to_zero(self, start):
        began = self.began(start)
        found = get("padding").treat(began, Treatment())
        expected = began.prompt.text.clone()
        expected[:, 5:] = 100
        expected[:, 4] = 0
        assert torch.equal(found.prompt.text, expected)
        assert found.reference is None

    def test_officially_the_prompt_without_words_is_padded_so_too(self, start):
        found = get("padding", parity="official").treat(self.began(start), Treatment())
        assert torch.equal(found.reference.text[:, 5:], torch.full((1, 72, WIDTH), 100.0))
        assert found.reference.text[0, 4, 0] == 5  # its EOS stays
        line = 'the negative prompt replaced by the empty one, padded with "!"'
        assert found.deeds[-1] == (line, {"reference"})
        assert line not in get("padding").treat(self.began(start), Treatment()).notes

    def test_officially_the_rest_of_the_negative_prompt_stays_whatever_the_score_is_compared_with(self, start):
        negative = Encoded(torch.full((1, 77, WIDTH), 7.0), torch.full((1, 3), 7.0))
        began = self.began(start, eos_padded=2, negative=negative)
        found = get("padding", parity="official").treat(began, Treatment()).reference
        assert bool((found.text[..., 2:] == 7).all()) and torch.equal(found.pooled, negative.pooled)
        assert get("padding", parity="official").treat(replace(began, negative=None), Treatment()).reference is None

    def test_a_share_of_the_padding_set_to_zero(self, start):
        began = self.began(start)
        found = get("padding", variant="partial").treat(began, Treatment()).prompt.text
        zeros = (found == 0).all(-1)[0].nonzero().flatten().tolist()
        assert zeros == list(range(5, 5 + int(0.7 * 72)))
        assert torch.equal(found[:, :5], began.prompt.text[:, :5])

    def test_of_sdxl_only_the_half_of_clip_l(self, start):
        began = self.began(start, eos_padded=2)
        found = get("padding").treat(began, Treatment()).prompt.text
        assert torch.equal(found[..., 2:], began.prompt.text[..., 2:])
        assert float(found[0, 9, 0]) == 100

    def test_elsewhere_it_says_that_there_is_nothing_to_do(self, start):
        with pytest.raises(Unsuitable, match="it acts where prompts are filled up with EOS"):
            get("padding").treat(self.began(start, eos_padded=0), Treatment())

    def test_half_the_strength_is_half_the_way(self, start):
        began = self.began(start)
        whole = get("padding").treat(began, Treatment()).prompt
        half = get("padding", strength=0.5).treat(began, Treatment()).prompt
        torch.testing.assert_close(half.text, (began.prompt.text + whole.text) / 2)


class TestRandomTokens:
    def treated(self, start, **settings):
        heard = []

        def encode(texts, padding=None):
            heard.extend(texts)
            return Encoded(torch.zeros(len(texts), 77, WIDTH))

        began = start(2, encode=encode, word=lambda number: f"w{number}", texts=("a red fox",))
        get("random_tokens", **settings).treat(began, Treatment())
        return heard

    def test_the_same_seed_inserts_the_same_words(self, start):
        first, second = self.treated(start, seed=3), self.treated(start, seed=3)
        assert first == second
        assert first[0] == first[1]
        assert len(first[0].split()) == 3 + 4
        assert [word for word in first[0].split() if not word.startswith("w")] == ["a", "red", "fox"]
        assert self.treated(start, seed=4) != first

    def test_numbers_and_words_of_the_prompt(self, start):
        numbers = [word for word in self.treated(start, kind="number")[0].split() if word.isdigit()]
        assert len(numbers) == 4
        assert set(self.treated(start, kind="word")[0].split()) == {"a", "red", "fox"}


def test_blending_all_the_way_is_the_other_prompt():
    a, b = Encoded(torch.zeros(1, 77, 2)), Encoded(torch.ones(1, 77, 2))
    assert blend(a, b, 1) is b
    assert torch.equal(blend(a, b, 0.25).text, torch.full((1, 77, 2), 0.25))
    assert layout(3)[0, :6].tolist() == [1, 2, 2, 2, 3, 4]
