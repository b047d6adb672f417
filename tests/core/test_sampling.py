"""The driver of a run, on a host of a few lines: evidence, the first call made again, guidance, what it costs."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from memguard import Guard
from memguard.attributions.moment import Encoded
from memguard.mitigations.base import Mitigation, Treatment, View
from memguard.mitigations.edit import Edit
from memguard.mitigations.effect import Effect
from memguard.sampling import SAME, Sampling, Unwatched, same, treated, unscored
from tests.core.toy_host import SIGMA, Call, Texts, Toy, sample

FAMOUS, PLAIN = "a famous fox", "a fox"


@dataclass(frozen=True)
class Half(Mitigation):
    """Halves the gap in every call, and counts the calls."""

    NAME, TITLE, SOURCE = "half", "Half", "test"

    def _treat(self, start, before):
        seen.append(start)
        return replace(before, guidance=(lambda gap, step: steps.append(step) or gap / 2,)).note("halved")


class Fewer(Edit):
    """Leaves a share of the values of the prompt's rows."""

    def __init__(self, share):
        self.share = share

    def __call__(self, q, k, v, site):
        return q, k, torch.where(site.conditional[:, None, None], self.share * v, v)


@dataclass(frozen=True)
class Less(Mitigation):
    """Leaves a thousandth of what the prompt adds."""

    NAME, TITLE, SOURCE = "less", "Less", "test"

    def _treat(self, start, before):
        return replace(before, edits=(Fewer(0.001),)).note("edited")


@dataclass(frozen=True)
class Elsewhere(Mitigation):
    """Starts from twice the noise, which moves no gap of the toy's."""

    NAME, TITLE, SOURCE = "elsewhere", "Elsewhere", "test"

    def _treat(self, start, before):
        return replace(before, noise=2 * start.noise).note("other noise")


@dataclass(frozen=True)
class Word(Mitigation):
    """Exchanges the prompt's text."""

    NAME, TITLE, SOURCE = "word", "Word", "test"

    def _treat(self, start, before):
        prompt = start.encode(["a fox"]).expand(len(start.prompt.text))
        return replace(before, prompt=prompt).note("another word")


seen, steps = [], []


@pytest.fixture(autouse=True)
def fresh():
    seen.clear(), steps.clear()


