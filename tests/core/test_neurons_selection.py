"""Statistics, candidates, sweep, refinement and group testing against independent formulas (P14, P16, P18, P19)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from memguard.neurons.activations import ActivationStatistics, Tally
from memguard.neurons.grouping import first, one_by_one, prune, shortest
from memguard.neurons.refinement import refine
from memguard.neurons.selection import Round, candidates, rounds, sweep

LAYERS = ("down", "deep", "mid")


def tallied(rows: torch.Tensor) -> ActivationStatistics:
    tally = Tally()
    for row in rows:
        tally.add({"a": row})
    return tally.result("cafe")


def test_mean_and_unbiased_standard_deviation():
    rows = 1e4 + torch.rand(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = tallied(rows)
    assert found.count == 50 and found.mean["a"].dtype == found.std["a"].dtype == torch.float32
    torch.testing.assert_close(found.mean["a"], rows.mean(0).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.std["a"], rows.std(0, unbiased=True).float(), rtol=1e-5, atol=0)


def test_statistics_need_two_prompts_and_numbers():
    with pytest.raises(ValueError, match="statistics of 1 prompts: give at least 2"):
        tallied(torch.rand(1, 3))
    with pytest.raises(ValueError, match="the activations hold NaN or infinity; run the text encoder in float32"):
        tallied(torch.tensor([[1.0, math.nan]]))


def test_statistics_in_a_file(tmp_path):
    found = tallied(torch.rand(4, 3))
    read = ActivationStatistics.load(found.save(tmp_path / "new" / "s.safetensors"))
    assert torch.equal(read.mean["a"], found.mean["a"]) and torch.equal(read.std["a"], found.std["a"])
    assert (read.count, read.model) == (4, "cafe")
    with pytest.raises(ValueError, match=r"no\.safetensors: no such file"):
        ActivationStatistics.load(tmp_path / "no.safetensors")
    (tmp_path / "text").write_text("no")
    with pytest.raises(ValueError, match="text: is not a memguard-activation-statistics file"):
        ActivationStatistics.load(tmp_path / "text")
    with pytest.raises(ValueError, match="hold 3 neurons for a, and the model has 4 neurons there"):
        found.check({"a": 4}, "cafe")
    with pytest.raises(ValueError, match="hold nothing for b"):
        found.check({"b": 4}, "cafe")


def fake() -> tuple[dict[str, torch.Tensor], ActivationStatistics]:
    drawn = torch.Generator().manual_seed(1)
    mean = {n: torch.rand(40, generator=drawn) for n in LAYERS}
    std = {n: 0.1 + torch.rand(40, generator=drawn) for n in LAYERS}
    return {n: 3 * torch.rand(40, generator=drawn) for n in LAYERS}, ActivationStatistics(mean, std, 9)


@pytest.mark.parametrize("parity", [None, "official"])
def test_candidates_of_every_round(parity):
    activations, statistics = fake()
    for r in rounds():
        found = candidates(activations, statistics, r.theta, r.top_k, parity)
        for name, values in activations.items():
            z = [
                abs(float(a - m)) / float(s)
                for a, m, s in zip(values, statistics.mean[name], statistics.std[name], strict=True)
            ]
            unusual = [i for i in range(40) if z[i] > r.theta]
            top = sorted(range(40), key=lambda i, values=values: -float(values[i]))[: r.top_k]
            assert found[name] == ([*unusual, *top] if parity else sorted({*unusual, *top}))


def test_a_neuron_without_spread_counts_if_it_moves_and_only_then():
    statistics = ActivationStatistics({"a": torch.ones(2)}, {"a": torch.zeros(2)}, 5)
    assert candidates({"a": torch.tensor([1.0, 1.1])}, statistics, 5.0) == {"a": [1]}


@pytest.mark.parametrize(("theta", "k"), [(-1.0, 0), (math.nan, 0), (1.0, -1)])
def test_bad_thresholds(theta, k):
    with pytest.raises(ValueError, match="both are at least 0"):
        candidates(*fake(), theta, k)


def test_nan_activations_are_refused():
    activations, statistics = fake()
    activations["mid"][0] = math.nan
    with pytest.raises(ValueError, match="the prompt's activations hold NaN or infinity"):
        candidates(activations, statistics, 1.0)


def stub(scores):
    asked, left = [], iter(scores)

    def select(r: Round):
        asked.append(r)
        return {"a": list(range(r.top_k))}

    return asked, select, lambda _: next(left)


def test_a_sweep_that_never_reaches_the_threshold_ends_at_theta_1_25():
    """P18: theta = 1 is never evaluated, the indices of 1.25 are kept, the last score becomes the threshold."""
    asked, select, score = stub([0.9 - 0.01 * i for i in range(17)])
    found = sweep(select, score, 0.428, "official")
    assert asked == [Round(5 - 0.25 * i, i) for i in range(16)]
    assert found.round == Round(1.25, 15) and found.lists == {"a": list(range(15))}
    assert found.threshold == found.score == pytest.approx(0.75) and not found.reached


def test_repaired_it_tries_theta_1_too():
    asked, select, score = stub([0.9] * 16 + [0.4])
    found = sweep(select, score, 0.428)
    assert asked[-1] == found.round == Round(1.0, 16)
    assert found.reached and (found.score, found.threshold) == (0.4, 0.428)


def test_a_sweep_ends_where_the_score_is_at_the_threshold():
    asked, select, score = stub([0.9, 0.5, 0.428, 0.1])
    assert sweep(select, score, 0.428, "official").round == asked[-1] == Round(4.5, 2)


def test_refinement_goes_from_the_deepest_layer_up_and_then_neuron_by_neuron():
    """P19 with a scorer that knows what is needed."""
    needed, asked = {("down", 5), ("mid", 2)}, []

    def score(lists):
        blocked = {(n, i) for n, indices in lists.items() for i in indices}
        asked.append(blocked)
        return 0.2 if needed <= blocked else 0.6

    found = refine({"down": [1, 5], "deep": [3, 4], "mid": [2, 9]}, LAYERS, score, 0.428)
    assert found == {"down": [5], "deep": [], "mid": [2]}
    every = {("down", 1), ("down", 5), ("deep", 3), ("deep", 4), ("mid", 2), ("mid", 9)}
    assert asked[0] == every - {("mid", 2), ("mid", 9)} and asked[1] == every - {("deep", 3), ("deep", 4)}
    rest = every - {("deep", 3), ("deep", 4)}
    assert asked[2] == rest - {("down", 1), ("down", 5)}
    assert asked[3:] == [
        rest - {("mid", 2)},
        rest - {("mid", 9)},
        rest - {("mid", 9), ("down", 1)},
        rest - {("mid", 9), ("down", 1), ("down", 5)},
    ]


def test_refinement_removes_only_strictly_below_and_doubles_take_two_removals():
    assert refine({"mid": [1]}, ["mid"], lambda _: 0.428, 0.428) == {"mid": [1]}
    lengths = []
    found = refine(
        {"mid": [1, 2, 1]}, ["mid"], lambda lists: lengths.append(lists["mid"]) or (0.1 if lists["mid"] else 1), 0.428
    )
    assert found == {"mid": [1]} and lengths == [[], [2, 1], [1], []]


def scored(needed, asked):
    return lambda sets: [0.0 if passed else 1.0 for passed in enough(needed, asked)(sets)]


def enough(needed, asked):
    def passes(sets):
        asked.extend(sets)
        return [needed <= s for s in sets]

    return passes


@given(
    some.integers(1, 200).flatmap(
        lambda n: some.tuples(some.just(n), some.sets(some.integers(0, n - 1), min_size=1, max_size=8))
    )
)
def test_group_testing_finds_what_is_needed(case):
    count, needed = case
    ranked, asked = list(range(count)), []
    head = shortest(ranked, enough(needed, asked))
    assert head == ranked[: max(needed) + 1]
    left = prune(head, scored(needed, asked), 0.5, lambda _: True)
    assert needed <= set(left) and (len(head) > 32 or set(left) == needed)


def test_few_questions_for_few_neurons():
    asked = []
    needed = {0, 1, 4, 9}
    head = shortest(list(range(300)), enough(needed, asked))
    assert set(prune(head, scored(needed, asked), 0.5, lambda _: True)) == needed
    assert len(asked) < 40


def test_one_by_one_asks_once_per_item():
    asked = []
    assert one_by_one([5, 1, 2], scored({1}, asked), 0.5) == [1] and asked == [{1, 2}, {2}, {1}]


def test_large_sets_are_only_gone_through_while_they_can_be_afforded():
    asked = []
    assert len(prune(list(range(100)), scored({3}, asked), 0.5, lambda _: False)) == 100 and asked == []


def test_first_asks_in_sections_and_takes_the_last_for_granted():
    asked = []
    assert first(lambda places: [asked.append(p) or p >= 40 for p in places], 64) == 40
    assert len(asked) <= 12
    assert first(lambda places: [False] * len(places), 5) == 4


def test_statistics_of_nemos_scripts_name_the_projection_and_no_number_of_prompts(tmp_path):
    mean, std = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5])
    official = ActivationStatistics({"mid.attn2.to_v": mean}, {"mid.attn2.to_v": std})
    official.check({"mid.attn2": 2}, "any")
    assert official.zscores({"mid.attn2": torch.tensor([2.0, 2.5])})["mid.attn2"].tolist() == [2.0, 1.0]
    again = ActivationStatistics.load(official.save(tmp_path / "s.safetensors"))
    assert (again.count, list(again.mean), list(again.std)) == (0, ["mid.attn2"], ["mid.attn2"])
