"""The demo's page: its pictures are of the noise that its table was scored from."""

import pytest

pytest.importorskip("diffusers")
from memguard import scan, testbed
from memguard.commands import demo


def test_a_picture_tells_the_verdict_of_the_table(monkeypatch):
    monkeypatch.setattr(demo, "SHOWN", {"verbatim": 2})
    pipe, originals = testbed.pipeline(), testbed.originals()
    prompts = [each.caption for each in originals if each.rate == 1][:6]
    cards = demo.generate(pipe, originals, {"verbatim": prompts})["verbatim"]
    assert [card.report.prompt for card in cards] == [prompts[0], prompts[3]]
    for card, report in zip(cards, scan(pipe, [prompts[0], prompts[3]], seed=demo.SEED), strict=True):
        assert card.report.verdict == report.verdict
        assert card.report.findings[0].score == pytest.approx(report.findings[0].score, rel=1e-4)