def call(*prompts, **changes):
    network, texts = Toy(), Texts(*prompts)
    x = SIGMA * torch.randn(len(prompts), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    given = {"prompt": texts.encode(prompts), "negative": texts.encode(len(prompts) * [""])}
    return Call(network, x, given, **changes), Sampling(Guard().begin(steps=4), network, texts)


def test_what_is_missing_has_a_reason_and_what_is_the_same_no_score():
    whole, _ = call(PLAIN)
    assert unscored(whole) is None
    same_text, _ = call("")
    assert unscored(same_text) == SAME
    alone, driver = call(PLAIN, guided=False)
    assert unscored(alone) == alone.why
    empty = driver.texts.encode([""])
    assert unscored(alone, empty) is None and unscored(same_text, empty) == SAME
    joined, _ = call(PLAIN)
    joined.given = {"negative": joined.given["negative"]}  # of several parts: compared by what it predicts alone
    assert unscored(joined) is None and unscored(joined, empty) is None
    nothing, _ = call(PLAIN)
    nothing.predicted = {}
    assert unscored(nothing, empty) == nothing.why


def test_texts_of_another_length_or_vector_are_not_the_same():
    text, pooled = torch.ones(1, 2, 3), torch.ones(1, 4)
    assert same(Encoded(text, pooled), Encoded(text.double(), None))
    assert not same(Encoded(text), Encoded(torch.ones(1, 3, 3)))
    assert not same(Encoded(text, pooled), Encoded(text, 2 * pooled))


@pytest.mark.parametrize(("empty", "rows"), [(False, 0), (True, 2)])
def test_the_evidence_is_of_the_call_and_rows_of_ours_are_counted(empty, rows):
    made, driver = call(PLAIN, FAMOUS)
    made.coverage, driver.run.count = torch.ones(1, 1, 8, 8, dtype=torch.bool), 7  # by the host's own counter
    driver.empty = driver.texts.encode([""]) if empty else None
    evidence = driver.evidence(made, 2, (0, 1), unread="not asked")
    assert (evidence.step, evidence.num_steps, evidence.sigma, evidence.timestep) == (2, 7, SIGMA, 999.0)
    assert evidence.coverage is made.coverage
    assert evidence.full_noise and evidence.prompts == (0, 1) and evidence.unread == "not asked"
    gap = evidence.noise_cond - evidence.noise_uncond
    torch.testing.assert_close(
        gap[:, 0], torch.tensor([0.02, 6.0]).reshape(2, 1, 1) * torch.linspace(0, 1, 64).reshape(8, 8)
    )
    assert driver.run.extra_rows == rows and made.network.rows == 4 + rows


def test_a_start_is_what_the_call_was_given():
    made, driver = call(PLAIN, FAMOUS)
    start = driver.start(made)
    assert start.prompt is made.given["prompt"] and start.reference is made.given["negative"]
    assert start.size == (4, 8, 8) and start.texts == (PLAIN, FAMOUS) and start.eos_padded == 2 and start.word is None
    assert start.widths == Toy.widths and start.sigma == SIGMA and torch.equal(start.noise, made.x / SIGMA)
    gap = start.gap(Treatment(noise=2 * start.noise))
    torch.testing.assert_close(gap, made.predicted["prompt"] - made.predicted["negative"])
    again = start.predict(View(start.prompt, 2 * start.noise))
    torch.testing.assert_close(again, made.predicted["prompt"] + 0.1 * made.x / SIGMA)
    assert start.cancelled is driver.cancelled
    assert driver.run.extra_rows == 6
    torch.testing.assert_close(start.gap(Treatment(edits=(Fewer(0.5),))), 0.5 * gap)  # the reference is not edited


def test_a_start_is_compared_with_the_empty_prompt_where_the_score_is():
    made, driver = call(PLAIN, FAMOUS)
    driver.empty = driver.texts.encode(["a fox"])
    start = driver.start(made)
    assert start.reference.text.shape == (2, 1, 2) and bool((start.reference.text[..., 0] == 0.02).all())
    assert start.negative is made.given["negative"]
    alone, driver = call(PLAIN)
    alone.given = {"prompt": alone.given["prompt"]}
    assert driver.start(alone).reference is None


def test_without_a_finding_the_levels_are_those_of_a_stored_profile(monkeypatch):
    asked = []
    monkeypatch.setattr("memguard.sampling.ordinary", lambda *have: asked.append(have) or (0.3, 0.1))
    made, driver = call(PLAIN)
    made.x = torch.zeros(1, 4, 3, 8, 6)
    driver.run = Unwatched(model="00000000cafe0001", family="sdxl", steps=9)
    start = driver.start(made)
    assert (start.threshold, start.typical, start.model, start.family) == (0.3, 0.1, "00000000cafe0001", "sdxl")
    assert asked == [("00000000cafe0001", SIGMA, (24, 6))] and start.size == (4, 3, 8, 6)
    assert driver.count() == 9 and driver.run.carry(Treatment()).done == ()


def test_a_vector_that_the_call_does_not_take_is_not_given_to_it():
    own = {"prompt": Encoded(torch.ones(1, 2, 3))}
    other = Treatment(prompt=Encoded(torch.zeros(1, 2, 3), torch.zeros(1, 4)))
    assert treated(own, other)["prompt"].pooled is None


def test_only_what_differs_is_told_of_a_treated_text():
    given = {"prompt": Encoded(torch.ones(1, 2, 3), torch.ones(1, 4)), "negative": Encoded(torch.zeros(1, 2, 3))}
    kept = Treatment(prompt=Encoded(torch.ones(1, 2, 3, dtype=torch.float64))).note("text")
    effect = Effect(kept)
    found = treated(given, kept, effect)
    assert effect.done == () and found["negative"] is given["negative"] and found["prompt"].text.dtype == torch.float32
    assert torch.equal(found["prompt"].pooled, torch.ones(1, 4))  # the text's own vector stays
    vector = Treatment(prompt=Encoded(torch.ones(1, 2, 3), torch.zeros(1, 4))).note("text")
    effect = Effect(vector)
    treated(given, vector, effect)
    assert effect.done == ("text",)
    away = Treatment(reference=Encoded(torch.ones(1, 2, 3))).note("away from")
    effect = Effect(away)
    assert torch.equal(treated(given, away, effect)["negative"].text, torch.ones(1, 2, 3)) and effect.done == (
        "away from",
    )
    assert treated({"prompt": given["prompt"]}, away) == {"prompt": given["prompt"]}


@pytest.mark.parametrize("images", [None, torch.tensor([1])])
def test_the_first_call_is_made_again_from_other_noise_for_the_images_that_are_treated(images):
    made, driver = call(PLAIN, FAMOUS)
    noise = torch.randn(2, 4, 8, 8)
    treatment = Treatment(noise=noise, images=images).note("noise")
    found = driver.made(made, treatment)
    x = SIGMA * noise if images is None else torch.cat([made.x[:1], SIGMA * noise[1:]])
    torch.testing.assert_close(found.predicted["negative"], made.network(x, made.given["negative"]))
    assert found.effect.done == ("noise",) and driver.run.extra_rows == 4
    kept = driver.made(made, Treatment(noise=made.noise).note("noise"))
    assert kept.effect.done == ()


def test_guidance_gets_the_whole_step_and_nothing_changed_is_none():
    made, driver = call(PLAIN)
    uncond = made.predicted["negative"]
    twice = Effect(Treatment(guidance=(lambda gap, step: steps.append(step) or 2 * gap,)).note("twice"))
    changed = driver.guided(made, 3, twice)
    torch.testing.assert_close(changed, uncond + 2 * (made.predicted["prompt"] - uncond))
    (step,) = steps
    assert (step.index, step.count, step.sigma, step.timestep, step.scale) == (3, 4, SIGMA, 999.0, 7.5)
    assert step.prompt is made.given["prompt"] and twice.done == ()
    assert driver.guided(made, 3, Effect(Treatment(guidance=(lambda gap, step: gap,)))) is None


def flagged(profile, *mitigations, **more):
    return Guard(policy="mitigate", mitigation=list(mitigations), profile=profile(latent=(8, 8)), **more)


@pytest.mark.parametrize("mitigation", [Less(), Word()])
def test_a_memorized_prompt_is_sampled_as_the_treated_one_from_the_first_call_on(profile, mitigation):
    plain, report, rows = sample(Guard(profile=profile()), [FAMOUS])
    assert report.verdict == "memorized" and rows == 8 and report.extra_rows == 0
    made, report, rows = sample(flagged(profile, mitigation), [FAMOUS])
    assert report.attempts[0].kept and report.actions == report.attempts[0].changes and rows == 8 + report.extra_rows
    assert report.scores_after[0] < 0.1 * report.scores_before[0] and report.extra_rows == 2
    if isinstance(mitigation, Word):  # as if that had been the prompt
        torch.testing.assert_close(made, sample(Guard(), [PLAIN])[0])
    assert not torch.allclose(plain, made)


def test_guidance_acts_at_every_call_and_from_the_first_one_on(profile):
    plain, _, _ = sample(Guard(), [FAMOUS])
    made, report, _ = sample(flagged(profile, Half()), [FAMOUS])
    assert report.actions == ("halved",) and [step.index for step in steps] == [0, 1, 2, 3]
    (start,) = seen
    assert start.threshold is not None and math.isclose(start.typical, 0.01, rel_tol=0.1)
    assert not torch.allclose(plain, made)


def test_an_ordinary_prompt_and_the_others_of_a_batch_are_left_to_the_last_bit(profile):
    for prompts in ([PLAIN], [PLAIN, FAMOUS, PLAIN]):
        plain, _, _ = sample(Guard(), prompts)
        for mitigation in (Less(), Word(), Half()):
            made, report, _ = sample(flagged(profile, mitigation), prompts)
            assert bool(report.attempts) == (FAMOUS in prompts)
            assert [torch.equal(*pair) for pair in zip(plain, made, strict=True)] == [each == PLAIN for each in prompts]


def test_every_attempt_is_compared_with_the_empty_prompt_where_that_was_asked(profile):
    guard = flagged(lambda **more: profile(reference="empty", **more), Less(), reference="empty")
    _, report, _ = sample(guard, [FAMOUS], negative=PLAIN)
    assert report.verdict == "memorized" and report.attempts[0].kept
    assert (
        report.extra_rows == 1 + 3
    )  # the score; the call made again, the call made again, and what that is compared with


def test_what_a_call_from_other_noise_is_compared_with_starts_from_that_noise_too(profile):
    made, driver = call(FAMOUS)
    guard = flagged(lambda **more: profile(reference="empty", **more), Elsewhere(), reference="empty")
    driver.run = guard.begin(model="00000000cafe0001", family="sd15", steps=4, sampler="euler", cfg=7.5)
    driver.empty = driver.texts.encode([""])
    driver.run.observe(driver.evidence(made, 0, ()))
    driver.first(made)
    (attempt,) = driver.run.report.attempts
    assert attempt.scores == pytest.approx(driver.run.report.scores_before) and not attempt.kept


def test_a_run_that_took_over_a_verdict_repeats_what_the_first_one_went_on_with(monkeypatch):
    made, driver = call(FAMOUS)
    kept = Treatment(edits=(Fewer(0.5),))
    monkeypatch.setattr("memguard.sampling.takes_over", lambda run: True)
    told = []
    monkeypatch.setattr(
        "memguard.sampling.repeat", lambda run, start, redo, same: told.append(same) or (redo and redo(kept) and kept)
    )
    driver.run.evidence.append(driver.evidence(made, 0, ()))
    treatment, found = driver.first(made)
    assert treatment is kept
    ramp = torch.linspace(0, 1, 64).reshape(8, 8)
    torch.testing.assert_close(found.predicted["prompt"] - found.predicted["negative"], (3 * ramp).expand(1, 4, 8, 8))
    assert driver.first(made, same_prompt=False)[0] is kept and told == [True, False]
    driver.run.evidence.clear()
    assert driver.first(made)[0] is None  # without a score of its own there is nothing to score again
