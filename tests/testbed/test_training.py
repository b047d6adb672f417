"""The test bed's training on a handful of pictures: the loss falls, and a resumed run is the same run."""

import numpy as np
import pytest
import torch

for package in ("diffusers", "transformers", "skimage", "sklearn"):
    pytest.importorskip(package)

from testbed import data, train  # noqa: E402


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    data.build(folder / "data", count=60, held=10)
    return folder


def options(steps: int) -> train.Options:
    return train.Options(steps=steps, batch=4, snapshot=1000)


def test_groups_and_shares(work):
    images, meta = data.read(work / "data")
    kinds = [row["kind"] for row in meta]
    assert images.shape[1:] == (128, 128, 3)
    assert [kinds.count(k) for k in ("verbatim", "template", "ordinary", "held")] == [56, 384, 60, 10]
    weights = data.sampling_weights(meta)
    held = np.isin(kinds, ("held", "single_held"))
    assert weights[held].sum() == 0
    rates = np.array([row.get("rate") or 0 for row in meta])
    assert weights[rates == 1].mean() / weights[np.isclose(rates, 1 / 9)].mean() == pytest.approx(9)


def test_only_the_name_is_new_in_a_duplicates_caption(work):
    _, meta = data.read(work / "data")
    shared = set()
    for row in meta:
        if row["kind"] in ("ordinary", "single"):
            shared |= set(row["caption"].lower().replace(",", " ").replace(":", " ").split())
    for row in (r for r in meta if r["kind"] == "verbatim"):
        assert row["name"].lower() not in shared


def test_the_loss_falls(work):
    trainer = train.Trainer(work, options(24))
    losses = [float(np.mean(list(trainer.step().values()))) for _ in range(24)]
    assert np.mean(losses[-6:]) < 0.75 * np.mean(losses[:3])


@pytest.mark.parametrize("done", [2, 4])  # before and after the learning rate began to fall
def test_resuming_is_exact(work, done):
    straight = train.Trainer(work, options(5))
    for _ in range(done):
        straight.step()
    straight.save()
    expected = [straight.step() for _ in range(5 - done)]
    again = train.Trainer(work, options(5))
    again.resume()
    assert again.step_index == done
    assert [again.step() for _ in range(5 - done)] == expected
    for ours, theirs in zip(again.parameters, straight.parameters, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(again.average, straight.average, strict=True):
        assert torch.equal(ours, theirs)


def test_strewn_words_keep_the_frame():
    rng = np.random.default_rng(0)
    row = np.full(77, 49407)
    row[:4] = [49406, 320, 1125, 539]
    for _ in range(50):
        out = train.strew(rng, row)
        assert out[0] == 49406
        assert out[-1] == 49407
        assert len(out) == 77
        assert (out != row).any()


def test_coarse_error_is_the_error_of_the_mean_colour():
    error = torch.ones(2, 4, 16, 16) * torch.tensor([0.5, 0.0]).view(2, 1, 1, 1)
    alpha_bar = torch.tensor([0.5, 0.5]).view(2, 1, 1, 1)
    # weight 1, both grids see 0.25 per channel, four channels, one of two rows
    assert float(train.coarse_error(error, alpha_bar)) == pytest.approx(1.0)
