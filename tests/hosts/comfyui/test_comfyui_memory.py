"""Two real ComfyUI servers with one user folder: what a run leaves in the memory, and what a file in trouble costs.

The test bed's checkpoint is exported once per run of the tests, or taken from MEMGUARD_TESTBED_CHECKPOINT. Its verdicts
come from the profile that ships with the package.
"""

import re
import sqlite3
import threading
import urllib.error
from contextlib import closing

import pytest

from memguard_pack.tests.e2e.comfyui import CHECKPOINT, Server, checkpoint_in
from memguard_pack.tests.hosts.comfyui import client, host

pytestmark = pytest.mark.slow

MEMORIZED = "Halley breakfast at noon - press kit"
FLAGGED = ("suspicious", "memorized")  # which of them, a prompt's seed decides
ORDINARY = "a red kettle on a wooden table"
KNOWN, MEMORY = "/memguard/v1/known", "/memguard/v1/memory"


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comfyui")
    checkpoint = checkpoint_in(folder)
    running = [Server(host.root(), folder / "one", checkpoint)]
    try:
        running.append(Server(host.root(), folder / "two", checkpoint, user=folder / "one/user"))
        yield running
    finally:
        for server in running:
            server.close()


@pytest.fixture(scope="module")
def page(servers):
    return client.Client(servers[0].url, workflow="w1")


@pytest.fixture(scope="module")
def other(servers):
    return client.Client(servers[1].url)


@pytest.fixture
def path(servers, page):
    """The memory's file; empty and switched on."""
    file = servers[0].base / "user/memguard/prompts.sqlite3"
    file.unlink(missing_ok=True)
    return file


def graph(text=MEMORIZED, seed=1, **guard):
    """Return a short workflow with MemGuard between checkpoint and sampler and a report after it."""
    settings = {"detectors": "text_noise_norm", "policy": "warn", "sensitivity": 99.0, "steps": 1}
    sampler = {"seed": seed, "steps": 2, "cfg": 7.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": ["5", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    nodes = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": CHECKPOINT}),
        "2": ("CLIPTextEncode", {"text": text, "clip": ["1", 1]}),
        "3": ("CLIPTextEncode", {"text": "", "clip": ["1", 1]}),
        "4": ("EmptyLatentImage", {"width": 128, "height": 128, "batch_size": 1}),
        "5": ("MemGuard", {"model": ["1", 0], **settings, "reference": "negative", **guard}),
        "6": ("KSampler", {**sampler, **links}),
        "7": ("MemGuard_Report", {"latent": ["6", 0], "memguard": ["5", 1]}),
        "8": ("VAEDecode", {"samples": ["7", 0], "vae": ["1", 2]}),
        "9": ("SaveImage", {"images": ["8", 0], "filename_prefix": "memguard"}),
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def report_of(outcome):
    assert outcome.outputs["9"]["images"], "the run made no picture"
    return outcome.outputs["7"]["memguard"][0]


def test_a_flagged_run_is_remembered_and_known_at_once_on_both_servers(page, other, path):
    report = report_of(page.run(graph(seed=11)))
    assert (report["verdict"], report["notes"]) == ("memorized", [])
    question = {"texts": [ORDINARY, "(halley:1.2) breakfast at NOON, press kit"], "checkpoints": [CHECKPOINT]}
    for asking in (page, other):
        answer = asking.ask("POST", KNOWN, question)
        assert answer["status"] == "ok" and answer["warnings"][0] is None
        found = answer["warnings"][1]
        assert (found["kind"], found["verdict"], found["seed"]) == ("prompt", "memorized", 11)
        assert (found["checkpoint"], found["created"]) == (CHECKPOINT, report["created"])
        assert found["score"] == pytest.approx(sum(report["findings"][0]["scores"]))
        assert found["percentile"] == pytest.approx(report["findings"][0]["percentile"])
    assert page.ask("POST", "/api" + KNOWN, question)["warnings"][1] == found
    question["checkpoints"] = ["another.safetensors"]
    assert page.ask("POST", KNOWN, question)["warnings"] == [None, None]
    assert page.ask("GET", MEMORY) == {"enabled": True, "status": "ok", "runs": 1, "bytes": path.stat().st_size}
    assert MEMORIZED.lower().encode() not in path.read_bytes().lower()


