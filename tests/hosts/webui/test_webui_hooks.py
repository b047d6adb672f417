"""Real A1111 and Forge: every hook of ours is broken on purpose. That costs no picture, and under "stop" lets none out.

The functions that are broken are what stands in the hosts' calls, and what those ask first.
"""

import numpy as np
import pytest

from memguard_pack.tests.hosts.webui.test_webui_mitigating import MEMORIZED, ORDINARY, written
from memguard_pack.tests.hosts.webui.test_webui_troubles import hooks_left

SMALL = {"width": 64, "height": 64, "steps": 2}
HOST = "memguard.hosts.{host}."
WEBUI = "memguard.hosts.webui."
BEFORE_THE_SCORE = [
    "extension.host.adapter",
    f"{HOST}Watch.before_pass",
    f"{WEBUI}watch.Watch._evidence",
    f"{HOST}Call.__init__",
    f"{WEBUI}model.name_of",
    f"{WEBUI}model.facts",
    f"{WEBUI}prompts.unscored",
    f"{WEBUI}session.Session.begin",
    f"{WEBUI}sampling.Pass.look",
    f"{WEBUI}sampling.Pass.arm",
    f"{WEBUI}sampling.Pass.follow",
    f"{WEBUI}treated.Treated._stand",
]
OF_A1111 = ["extension.jobs.of", f"{HOST}Watch.before", f"{HOST}Watch.after", f"{WEBUI}treated.Treated.expect"]
LATER = [
    f"{WEBUI}explanation.Explanation.take",
    f"{WEBUI}explanation.Explanation.words",
    f"{WEBUI}reading.Reader.evidence",
    f"{WEBUI}reading.Reader._take",
    f"{WEBUI}treated.Treated._rows",
    f"{WEBUI}session.Session.end",
    f"{WEBUI}sampling.Pass.scored",
    "extension.gallery.draw",
    "extension.gallery.add",
    "extension.webui._write",
    "extension.api.keep",
]
OF_MITIGATE = [
    "memguard.sampling.Sampling.first",
    "memguard.sampling.Sampling.guided",
    f"{WEBUI}watch.Watch._mitigate",
    f"{WEBUI}edits.Editor._plan",
    f"{WEBUI}edits.Editor._edited",
    f"{WEBUI}treated.Treated.adopt",
    f"{WEBUI}treated.Treated._rows",
]


@pytest.fixture(scope="module")
def profile(server):
    path = written(server, 64)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def plain(server, profile):
    """The pictures without MemGuard, and the number of hooks that others have in the network."""
    before = len(server.said())
    pictures = {prompt: server.generate(prompt=prompt, **SMALL).pictures[0] for prompt in (MEMORIZED, ORDINARY)}
    (left,) = set(hooks_left(server.said()[before:]))
    yield pictures, left
    before = len(server.said())
    for prompt, picture in pictures.items():  # after all that was broken
        assert np.array_equal(server.generate(prompt=prompt, **SMALL).pictures[0], picture)
    assert set(hooks_left(server.said()[before:])) == {left}


def broken(server, name, guard, prompt):
    """Generate while a function of ours is broken; return what was made, and how many hooks were there after it."""
    before = len(server.said())
    wish = f"keep; break {name.format(host='forge' if server.forge else server.host)}"
    made = server.generate(guard, prompt=prompt, neighbour=wish, **SMALL)
    return made, set(hooks_left(server.said()[before:]))


@pytest.mark.parametrize("policy", ["observe", "warn", "mitigate"])
@pytest.mark.parametrize("name", [*BEFORE_THE_SCORE, *OF_A1111, *LATER])
def test_a_broken_hook_costs_no_picture(server, plain, name, policy):
    if name in OF_A1111 and server.host != "a1111":
        pytest.skip("Forge has no such hook")
    guard = {"policy": policy, "explain": "always"}
    if policy == "mitigate":
        guard["mitigation"] = "padding"
    made, left = broken(server, name, guard, ORDINARY)
    assert np.array_equal(made.pictures[0], plain[0][ORDINARY])
    assert left == {plain[1]} or name.endswith("before_pass")  # then ours go right after the neighbour has counted
    assert "is broken" not in str(made.info) and "KeyError" not in str(made.info)


@pytest.mark.parametrize("name", [*BEFORE_THE_SCORE, *OF_A1111])
def test_stop_lets_no_picture_out_without_a_score(server, plain, name):
    if name in OF_A1111 and server.host != "a1111":
        pytest.skip("Forge has no such hook")
    made, left = broken(server, name, {"policy": "stop"}, ORDINARY)
    assert not any(np.array_equal(each, plain[0][ORDINARY]) for each in made.pictures)
    assert "because" in str(made.info) and "is broken" not in str(made.info)
    assert left <= {plain[1]}


@pytest.mark.parametrize("mitigation", ["attention_scaling", "guidance_delay"])
@pytest.mark.parametrize("name", OF_MITIGATE)
def test_a_mitigation_that_breaks_costs_no_picture(server, plain, name, mitigation):
    made, left = broken(server, name, {"policy": "mitigate", "mitigation": mitigation}, MEMORIZED)
    assert left == {plain[1]}
    report = made.reports[-1]
    ended = any(note.startswith("the mitigation ended at model call") for note in report["notes"])
    if report["error"] is not None and not ended:
        assert np.array_equal(made.pictures[0], plain[0][MEMORIZED])
        assert not report["actions"]
