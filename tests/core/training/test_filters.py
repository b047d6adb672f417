"""Filters of a training: scores against formulas of their own, weights, gradients, what a forward of ours leaves."""

import json
import math

import pytest
import torch
from torch.nn import functional

import memguard
from memguard import training
from memguard.training import EntropyFilter, JsonLines, NormFilter, Scalars, weighted
from memguard.troubles import Refused, Told
from tests.hosts import tiny


class Network(torch.nn.Module):
    """Predicts a multiple of its input by the text's mean; draws random numbers in every call."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
        self.asked = []

    def forward(self, noisy, timesteps, text, extra=None):
        torch.rand(3)
        self.asked.append((len(noisy), timesteps.tolist(), None if extra is None else extra["ids"].tolist()))
        return self.scale * noisy * text.mean((1, 2))[:, None, None, None]


@pytest.fixture
def batch():
    noisy = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    text = torch.tensor([1.5, 3.0, 1.0]).view(3, 1, 1).expand(3, 7, 2)
    return noisy, torch.tensor([900, 500, 100]), text, torch.ones(1, 7, 2)


@pytest.mark.parametrize("above", ["skip", "scale"])
def test_the_score_is_the_rms_of_the_gap_and_weights_follow(batch, above):
    noisy, steps, text, empty = batch
    network, rms = Network(), noisy.flatten(1).pow(2).mean(1).sqrt()
    scores = rms * torch.tensor([0.5, 2.0, 0.0])
    threshold = float(scores[0] + scores[1]) / 2
    norm = NormFilter(threshold, empty, above)
    weights = norm(network, noisy, steps, network(noisy, steps, text), names=["a", "b", "c"])
    expected = {"skip": 0.0, "scale": threshold / float(scores[1])}[above]
    assert weights.tolist() == pytest.approx([1.0, expected, 1.0])
    assert [norm.seen[name].highest for name in "abc"] == pytest.approx(scores.tolist(), abs=1e-6)
    assert [(name, entry.count, entry.above) for name, entry in norm.left_out()] == [("b", 1, 1)]


def test_only_high_noise_is_judged_and_costs_rows(batch):
    noisy, steps, text, empty = batch
    network, extra = Network(), {"ids": torch.arange(3)}
    norm = NormFilter(1e-9, empty, least=500)
    predicted = network(noisy, steps, text, extra)
    assert norm(network, noisy, steps, predicted, extra=extra).tolist() == [0.0, 0.0, 1.0] and norm.rows == 2
    assert network.asked[-1] == (2, [900, 500], [0, 1])
    assert NormFilter(1e-9, empty, least=901)(network, noisy, steps, predicted).tolist() == [1.0, 1.0, 1.0]
    assert len(network.asked) == 2, "no evaluation where nothing is judged"


def test_the_extra_evaluation_leaves_generators_and_graph_alone(batch):
    noisy, steps, text, empty = batch
    network = Network()

    def step(norm):
        torch.manual_seed(1)
        predicted = network(noisy, steps, text)
        if norm is not None:
            norm(network, noisy, steps, predicted)
        return torch.rand(2), torch.autograd.grad(predicted.pow(2).mean(), network.scale)[0]

    for plain, watched in zip(step(None), step(NormFilter(1.0, empty)), strict=True):
        assert torch.equal(plain, watched)


def test_a_sample_that_is_left_out_has_no_gradient():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], requires_grad=True)
    loss = weighted(values.pow(2), torch.tensor([1.0, 0.0, 0.5]))
    loss.backward()
    assert loss.item() == pytest.approx((2.5 + 0.5 * 30.5) / 3)
    assert values.grad[1].tolist() == [0.0, 0.0]
    assert values.grad[0].tolist() == pytest.approx([1 / 3, 2 / 3])
    nothing = weighted(values.pow(2), torch.zeros(3))
    assert nothing.item() == 0 and nothing.requires_grad


def test_gradients_of_accumulated_batches_are_those_of_one():
    values = torch.arange(8.0).reshape(4, 2).requires_grad_()
    weights = torch.tensor([0.0, 1.0, 1.0, 0.25])
    (whole,) = torch.autograd.grad(weighted(values.pow(2), weights), values)
    halves = [weighted(values[part].pow(2), weights[part]) / 2 for part in (slice(0, 2), slice(2, 4))]
    (parts,) = torch.autograd.grad(sum(halves), values)
    assert torch.allclose(whole, parts)


def test_half_precision(batch):
    noisy, steps, text, empty = (each.half() if each.is_floating_point() else each for each in batch)
    network = Network().half()
    predicted = network(noisy, steps, text)
    weights = NormFilter(0.75, empty)(network, noisy, steps, predicted)
    assert weights.tolist() == [1.0, 0.0, 1.0]
    assert weighted(predicted.pow(2), weights).dtype == torch.float16


def test_entropy_is_that_of_the_layer_s_attention_in_the_step_s_own_forward():
    unet = tiny.unet().train()
    noisy, text = torch.randn(2, 4, 8, 8), torch.randn(2, 7, unet.config.cross_attention_dim)
    steps, calls, kept = torch.tensor([10, 900]), [], {}
    unet.register_forward_pre_hook(lambda *_: calls.append(1))
    plain = unet(noisy, steps, text).sample
    layers = [name for name, _ in unet.named_modules() if name.endswith("attn2") and name.startswith("down")]
    layer = unet.get_submodule(layers[min(3, len(layers) - 1)])
    for where in ("to_q", "to_k"):
        getattr(layer, where).register_forward_hook(lambda _m, _i, out, where=where: kept.update({where: out}))
    before = {name: len(part._forward_hooks) for name, part in unet.named_modules()}
    attention = EntropyFilter(1e-6)
    with attention.reading(unet):
        assert torch.equal(unet(noisy, steps, text).sample, plain)
    assert len(calls) == 2 and {name: len(part._forward_hooks) for name, part in unet.named_modules()} == before
    q, k = (kept[name].unflatten(-1, (layer.heads, -1)).transpose(1, 2) for name in ("to_q", "to_k"))
    mean = (q @ k.mT * layer.scale).softmax(-1).mean((1, 2))
    assert attention(names=["a", "b"]).tolist() == [0.0, 0.0]
    expected = -(mean * mean.log()).sum(-1)
    assert [attention.seen[name].highest for name in "ab"] == pytest.approx(expected.tolist(), rel=1e-4)
    with pytest.raises(RuntimeError, match="nothing was read"):
        attention()


def test_a_network_without_cross_attention_is_told_in_words():
    with (
        pytest.raises(Told, match="no cross-attention layer of the model was called"),
        EntropyFilter(1.0).reading(torch.nn.Linear(1, 1)),
    ):
        pass


def test_logs(tmp_path, batch):
    noisy, steps, text, empty = batch
    network, told = Network(), []

    class Writer:
        def add_scalar(self, name, value, step):
            told.append((step, name, value))

    lines = JsonLines(tmp_path / "log.jsonl")
    for log in (Scalars(Writer()), lines):
        norm = NormFilter(0.1, empty, log=log)
        for _ in range(2):
            norm(network, noisy, steps, network(noisy, steps, text))
    lines.close()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["name"], row["value"]) for row in rows] == told
    names = ["text_noise_norm/score", "text_noise_norm/above"]
    assert [(step, name) for step, name, _ in told] == [(step, name) for step in (0, 1) for name in names]
    assert told[1][2] == pytest.approx(2 / 3)
    with pytest.raises(Refused, match=r"log\.jsonl: is there already"):
        JsonLines(tmp_path / "log.jsonl")
    with pytest.raises(Refused, match="cannot be made"):
        JsonLines(tmp_path / "none" / "log.jsonl")


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda empty: NormFilter(0, empty), "threshold is 0; give a number above 0"),
        (lambda empty: NormFilter(math.nan, empty), "threshold is nan"),
        (lambda empty: NormFilter(True, empty), "threshold is True"),
        (lambda empty: NormFilter(1, empty, "drop"), "above is 'drop'; use one of skip, scale"),
        (lambda empty: NormFilter(1, empty[0]), "empty is of shape [7, 2]; give the encoded empty caption"),
        (lambda empty: NormFilter(1, empty).weigh(torch.ones(2), ["a"]), "1 names for 2 samples"),
        (lambda _: weighted(torch.ones(2), torch.ones(3)), "3 weights for 2 losses"),
        (lambda _: weighted(torch.tensor(1.0), torch.ones(3)), "the loss is one number for the batch; give that of ea"),
        (lambda _: weighted(torch.ones(3), torch.ones(3, 1)), "weights are of shape [3, 1]; give one for each sample"),
    ],
)
def test_bad_input_is_one_line(make, line, batch):
    with pytest.raises(Refused) as refused:
        make(batch[3])
    assert str(refused.value).startswith(line)


@pytest.mark.parametrize(
    ("timesteps", "line"),
    [
        (500, "timesteps is 500; give a tensor of the 3 samples' timesteps, or of one for all"),
        (torch.ones(2), "timesteps is of shape [2]; there are 3 samples: give [3]"),
        (torch.ones(3, 1), "timesteps is of shape [3, 1]; there are 3 samples: give [3]"),
    ],
)
def test_timesteps_that_are_none_are_said(timesteps, line, batch):
    noisy, _, _, empty = batch
    with pytest.raises(Refused) as refused:
        NormFilter(1.0, empty)(Network(), noisy, timesteps, noisy)
    assert str(refused.value) == line
    entropy = EntropyFilter(1.0)
    entropy._scores = torch.ones(3)
    with pytest.raises(Refused) as refused:
        entropy(timesteps=timesteps)
    assert str(refused.value) == line


@pytest.mark.parametrize("timestep", [torch.tensor(500), torch.tensor([500])])
def test_one_timestep_for_all(timestep, batch):
    noisy, _, text, empty = batch
    network = Network()
    NormFilter(1.0, empty)(network, noisy, timestep, noisy)
    assert network.asked[-1][1] == [500, 500, 500]


def test_an_empty_caption_of_another_width_is_said():
    unet = tiny.sd().unet
    noisy, steps = torch.zeros(1, 4, 8, 8), torch.tensor([500])
    width = unet.config.cross_attention_dim
    with pytest.raises(Refused) as refused:
        NormFilter(1.0, torch.zeros(1, 7, width + 1))(unet, noisy, steps, noisy)
    said = f"empty is of shape [1, 7, {width + 1}], which the network cannot take where it took captions; encode"
    assert str(refused.value).startswith(said)


def test_another_error_of_the_network_stays_its_own(batch):
    noisy, steps, _, empty = batch

    class Fails(Network):
        def forward(self, *_):
            raise RuntimeError("CUDA error")

    with pytest.raises(RuntimeError, match="CUDA error") as raised:
        NormFilter(1.0, empty)(Fails(), noisy, steps, noisy)
    assert not isinstance(raised.value, Refused)


def test_a_filter_that_leaves_out_everything_is_said_once(caplog):
    def told():
        return [record.getMessage() for record in caplog.records]

    norm, high = NormFilter(0.1, torch.ones(1, 7, 2)), torch.tensor([0.5, 0.25])
    for _ in range(4):
        norm.weigh(high)
    norm.weigh(torch.tensor([0.5, 0.05]))
    norm.weigh(torch.tensor([math.nan, math.nan]))  # not judged, and so trained on
    for _ in range(4):
        norm.weigh(high)
    assert told() == []
    for _ in range(20):
        norm.weigh(high)
    assert told() == [
        "text_noise_norm left out every sample of 5 steps in a row (scores up to 0.5, threshold 0.1): nothing is"
        " learned there; measure the threshold on ordinary samples"
    ]
    scaled = NormFilter(0.1, torch.ones(1, 7, 2), "scale")
    for _ in range(9):
        scaled.weigh(high)
    assert len(told()) == 1


def test_the_door_has_it():
    assert memguard.training is training and set(training.__all__) <= set(dir(training))


def test_a_loop_with_a_filter_learns_a_duplicate_less():
    """A network of one row for the caption, which is shown every time: the filter keeps the row from its target."""
    target = torch.full((1, 1, 2, 2), 3.0)

    class Row(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.row = torch.nn.Parameter(torch.zeros(()))

        def forward(self, noisy, timesteps, text):
            return (self.row * text.sum()).expand_as(noisy)

    losses = {}
    for name, norm in (("plain", None), ("filtered", NormFilter(0.5, torch.zeros(1, 1, 1)))):
        network, steps = Row(), torch.tensor([900])
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(50):
            noisy = torch.zeros(1, 1, 2, 2)
            predicted = network(noisy, steps, torch.ones(1, 1, 1))
            each = functional.mse_loss(predicted, target, reduction="none")
            weights = torch.ones(1) if norm is None else norm(network, noisy, steps, predicted)
            optimizer.zero_grad()
            weighted(each, weights).backward()
            optimizer.step()
        losses[name] = float(each.detach().mean())
    assert losses["plain"] < 0.01 and losses["filtered"] > 4


def test_each_noise_level_has_its_threshold(batch):
    noisy, steps, text, empty = batch  # timesteps 900, 500, 100
    network, rms = Network(), noisy.flatten(1).pow(2).mean(1).sqrt()
    scores = (rms * torch.tensor([0.5, 2.0, 0.0])).tolist()
    levels = {800: scores[0] * 2, 500: scores[1] / 2}
    norm = NormFilter(levels, empty, "scale")
    assert norm(network, noisy, steps, network(noisy, steps, text)).tolist() == pytest.approx([1.0, 0.5, 1.0])
    assert norm.rows == 2 and network.asked[-1][1] == [900, 500], "below the lowest level nothing is asked"
    swapped = NormFilter({501: scores[1] / 2, 100: 1e-9}, empty)
    assert swapped(network, noisy, steps, network(noisy, steps, text)).tolist() == [
        float(scores[0] <= scores[1] / 2),
        0.0,
        1.0,
    ]


def test_levels_need_timesteps_and_what_is_below_them_is_not_judged():
    entropy = EntropyFilter({300: 1.0, 600: 2.0})
    scores = torch.tensor([1.5, 1.5, 1.5])
    assert entropy.weigh(scores, "abc", torch.tensor([700, 600, 599])).tolist() == [1.0, 1.0, 0.0]
    assert entropy.weigh(scores, "abc", torch.tensor([299, 300, 0])).tolist() == [1.0, 0.0, 1.0]
    assert {name: entry.count for name, entry in entropy.seen.items()} == {"a": 1, "b": 2, "c": 1}
    with pytest.raises(Refused, match="give the timesteps"):
        entropy.weigh(scores)


@pytest.mark.parametrize("levels", [{}, {500: 0.0}, {500: 1.0, 900: math.nan}])
def test_levels_that_are_no_thresholds_are_refused(levels):
    with pytest.raises(Refused, match="number above 0"):
        EntropyFilter(levels)
