"""What loops really give: indices in tensors, tables from JSON, several ranks, workers, calls in the wrong place."""

import json
import logging
import math
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from memguard.training import Captions, EntropyFilter, JsonLines, Meter, NormFilter
from memguard.troubles import Refused, Told
from tests.hosts import tiny

NOISY, STEPS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([900, 100])
TEXT = torch.randn(3, 7, tiny.WIDTH, generator=torch.Generator().manual_seed(4))
EMPTY = TEXT[2:]


class Network(torch.nn.Module):
    """Predicts its input times the text's mean; keeps a buffer, as SD3's transformer does."""

    def __init__(self, channels=4):
        super().__init__()
        self.scale, self.channels = torch.nn.Parameter(torch.tensor(1.0)), channels
        self.register_buffer("table", torch.ones(1))

    def forward(self, noisy, timesteps, text, **_):
        found = self.scale * self.table * noisy * text.mean((1, 2))[:, None, None, None]
        return found.repeat(1, self.channels // 4, 1, 1)


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
@pytest.mark.parametrize("names", [[7, 0], [0]])
def test_indices_name_pictures_as_a_data_loader_collates_them(kind, names):
    norm = EntropyFilter(1.0)
    for _ in range(2):
        norm.weigh(torch.full((len(names),), 2.0), kind(names))
    assert {name: entry.count for name, entry in norm.seen.items()} == dict.fromkeys(names, 2)


@pytest.mark.parametrize(
    ("levels", "times"), [({0.5: 1.0, 0.8: 2.0}, (0.79, 0.8, 0.49)), ({"600": 1.0, "1000": 2.0}, (999, 1000, 599))]
)
def test_levels_are_fractions_for_flow_matching_and_words_in_json(levels, times):
    entropy = EntropyFilter(levels)
    assert entropy.weigh(torch.full((3,), 1.5), timesteps=torch.tensor(times)).tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("levels", [{"high": 1.0}, {math.nan: 1.0}, {None: 1.0}])
def test_levels_that_are_no_timesteps_are_refused(levels):
    with pytest.raises(Refused, match="give a number above 0, or one for each noise level"):
        EntropyFilter(levels)


def test_a_filter_that_never_judges_is_said_once(caplog):
    norm, low = NormFilter(1.0, EMPTY, least=600), torch.tensor([0.9, 0.1])  # timesteps / 1000, as Flux takes them
    for _ in range(99):
        norm(Network(), NOISY, low, NOISY)
    norm(Network(), NOISY, STEPS, NOISY)
    for _ in range(99):
        norm(Network(), NOISY, low, NOISY)
    assert not caplog.messages
    norm(Network(), NOISY, low, NOISY)
    assert len(caplog.messages) == 1
    for _ in range(200):
        norm(Network(), NOISY, low, NOISY)
    assert caplog.messages == [
        "text_noise_norm judged no sample of 100 steps in a row: their timesteps are below what is judged, or their"
        " scores are not finite; give noise levels in the units of the timesteps"
    ]
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize("channels", [8, 4])
def test_a_prediction_that_is_not_the_network_s_output_is_said(channels):
    predicted = NOISY if channels == 8 else NOISY[:, :1]  # the half of it without variances; or one that broadcasts
    with pytest.raises(Refused) as refused:
        NormFilter(1.0, EMPTY)(Network(channels), NOISY, STEPS, predicted)
    said = f"predicted is of shape {list(predicted.shape)}, and the network returns [2, {channels}, 8, 8]; give"
    assert str(refused.value) == f"{said} what the network returned"


def test_the_caption_s_mask_is_taken_out_too():
    torch.manual_seed(0)
    net = tiny.pixart().transformer
    more = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    mask, none = torch.tensor([[1] * 7, [1, 1, 1, 0, 0, 0, 0]]), torch.tensor([[1] + [0] * 6])

    def call(text, mask):
        return net(
            hidden_states=NOISY, encoder_hidden_states=text, timestep=STEPS, encoder_attention_mask=mask, **more
        ).sample

    predicted = call(TEXT[:2], mask)
    expected = (predicted - call(EMPTY.expand(2, -1, -1), none.expand(2, -1))).pow(2).mean((1, 2, 3)).sqrt()
    norm = NormFilter(1.0, EMPTY, instead={"encoder_attention_mask": none})
    norm(net, NOISY, STEPS, predicted, names="ab", encoder_attention_mask=mask, **more)
    assert [norm.seen[name].highest for name in "ab"] == pytest.approx(expected.tolist(), rel=1e-5)
    with pytest.raises(Refused, match="encoder_attention_mask masks the caption's tokens; give the empty caption's as"):
        NormFilter(1.0, EMPTY)(net, NOISY, STEPS, predicted, encoder_attention_mask=mask, **more)


def test_more_than_one_row_instead_is_said():
    with pytest.raises(Refused) as refused:
        NormFilter(1.0, EMPTY, instead={"added_cond_kwargs": {"text_embeds": torch.ones(3, 5)}})
    assert str(refused.value) == "text_embeds in instead is of shape [3, 5]; give one row, that of the empty caption"


def test_a_rank_may_judge_alone():
    """A forward of DistributedDataParallel sends buffers around: it waits forever for ranks that judge nothing."""
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        ranks, calls = torch.nn.parallel.DistributedDataParallel(Network()), []
        predicted = ranks(NOISY, STEPS, TEXT[:2])
        ranks.register_forward_pre_hook(lambda *_: calls.append(1))
        norm = NormFilter(1.0, EMPTY)
        norm(ranks, NOISY, STEPS, predicted)
        assert norm.rows == 2 and not calls and ranks.require_forward_param_sync
    finally:
        torch.distributed.destroy_process_group()


def compiled(network):
    return torch.compile(network, backend="eager")


def in_place(network):
    network.compile(backend="eager")
    return network


@pytest.mark.parametrize("compiling", [compiled, in_place])
def test_a_compiled_lora_is_judged_and_its_attention_is_not_read(compiling):
    peft = pytest.importorskip("peft")
    net = tiny.sd3().transformer
    net = compiling(peft.get_peft_model(net, peft.LoraConfig(target_modules=["to_q"])))
    with pytest.raises(Told, match="the model is compiled"), EntropyFilter(1.0).reading(net):
        pass
    text, pooled = torch.randn(3, 7, 2 * tiny.WIDTH), torch.randn(3, 2 * tiny.WIDTH)
    norm = NormFilter(1.0, text[2:], instead={"pooled_projections": pooled[2:]})
    norm(net, NOISY, STEPS, NOISY, pooled_projections=pooled[:2])
    assert norm.rows == 2, "a transformer is called by name under any wrapper"


def test_a_block_without_a_forward_is_said():
    with pytest.raises(Told) as told, EntropyFilter(1.0).reading(tiny.unet()):
        pass
    assert str(told.value) == "the attention cannot be read: no cross-attention layer of the model was called"


def test_the_norm_filter_s_own_forward_is_not_read_for_the_loop_s():
    unet, entropy, norm = tiny.unet(), EntropyFilter(1.0), NormFilter(1.0, EMPTY)
    predicted = unet(NOISY, STEPS, TEXT[:2]).sample
    with pytest.raises(Refused) as refused, entropy.reading(unet):
        norm(unet, NOISY, STEPS, predicted)
    assert str(refused.value) == "the entropy filter is reading; call the norm filter after its block"
    norm(unet, NOISY, STEPS, predicted)
    assert norm.rows == 2


class Texts(Dataset):
    """Captions made anew in the data loader's workers."""

    def __init__(self):
        self.captions = Captions("random_tokens", share=1, seed=5)

    def __len__(self):
        return 2

    def __getitem__(self, row):
        return self.captions("a red fox")


def test_workers_and_epochs_draw_other_words():
    """Each epoch starts workers anew, with copies of a generator that has not moved."""
    torch.manual_seed(0)
    loader = DataLoader(Texts(), batch_size=1, num_workers=2)
    found = [batch[0] for _ in range(2) for batch in loader]
    assert len(set(found)) == 4
    torch.manual_seed(0)
    assert [batch[0] for _ in range(2) for batch in loader] == found
    assert random.Random(5).random() == Captions("random_tokens", seed=5)._random.random()


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Captions("multiple_captions")([]), "there is no caption to draw from; give at least one"),
        (lambda: Captions("random_tokens", words="fox"), "words is 'fox'; give a list of words"),
        (lambda: Captions("random_tokens", times=-1), "times is -1; give a whole number from 0 on"),
        (lambda: Captions("random_tokens", times=2.5), "times is 2.5; give a whole number from 0 on"),
        (lambda: Meter(len, [1], [2], timesteps=()), "the meter needs timesteps to measure at"),
    ],
)
def test_bad_settings_are_one_line(make, line):
    with pytest.raises(Refused) as refused:
        make()
    assert str(refused.value) == line