def test_the_words_of_a_flagged_run_flag_another_prompt(page, path):
    attribution = report_of(page.run(graph(seed=24, clip=["1", 1])))["attribution"]
    weights = {s["text"]: w for s, w in zip(attribution["spans"], attribution["weights"], strict=True) if s["text"]}
    heavy = sorted(text.casefold() for text, weight in weights.items() if weight >= max(weights.values()) / 2)
    assert "halley" in heavy
    longer = f"a quick sketch of {' and '.join(heavy)}"
    warnings = page.ask("POST", KNOWN, {"texts": [longer, ORDINARY], "checkpoints": [CHECKPOINT]})["warnings"]
    assert (warnings[0]["kind"], warnings[0]["words"], warnings[1]) == ("words", heavy, None)


def test_an_ordinary_run_and_a_stopped_one(page, path):
    assert report_of(page.run(graph(ORDINARY, 12)))["verdict"] == "ordinary"
    stopped = page.run(graph(seed=12, policy="stop"))
    said = stopped.of("execution_error")[0]["exception_message"]
    assert re.match("MemGuard: (looks|may be) memorized", said)
    answer = page.ask("POST", KNOWN, {"texts": [ORDINARY, MEMORIZED]})
    assert answer["warnings"][0] is None and answer["warnings"][1]["verdict"] in FLAGGED
    assert page.ask("GET", MEMORY)["runs"] == 2


def test_clearing_on_one_server_clears_for_both(page, other, path):
    page.run(graph(seed=13))
    assert other.ask("DELETE", MEMORY)["runs"] == 0
    assert page.ask("POST", KNOWN, {"texts": [MEMORIZED]}) == {"status": "ok", "warnings": [None]}


def test_switched_off_nothing_is_remembered(page, other, path):
    assert other.ask("POST", MEMORY, {"enabled": False})["enabled"] is False
    report = report_of(page.run(graph(seed=14)))
    assert report["verdict"] in FLAGGED and report["notes"] == []
    facts = page.ask("GET", MEMORY)
    assert (facts["enabled"], facts["runs"], facts["status"]) == (False, 0, "ok")


def test_a_damaged_file_costs_the_memory_and_nothing_else(page, path):
    path.write_bytes(b"somebody's file" * 300)
    outcome = page.run(graph(seed=15))
    report = report_of(outcome)
    reason = f"{path} is damaged; rename or delete it, and a new one is begun"
    assert report["verdict"] in FLAGGED
    assert report["notes"] == [f"memory of known prompts is off: {reason}"]
    assert outcome.of("memguard.report")[-1]["report"]["notes"] == report["notes"]
    assert page.ask("POST", KNOWN, {"texts": [MEMORIZED]}) == {"status": reason, "warnings": [None]}
    assert page.ask("DELETE", MEMORY)["status"] == reason
    assert path.read_bytes() == b"somebody's file" * 300
    path.unlink()
    assert report_of(page.run(graph(seed=16)))["notes"] == []
    assert page.ask("GET", MEMORY)["runs"] == 1


def test_a_file_that_another_program_holds(page, path):
    page.run(graph(seed=17))
    with closing(sqlite3.connect(path, isolation_level=None)) as holding:
        holding.execute("BEGIN EXCLUSIVE")
        report = report_of(page.run(graph(seed=18)))
    reason = f"{path} is in use by another program; the next run tries again"
    assert report["notes"] == [f"memory of known prompts is off: {reason}"]
    assert report_of(page.run(graph(seed=19)))["notes"] == []
    assert page.ask("GET", MEMORY)["runs"] == 2


def test_two_servers_run_at_once_on_one_file(page, other, path):
    def work(asking, text):
        outcomes.extend(report_of(asking.run(graph(text, seed)))["notes"] for seed in (20, 21, 22))

    outcomes = []
    threads = [threading.Thread(target=work, args=row) for row in ((page, MEMORIZED), (other, ORDINARY))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [[]] * 6
    assert page.ask("GET", MEMORY)["runs"] == other.ask("GET", MEMORY)["runs"] == 6
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_reloaded_page_gets_the_reports_of_its_workflow(page, other, path):
    outcome = page.run(graph(seed=23))
    sent = outcome.of("memguard.report")
    assert {payload["workflow"] for payload in sent} == {"w1"}
    kept = page.ask("GET", "/memguard/v1/reports?workflow=w1")["reports"]
    assert kept[-len(sent) :] == sent
    assert page.ask("GET", "/memguard/v1/reports?workflow=w2") == {"reports": []}
    assert other.run(graph(seed=23)).of("memguard.report")[0]["workflow"] is None


def test_maps_of_a_run_that_is_not_kept(page):
    with pytest.raises(urllib.error.HTTPError) as refused:
        page.ask("GET", "/memguard/v1/maps/none")
    assert refused.value.code == 404
