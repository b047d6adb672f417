"""Both searches on a model whose neurons are known; rows, cancelling, resuming, and what goes wrong."""

import pytest
import torch

from memguard.neurons import evaluation, localizing, state
from memguard.neurons.attribution import gate_gradients
from memguard.neurons.evaluation import Trials, difference
from memguard.neurons.msssim import ms_ssim
from memguard_pack.tests.core.toy_probe import PLANTED, ToyProbe


class Stopped(Exception):
    pass


def search(probe, mode="fast", parity="repaired", threshold=0.5, **settings):
    trials = Trials(probe, localizing.parity_of(mode, parity), **settings)
    return localizing.search(trials, probe.statistics, "a red fox", mode, threshold)


def named(found):
    return {(layer, index) for layer, indices in found.indices.items() for index in indices}


@pytest.mark.parametrize("parity", ["official", "repaired"])
@pytest.mark.parametrize("mode", ["fast", "official"])
def test_both_modes_find_the_planted_neurons(mode, parity):
    found = search(ToyProbe(), mode, parity)
    assert named(found) == PLANTED
    assert found.ssim_before > 0.5 >= found.ssim_after
    assert (found.scale, found.model, found.count) == (0.0, ToyProbe.model, 3)
    assert f"mode {mode}, parity {parity}, timestep {961 if parity == 'official' else 981}" in found.provenance
    assert "MS-SSIM with 3 taps on 16 x 16 latents" in found.provenance and "prompt: a red fox" in found.provenance


@pytest.mark.parametrize("parity", ["official", "repaired"])
def test_fast_takes_a_tenth_of_the_rows_and_both_are_counted(parity):
    slow, quick = ToyProbe(), ToyProbe()
    official, fast = search(slow, "official", parity), search(quick, "fast", parity)
    assert official.rows == slow.rows.total == sum(slow.calls) and slow.rows.backward == 0
    # four pictures back, at the probe's price of two rows each
    assert fast.rows == quick.rows.total == sum(quick.calls) + quick.rows.backward and quick.rows.backward == 8
    assert fast.rows <= official.rows / 10


def test_official_counts_one_evaluation_of_all_seeds_per_layer_and_neuron():
    probe, stages = ToyProbe(), []
    found = search(probe, "official", "official", progress=lambda p: stages.append((p.stage, p.rows, p.neurons)))
    assert {rows - before for (_, rows, _), (_, before, _) in zip(stages[1:], stages, strict=False)} == {6}
    assert [stage for stage, _, _ in stages[:2]] == ["predictions without blocking", "selection"]
    assert stages[-1][0] == "refinement" and stages[-1][1] == found.rows == probe.rows.forward


@pytest.mark.parametrize("mode", ["fast", "official"])
def test_a_prompt_without_memory_has_an_empty_set(mode):
    probe = ToyProbe(memory=0.0)
    found = search(probe, mode)
    assert found.indices == {} and found.ssim_after is None and found.ssim_before < 0.5
    assert "the prompt does not look memorized" in found.provenance and found.rows == 6


@pytest.mark.parametrize("mode", ["fast", "official"])
def test_where_the_threshold_is_out_of_reach_the_set_holds_what_all_candidates_reach(mode):
    probe = ToyProbe(memory=1.5)
    probe.z["mid_block.attn2"][11] = 0.5  # no candidate at any theta; its activation is among the smallest
    found = search(probe, mode, threshold=0.05)
    assert named(found) <= PLANTED | named(found) and "the threshold was not reached" in found.provenance
    assert ("mid_block.attn2", 11) not in named(found)
    trials = Trials(ToyProbe(memory=1.5))
    trials.probe.z = probe.z
    chosen = localizing.candidates(probe.activations(), probe.statistics, 1.0, 16)
    widest = trials.score({(n, i) for n, indices in chosen.items() for i in indices})
    assert found.ssim_after <= widest + 1e-6


def test_fast_finds_no_larger_set_than_official_when_the_threshold_is_out_of_reach():
    sets = {}
    for mode in ("fast", "official"):
        probe = ToyProbe(memory=1.5)
        probe.z["mid_block.attn2"][11] = 0.5
        sets[mode] = search(probe, mode, "repaired", threshold=0.05)
    assert sets["fast"].count <= sets["official"].count
    assert sets["fast"].rows < sets["official"].rows


@pytest.mark.parametrize("mode", ["fast", "official"])
def test_a_cancelled_search_goes_on_without_repeating_anything(mode, tmp_path, monkeypatch):
    monkeypatch.setattr(state, "PAUSE", 0.0)  # every evaluation is written at once
    whole = search(ToyProbe(), mode)
    path, request = tmp_path / "state.safetensors", {"prompt": "a red fox"}
    left = iter(range(9))

    def cancel():
        if next(left, None) is None:
            raise Stopped

    first = ToyProbe()
    with pytest.raises(Stopped):
        search(first, mode, state=state.State(path, request), cancel=cancel)
    second = ToyProbe()
    found = search(second, mode, state=state.State(path, request))
    assert found == whole
    assert first.rows.total > 0 and first.rows.total + second.rows.total == whole.rows
    third = ToyProbe()
    assert search(third, mode, state=state.State(path, request)).indices == whole.indices
    assert third.rows.total == 0


