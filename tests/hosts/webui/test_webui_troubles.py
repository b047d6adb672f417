"""Real A1111 and Forge: broken files, several clients, failing extensions and interrupts cost no picture."""

import re
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from memguard_pack.tests.hosts.webui.test_webui_mitigating import MEMORIZED, ORDINARY, mitigated, written


@pytest.fixture
def profile(server):
    path = written(server)
    yield path
    path.unlink()


def said_since(server, before):
    return server.said()[before:]


def hooks_left(said):
    """Return what the neighbour counted after each batch."""
    return [int(number) for number in re.findall(r"neighbour: (\d+) hooks left", said)]


@pytest.mark.parametrize("text", ["{", '{"schema": 99}', "[]", ""], ids=["half", "schema", "list", "empty"])
def test_a_broken_profile_is_named_and_costs_nothing(server, text):
    first = server.generate({})
    model = first.reports[0]["model"]
    path = server.folder / "models" / "memguard" / f"{model}-broken.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    before = len(server.said())
    try:
        plain, watched = server.generate(), server.generate({"policy": "warn"})
        assert np.array_equal(plain.pictures[0], watched.pictures[0])
        assert watched.finding == first.finding and first.finding["verdict"] == "ordinary"  # by the shipped profile
        told = [line for line in said_since(server, before).splitlines() if path.name in line]
        assert len(told) == 1, told
    finally:
        path.unlink()


def test_a_broken_profile_beside_a_good_one(server, profile):
    path = profile.with_name(profile.name.replace("-test", "-broken"))
    path.write_text("{", encoding="utf-8")
    try:
        assert server.generate({"policy": "warn"}, prompt=MEMORIZED).finding["verdict"] == "memorized"
    finally:
        path.unlink()


def test_a_file_in_place_of_the_folder_of_profiles(server):
    folder = server.folder / "models" / "memguard"
    aside = folder.with_name("aside")
    if folder.exists():
        folder.rename(aside)
    folder.write_text("", encoding="utf-8")
    before = len(server.said())
    try:
        plain, watched = server.generate(), server.generate({"policy": "warn"})
        assert np.array_equal(plain.pictures[0], watched.pictures[0])
        assert watched.finding["status"] == "ok" and watched.reports[0]["error"] is None
        told = said_since(server, before) + " ".join(watched.reports[0]["notes"])
        assert str(folder) in told
    finally:
        folder.unlink()
        if aside.exists():
            aside.rename(folder)


def test_a_file_in_place_of_the_folder_of_the_memory(server, profile):
    folder = server.folder / "memguard"
    aside = folder.with_name("aside")
    if folder.exists():
        folder.rename(aside)
    folder.write_text("", encoding="utf-8")
    try:
        plain, watched = server.generate(), server.generate({"policy": "warn"})
        assert np.array_equal(plain.pictures[0], watched.pictures[0])
        (report,) = watched.reports
        assert report["verdict"] == "ordinary" and report["error"] is None
        (note,) = report["notes"]
        assert note.startswith("memory of known prompts is off: ") and str(folder) in note
    finally:
        folder.unlink()
        if aside.exists():
            aside.rename(folder)
    assert server.generate({"policy": "warn"}).reports[0]["notes"] == []


def test_two_clients_at_once(server):
    asked = [{"prompt": ORDINARY, "seed": 3}, {"prompt": "a blue house", "seed": 11}]
    plain = [server.generate(**each) for each in asked]
    with ThreadPoolExecutor(2) as clients:
        made = list(clients.map(lambda each: server.generate({}, **each), asked))
    for each, alone, both in zip(asked, plain, made, strict=True):
        assert np.array_equal(alone.pictures[0], both.pictures[0])
        (report,) = both.reports
        assert report["prompt"] == each["prompt"] and report["seeds"] == [each["seed"]]
        assert f"MemGuard score: {both.finding['scores'][0]:.4g}" in both.info["infotexts"][0]


def test_jobs_of_one_second_keep_their_reports(server):
    """The hosts' name of a job has whole seconds; small pictures need less."""
    name = "20200101000000"
    for seed in (3, 4):
        made = server.generate({}, seed=seed, neighbour=f"job {name}", steps=1, width=64, height=64)
        assert made.info["job_timestamp"] == name
    assert [report["seeds"] for report in made.reports] == [[3], [4]]


@pytest.mark.parametrize("hook", ["process_before_every_sampling", "postprocess_batch", "postprocess"])
@pytest.mark.parametrize("policy", ["observe", "mitigate"])
def test_another_script_that_fails_changes_nothing(server, profile, hook, policy):
    before = len(server.said())
    plain = server.generate(prompt=MEMORIZED)
    guard = {"policy": policy, "mitigation": "attention_scaling"}
    alone = server.generate(guard, prompt=MEMORIZED, neighbour="keep")
    beside = server.generate(guard, prompt=MEMORIZED, neighbour=f"keep; fail {hook}")
    again = server.generate(prompt=MEMORIZED)
    assert f"neighbour: {hook} fails" in said_since(server, before)
    assert np.array_equal(alone.pictures[0], beside.pictures[0])
    assert np.array_equal(plain.pictures[0], again.pictures[0])
    assert np.array_equal(plain.pictures[0], alone.pictures[0]) == (policy == "observe")
    assert beside.reports[0]["error"] is None
    assert beside.finding["scores"] == alone.finding["scores"]
    left = hooks_left(said_since(server, before))
    assert len(left) == 4 and len(set(left)) == 1, left


def test_an_error_inside_the_network_leaves_nothing_behind(server, profile):
    before = len(server.said())
    plain = server.generate(prompt=MEMORIZED)
    with pytest.raises(urllib.error.HTTPError):
        mitigated(server, "attention_scaling", neighbour="keep; fail attention")
    again, watched = server.generate(prompt=MEMORIZED), server.generate({}, prompt=MEMORIZED)
    assert "neighbour: attention fails" in said_since(server, before)
    assert np.array_equal(plain.pictures[0], again.pictures[0])
    assert np.array_equal(plain.pictures[0], watched.pictures[0])
    assert len(watched.reports) == 1 and watched.reports[0]["error"] is None
    left = hooks_left(said_since(server, before))
    assert len(left) == 3 and len(set(left)) == 1, left


@pytest.mark.parametrize("mitigation", ["attention_scaling", "prompt_optimization"])
def test_an_interrupt_leaves_nothing_behind(server, profile, mitigation):
    before = len(server.said())
    plain = server.generate(prompt=MEMORIZED)
    with ThreadPoolExecutor(1) as client:
        running = client.submit(mitigated, server, mitigation, steps=60, neighbour="keep")
        until = time.monotonic() + 300
        while server.get("/sdapi/v1/progress")["state"]["sampling_step"] < 3 and time.monotonic() < until:
            time.sleep(0.2)
        server.post("/sdapi/v1/interrupt", {})
        made = running.result()
    (report,) = made.reports
    assert report["error"] is None and report["verdict"] == "memorized" and report["attempts"]
    again = server.generate(prompt=MEMORIZED)
    assert np.array_equal(plain.pictures[0], again.pictures[0])
    left = hooks_left(said_since(server, before))
    assert len(left) == 3 and len(set(left)) == 1, left
