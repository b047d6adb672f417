"""A detector, a mitigation and a host are added by one file each; here they are added, used together and taken away."""

import pytest
import torch

from memguard import Guard, detectors, mitigations
from memguard.calibration import Conditions, Profile, fit
from tests.core import toy_host
from tests.spread import spread

DETECTOR = """
'''The largest value of the noise gap: a toy.'''

from memguard.records import Finding

NAME, TITLE, NEEDS = "largest", "Largest value", frozenset({"noise_pred"})


def detect(evidence):
    gap = (evidence[0].noise_cond - evidence[0].noise_uncond).flatten(1).abs().amax(1)
    scores = tuple(gap.tolist())
    return Finding(NAME, scores, scores, (scores,), unit="largest value", reference=evidence[0].reference)
"""
MITIGATION = """
'''A smaller noise gap: a toy.'''

from dataclasses import dataclass, replace

from memguard.mitigations.base import Mitigation
from memguard.setting import setting


@dataclass(frozen=True)
class Smaller(Mitigation):
    '''Leave a share of the noise gap.'''

    NAME, TITLE, SOURCE = "smaller", "Smaller gap", "a toy"

    share: float = setting(0.5, "What is left of the noise gap.", least=0, most=1)

    def _treat(self, start, before):
        guidance = (*before.guidance, lambda gap, step: self.share * gap)
        return replace(before, guidance=guidance).note(f"{self.share:g} of the noise gap left")
"""


@pytest.fixture
def added(tmp_path, monkeypatch):
    """A function that puts a file into the folder of a package of ours, as far as Python can tell."""

    def add(package, name, text):
        folder = tmp_path / package.__name__
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        _forget()

    yield add
    monkeypatch.undo()
    _forget()


def _forget():
    detectors.available.cache_clear()
    mitigations._known.cache_clear()


def test_a_detector_is_one_file(added):
    before = list(detectors.available())
    added(detectors, "largest", DETECTOR)
    assert [*before, "largest"] == sorted(detectors.available(), key=[*before, "largest"].index)
    guard = Guard(("largest", "text_noise_norm"))
    _, report, _ = toy_host.sample(guard, ["a famous fox"])
    largest, norm = report.findings
    assert largest.scores == pytest.approx((6.0,), rel=1e-4) and largest.unit == "largest value" and norm.scores


def test_a_mitigation_is_one_file_and_acts_in_a_host_that_is_one_file(added, profile):
    before = mitigations.available()
    added(mitigations, "smaller", MITIGATION)
    assert mitigations.available() == (*before, "smaller")
    assert (
        mitigations.describe("smaller") == "Smaller gap (a toy)" and mitigations.parameters("smaller")["share"] == 0.5
    )
    with pytest.raises(ValueError, match="smaller: share is 2"):
        mitigations.get("smaller", share=2.0)
    guard = Guard(policy="mitigate", mitigation="smaller", profile=profile(latent=(8, 8)))
    made, report, _ = toy_host.sample(guard, ["a famous fox"])
    assert report.actions == ("0.5 of the noise gap left",)
    assert not torch.allclose(made, toy_host.sample(Guard(), ["a famous fox"])[0])


def test_both_act_together(added):
    added(detectors, "largest", DETECTOR)
    added(mitigations, "smaller", MITIGATION)
    conditions = Conditions(
        model="00000000cafe0001",
        family="sd15",
        latent=(8, 8),
        sigma=toy_host.SIGMA,
        timestep=999.0,
        steps_scored=1,
        num_steps=4,
        scheduler="euler",
        reference="negative",
        dtype="float32",
        guidance_scale=7.5,
    )
    known = Profile(conditions, {"largest": fit(spread(0.02, 0.2, 320))})
    guard = Guard("largest", "mitigate", "smaller", known)
    _, report, _ = toy_host.sample(guard, ["a famous fox"])
    assert report.verdict == "memorized" and report.attempts[0].kept
    _, report, _ = toy_host.sample(Guard("largest", "mitigate", "smaller", known), ["a fox"])
    assert report.verdict == "ordinary" and report.attempts == ()


def test_what_is_taken_away_is_gone():
    assert "largest" not in detectors.available() and "smaller" not in mitigations.available()
