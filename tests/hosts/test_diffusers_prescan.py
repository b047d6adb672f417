"""``memguard.prescan`` on tiny pipelines: who is promoted, from which noise, in which forwards, and what is refused."""

import gc
import math
from dataclasses import replace
from itertools import islice

import pytest

pytest.importorskip("diffusers")
import torch

import memguard
from memguard.calibration import ordinary_prompts
from memguard.calibration.profile import fit
from memguard.hosts.diffusers import pipes
from memguard.hosts.diffusers.prescanning import FORWARDS, Sieve, _with
from memguard.hosts.diffusers.scans import Scan
from tests.hosts import tiny

STEPS = {"num_inference_steps": 10}
TEXTS = [f"{text} {i}" for i, text in enumerate(ordinary_prompts()[100:140])]
SMALL = {"height": 8, "width": 8}  # a quarter of the area of the 16 x 16 pixels that the pipeline makes by itself


@pytest.fixture(scope="module")
def pipe():
    return tiny.sd()


@pytest.fixture(scope="module")
def first(pipe):
    return memguard.calibrate(pipe, ordinary_prompts()[:50], **SMALL, **STEPS)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("images", [1, 2])
def test_promoted_prompts_score_as_in_a_scan_and_the_others_keep_their_first_look(pipe, first, own, images):
    settings = {"seed": 3, "own_seeds": own, **STEPS}
    plain = list(memguard.scan(pipe, TEXTS, num_images=images, **settings))
    looks = [report.findings[0] for report in memguard.scan(pipe, TEXTS, profile=first, **SMALL, **settings)]
    rate = sorted(look.p_value for look in looks)[10]  # one of them is on the border
    found = list(memguard.prescan(pipe, TEXTS, first, rate, num_images=images, **settings))
    assert [report.prompt for report in found] == TEXTS
    assert [report.seeds for report in found] == [report.seeds for report in plain]
    promoted = [report.findings[0].promoted for report in found]
    assert promoted == [look.p_value <= rate for look in looks] and 10 < sum(promoted) < 30
    for mine, theirs, look in zip(found, plain, looks, strict=True):
        finding, seen = mine.findings[0], mine.findings[0].prescan
        assert (seen.height, seen.width, seen.below, seen.count) == (8, 8, look.below, 50)
        assert (seen.score, seen.rms) == (pytest.approx(look.score, rel=1e-4), pytest.approx(look.mean_rms, rel=1e-4))
        assert seen.p_value == look.p_value
        if seen.promoted:
            assert finding.scores == pytest.approx(theirs.findings[0].scores, rel=1e-4)
            assert len(finding.scores) == images
            measured = {"scores": (), "rms": (), "per_step": (), "prompts": ()}  # the last: where in its forward it was
            assert replace(finding, **measured, prescan=None) == replace(theirs.findings[0], **measured)
            assert (mine.height, mine.width) == (16, 16)
        else:
            assert finding.status == f"not promoted: above {look.below} of 50 ordinary prompts at 8x8"
            assert mine.noise_gap_map is None  # the first look's would be of another size
            assert (finding.scores, finding.score, mine.verdict, mine.flagged) == ((), None, "unknown", False)


def test_a_prompt_takes_the_time_of_both_looks(pipe, first):
    (report,) = memguard.prescan(pipe, TEXTS[:1], first, 0.999, **STEPS)
    assert report.findings[0].scores and report.seconds > 0
    # the reference at both sizes; the small one was made for the probe
    assert report.extra_rows == 1


def test_time_and_rows_are_those_of_both_looks(pipe, first):
    (report,) = memguard.scan(pipe, TEXTS[:1], **STEPS)
    report = replace(report, findings=())
    both = _with(replace(report, seconds=2.0, extra_rows=3), replace(report, seconds=1.0, extra_rows=4), ())
    assert (both.seconds, both.extra_rows) == (3.0, 7)


def test_hooks_of_an_offloaded_model_are_freed_where_the_first_look_is_refused(pipe, first, monkeypatch):
    freed = []
    monkeypatch.setattr(type(pipe), "maybe_free_model_hooks", lambda self: freed.append(self))
    with pytest.raises(ValueError, match="fails"):
        memguard.prescan(pipe, TEXTS, first, seed=2**64, **STEPS)
    assert freed