def test_a_resume_file_of_another_search_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    kept = state.State(path, {"prompt": "a red fox", "seed": 1})
    kept.save(ToyProbe().rows, now=True)
    with pytest.raises(ValueError, match=r"belongs to another search \(seed was 1 and is 2\); give the same settings"):
        state.State(path, {"prompt": "a red fox", "seed": 2})


def test_without_gradients_the_z_scores_rank_and_one_line_says_so(caplog):
    found = search(ToyProbe(quantised=True))
    assert named(found) == PLANTED
    line = (
        "no gradient, so candidates are ranked by their z-score: the weights are quantised (a.weight is float8_e4m3fn)"
    )
    assert line in found.provenance and [r.message.count("\n") for r in caplog.records] == [0]
    assert line in caplog.text


def test_the_attribution_is_the_derivative_of_the_ms_ssim():
    probe = ToyProbe(images=2)
    probe.x, probe.picture = probe.x.double(), probe.picture.double()
    trials = Trials(probe)
    blocked = frozenset({("mid_block.attn2", 7), ("down_blocks.0.attn2", 1)})
    found = trials.gradients(blocked, [0, 1], [0.25], gate_gradients)
    for name, index in [*blocked, ("mid_block.attn2", 11)]:
        values = []
        for step in (-1e-2, 1e-2):
            masks = trials.masks([blocked, blocked])
            masks = {n: 0.25 + 0.75 * masks.get(n, torch.ones(2, w)) for n, w in probe.layers.items()}
            masks[name][:, index] += step
            after = difference(probe.noise(trials.x, trials.t, masks), trials.x)
            values.append(float(ms_ssim(trials.unblocked, after).mean()))
        assert float(found[name][index]) == pytest.approx((values[1] - values[0]) / 2e-2, rel=0.02, abs=1e-4)


def test_rows_of_a_batch_do_not_depend_on_each_other_and_batches_are_halved_when_memory_runs_out():
    sets = [frozenset({("mid_block.attn2", i)}) for i in range(5)]
    alone = [Trials(ToyProbe()).singles([blocked], [1])[0] for blocked in sets]
    probe = ToyProbe()
    trials, real = Trials(probe), probe.noise

    def noise(x, t, masks):
        if len(x) > 3:
            raise torch.OutOfMemoryError
        return real(x, t, masks)

    probe.noise = noise
    assert trials.singles(sets, [1]) == [pytest.approx(score, abs=1e-6) for score in alone]
    assert max(probe.calls) <= 3 and probe.rows.forward == sum(probe.calls) == 6 + 5


def test_nan_is_one_line_with_the_remedy():
    probe = ToyProbe()
    probe.picture = probe.picture * float("nan")
    with pytest.raises(ValueError, match="prediction holds NaN or infinity; run the model in float32"):
        search(probe)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.0}, "threshold is 0.0; give an MS-SSIM above 0 and below 1"),
        ({"mode": "slow"}, "mode is 'slow'; use one of fast, official"),
        ({"parity": "exact"}, "parity is 'exact'; use one of None, official, repaired"),
    ],
)
def test_bad_settings_are_one_line(settings, message):
    with pytest.raises(ValueError, match=message):
        search(ToyProbe(), **settings)


def test_statistics_of_another_model_are_refused():
    probe = ToyProbe()
    other = probe.statistics
    probe.model = "ffff"
    with pytest.raises(ValueError, match="the statistics are of model 00000000cafe0001, and this is model ffff"):
        localizing.search(Trials(probe), other, "a", "fast")


def test_a_constant_channel_is_scaled_to_zero():
    x = torch.randn(2, 3, 8, 8)
    noise = torch.randn(2, 3, 8, 8)
    x[1, 2], noise[1, 2] = 0.0, 3.0
    found = difference(noise, x)
    assert torch.equal(found[1, 2], torch.zeros(8, 8))
    assert found[0].amin((1, 2)).tolist() == [0.0] * 3 and found[0].amax((1, 2)).tolist() == [1.0] * 3


def test_similarity_of_seeds_is_the_largest_over_pairs():
    deltas = torch.rand(3, 2, 16, 16)
    pairs = {p: float(ms_ssim(deltas[p[0]][None], deltas[p[1]][None])) for p in ((0, 1), (0, 2), (1, 2))}
    expected = [max(v for p, v in pairs.items() if i in p) for i in range(3)]
    assert evaluation.similarity_of_seeds(deltas) == pytest.approx(expected, abs=1e-6)
    assert evaluation.similarity_of_seeds(deltas[:1]) == []