def test_one_picture_has_no_standard_error():
    (one,) = Meter(lambda batch, *_: torch.ones(batch), [1], [2], timesteps=(1,)).measure(0)
    (two,) = Meter(lambda batch, *_: torch.ones(batch), [2], [2], timesteps=(1,)).measure(0)
    assert math.isnan(one.error) and two.error == 0


def test_losses_that_overflow_on_both_sides_end_no_training(tmp_path):
    log, steps = JsonLines(tmp_path / "a.jsonl"), {("t", 1): math.inf, ("h", 2): math.inf}
    losses = lambda batch, timestep, _: torch.tensor([steps.get((batch, timestep), 1.0)])  # noqa: E731
    gaps = Meter(losses, ["t"], ["h"], timesteps=(1, 2), log=log).measure(0)
    log.close()
    assert [each.gap for each in gaps] == [-math.inf, math.inf]
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["value"] for row in rows] == [None] * 3


def test_a_loop_s_own_values_are_written(tmp_path):
    log = JsonLines(tmp_path / "a.jsonl")
    log.add(np.int64(3), {"loss": torch.tensor(0.5, requires_grad=True), "rate": np.float32(0.25)})
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert rows == [{"step": 3, "name": "loss", "value": 0.5}, {"step": 3, "name": "rate", "value": 0.25}]