@pytest.mark.parametrize("own", [False, True])
def test_a_list_that_is_cut_at_a_block_is_scored_to_the_last_bit(pipe, first, own):
    settings = {"batch_size": 4, "own_seeds": own, **STEPS}
    sieve = Sieve(pipe, first, 0.3, **settings)
    assert sieve.block == 16
    whole = list(memguard.prescan(pipe, TEXTS, first, 0.3, **settings))
    parts = list(memguard.prescan(pipe, TEXTS[:32], first, 0.3, **settings))
    parts += memguard.prescan(pipe, TEXTS[32:], first, 0.3, seed=32 if own else 0, **settings)
    assert [report.findings for report in parts] == [report.findings for report in whole]
    again = sieve.reports(TEXTS[16:32], range(16, 32) if own else None)
    assert [report.findings for report in again] == [report.findings for report in whole[16:32]]


def test_a_block_promotes_a_forward_of_ordinary_prompts(pipe, first):
    def block(promote, first=first, **settings):
        sieve = Sieve(pipe, first, promote, **settings, **STEPS)
        return sieve.small.batch_size, sieve.block

    assert block(0.1) == (64, 192)  # 16 prompts of four times the area; three forwards promote 19, two only 13
    assert block(0.25) == (64, 64)
    assert block(0.25, batch_size=8) == (32, 32)
    assert block(0.1, num_images=2) == (64, 128)
    many = replace(first, distributions={"text_noise_norm": fit(range(1, 1000))})
    assert block(0.001, many, batch_size=1) == (4, 4 * FORWARDS)
    pair = replace(first, conditions=replace(first.conditions, images=2))
    assert block(0.1, pair) == (32, 160)


def forwards(pipe, reports):
    """Return how many rows each call of the denoiser had, and of what width, while reports are made."""
    calls = []

    def add(_module, args, kwargs):
        x = args[0] if args else kwargs["sample"]
        calls.append((x.shape[-1], len(kwargs["encoder_hidden_states"])))

    handle = pipe.unet.register_forward_pre_hook(add, with_kwargs=True)
    try:
        return calls, list(reports)
    finally:
        handle.remove()


def test_what_it_costs(pipe, first):
    sieve = Sieve(pipe, first, 0.3, batch_size=4, own_seeds=True, **STEPS)
    calls, reports = forwards(pipe, sieve.reports(TEXTS))
    promoted = sum(report.findings[0].promoted for report in reports)
    assert sum(rows for width, rows in calls if width == 4) == 2 * len(TEXTS)  # with and without the prompt
    assert sum(rows for width, rows in calls if width == 8) == 2 * promoted
    assert [rows for width, rows in calls if width == 4] == 4 * [16] + 2 * [8]


def test_prompts_are_taken_by_blocks_and_nothing_of_them_is_kept(pipe, first):
    taken = []

    def endless():
        while True:
            taken.append(f"prompt {len(taken)}")
            yield taken[-1]

    def tensors() -> int:
        gc.collect()
        return sum(isinstance(o, torch.Tensor) for o in gc.get_objects())

    reports = memguard.prescan(pipe, endless(), first, 0.3, batch_size=4, **STEPS)
    for _ in islice(reports, 20):
        pass
    assert len(taken) == 32
    early = tensors()
    for _ in islice(reports, 32):  # whole blocks later, at the same place of one
        pass
    assert len(taken) == 64
    assert tensors() <= early + 8


def test_what_cannot_be_ranked_is_promoted_and_says_what_is_wrong(first, monkeypatch):
    pipe = tiny.sd()
    inner = Scan._run
    texts = [*TEXTS[:4], None, "a fox", "a house"]

    def run(self, batch):
        for text, _ in batch:
            if text == "a fox" or (text == "a house" and self.call.get("height") == 8):
                raise RuntimeError(f"no {text}")
        return inner(self, batch)

    monkeypatch.setattr(Scan, "_run", run)
    found = list(memguard.prescan(pipe, texts, first, 0.02, **STEPS))
    none, fox, house = (report.findings[0] for report in found[4:])
    assert none.status == "the prompt is no text but NoneType None"
    assert fox.status.startswith("the pipeline failed (RuntimeError)") and found[5].error == "RuntimeError: no a fox"
    assert house.scores and house.status == "ok"
    for finding in (none, fox, house):
        assert (finding.prescan.promoted, finding.prescan.p_value, finding.prescan.score) == (True, None, None)


def test_one_of_several_detectors_promotes(pipe):
    names = ["text_noise_norm", "attention_entropy"]
    first = memguard.calibrate(pipe, ordinary_prompts()[:50], names, **SMALL, **STEPS)
    found = list(memguard.prescan(pipe, TEXTS[:30], first, 0.3, detectors=names, **STEPS))
    for report in found:
        p = [finding.prescan.p_value for finding in report.findings]
        assert {finding.promoted for finding in report.findings} == {min(p) <= 0.3}
        statuses = [finding.status for finding in report.findings]
        assert report.findings[0].promoted or statuses[0] != statuses[1] or p[0] == p[1]


def test_seeds_of_one_s_own_are_those_of_a_scan(pipe, first):
    seeds = [7, 7, 90, 4]
    found = list(memguard.scan(pipe, TEXTS[:4], seeds=seeds, **STEPS))
    alone = [next(memguard.scan(pipe, [t], seed=s, **STEPS)) for t, s in zip(TEXTS[:4], seeds, strict=True)]
    assert [report.seeds[0] for report in found] == seeds
    for one, other in zip(found, alone, strict=True):
        assert one.findings[0].scores == pytest.approx(other.findings[0].scores, rel=1e-5)
    sifted = memguard.prescan(pipe, TEXTS[:4], first, 0.999, seeds=iter(seeds), **STEPS)
    for one, other in zip(sifted, alone, strict=True):
        assert one.findings[0].scores == pytest.approx(other.findings[0].scores, rel=1e-5)
    with pytest.raises(ValueError, match="there are 4 seeds, and more prompts"):
        list(memguard.scan(pipe, TEXTS[:5], seeds=seeds, **STEPS))
    with pytest.raises(ValueError, match="own_seeds or seeds, not both"):
        memguard.scan(pipe, TEXTS, own_seeds=True, seeds=seeds)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"promote": 0}, "promote is 0; give a share of ordinary prompts between 0 and 1"),
        ({"promote": 1.0}, "promote is 1.0"),
        ({"promote": math.nan}, "promote is nan"),
        (
            {"promote": 0.0196},
            "promote is 0.0196, but none can rank higher than 1 of 51 among 50 ordinary prompts; give ",
        ),
        (
            {"height": 8, "width": 8},
            "the profile is of 8 x 8 pixels, the scan of 8 x 8; a first look is a smaller pict",
        ),
        (
            {"height": 64, "width": 16},
            "scan of 16 x 64; a .*of the same shape: memguard calibrate --height 32 --width 8",
        ),
        (
            {"height": 16, "width": 64},
            "scan of 64 x 16; a .*of the same shape: memguard calibrate --height 8 --width 32",
        ),
        ({"seed": 2**64}, "the first look at 8x8 fails: "),
        ({"steps": 2}, "the profile scores 1 step.s., this run 2"),
        ({"reference": "empty"}, "the profile compares with the negative prompt, this run with the empty one"),
        ({"negative_prompt": "blurry"}, "for the empty negative prompt, this run has another one"),
        ({"detectors": ["attention_entropy"]}, "no scores of ordinary prompts by attention_entropy to rank among; it"),
        ({"num_inference_steps": 50}, "the profile is for sigma .*, this run starts at"),
    ],
)
def test_a_profile_of_another_kind_of_scan_is_refused_before_the_first_prompt(pipe, first, settings, says):
    with pytest.raises(ValueError, match=says):
        memguard.prescan(pipe, TEXTS, first, **{**STEPS, **settings})


def test_a_profile_of_another_model_or_of_no_scores_is_refused(pipe, first):
    other = replace(first, conditions=replace(first.conditions, model="beef"))
    with pytest.raises(ValueError, match="the profile is for model beef, this is"):
        memguard.prescan(pipe, TEXTS, other, **STEPS)
    with pytest.raises(ValueError, match="to rank among; it has none"):
        memguard.prescan(pipe, TEXTS, replace(first, distributions={}), **STEPS)


def test_it_works_where_the_model_is_no_unet():
    pipe = tiny.sd3()
    assert (pipes.patch(tiny.sd()), pipes.patch(pipe)) == (1, 2)
    settings = {"height": 32, "width": 32, **STEPS}
    first = memguard.calibrate(pipe, ordinary_prompts()[:50], **{**settings, "height": 16, "width": 16})
    found = list(memguard.prescan(pipe, TEXTS[:10], first, 0.4, own_seeds=True, **settings))
    plain = list(memguard.scan(pipe, TEXTS[:10], own_seeds=True, **settings))
    assert 0 < sum(report.findings[0].promoted for report in found) < 10
    for one, other in zip(found, plain, strict=True):
        if one.findings[0].promoted:
            assert one.findings[0].scores == pytest.approx(other.findings[0].scores, rel=1e-4)


@pytest.mark.parametrize(("patch", "half"), [(2, "24 --width 80"), (8, "16 --width 80")])
def test_half_a_size_is_a_multiple_of_what_the_model_takes(pipe, first, monkeypatch, patch, half):
    monkeypatch.setattr(pipes, "patch", lambda pipe: patch)  # of 2 pixels each
    square = replace(first, conditions=replace(first.conditions, latent=(16, 16)))
    with pytest.raises(ValueError, match=f"memguard calibrate --height {half}$"):
        memguard.prescan(pipe, TEXTS, square, 0.4, height=48, width=160, **STEPS)
