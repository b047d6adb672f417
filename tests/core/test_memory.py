"""The memory of known prompts: what is flagged, what is kept, and what a missing, full or damaged file does."""

import multiprocessing
import os
import sqlite3
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import pytest

from memguard import database, matching
from memguard.memory import Facts, PromptMemory
from memguard.records import Attribution, Finding, Report, TokenSpan

MODEL, CHECKPOINT = "00000000cafe0001", "bed.safetensors"
PROMPT = "Halley breakfast at noon - press kit"


def report(prompt=PROMPT, verdict="memorized", words=None, model=MODEL, seed=7, **more):
    """Return the report of a run; ``words`` are the weights of an attribution."""
    finding = Finding("text_noise_norm", (2.5,), (0.08,), percentile=99.9, verdict=verdict)
    attribution = None
    if words:
        spans = tuple(TokenSpan(text, (i + 1,)) for i, text in enumerate(words))
        spans += (TokenSpan("", (0,), "bos"),)
        attribution = Attribution("attention", spans, (*map(float, words.values()), 99.0))
    facts = {"prompt": prompt, "model": model, "seeds": (seed,), "created": "2026-01-02T03:04:05+00:00"}
    return Report(**{"run": "r", "findings": (finding,), "attribution": attribution, **facts, **more})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "user" / "memguard" / "prompts.sqlite3"


@pytest.fixture
def memory(path):
    return PromptMemory(path)


def kinds(memory, *texts, checkpoints=()):
    """Return how each text is flagged."""
    status, found = memory.look(texts, checkpoints)
    assert status == "ok"
    return [warning and warning.kind for warning in found]


def number(path):
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT COUNT(*) FROM runs").fetchone()[0]


# --- what counts as the same ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "HALLEY breakfast at noon - press kit",
        "  Halley\n breakfast\tat noon, press kit.",
        "(Halley:1.3) breakfast at ((noon)) - [press] kit",
        "(Halley breakfast : 0.75) at noon - press kit",
        "{Halley} breakfast at noon -- \u201cpress kit\u201d",
        "\uff28alley breakfast at noon - press kit",
        "Hal\u00adley breakfast at noon - press kit",
        "\uff08Halley\uff1a1.3\uff09 breakfast at noon - press kit",
    ],
)
def test_spelling_does_not_hide_a_prompt(text):
    assert matching.normal(text) == "halley breakfast at noon press kit"


@pytest.mark.parametrize("text", ["Halley breakfast at 9:30", "Halley breakfast at noon 1.3", "Hally breakfast"])
def test_another_prompt_is_another_prompt(text):
    assert matching.normal(text) != matching.normal(PROMPT)
    assert matching.normal("at 9:30") == "at 9 30"


def test_composed_and_decomposed_letters_and_sharp_s_are_the_same():
    assert matching.normal("Cafe\u0301 STRASSE") == matching.normal("caf\u00e9 stra\u00dfe") == "caf\u00e9 strasse"


@pytest.mark.parametrize("text", ["", " ", "(:1.3)", "...", "\U0001f600", "\ud800"])
def test_what_has_no_word_is_empty(text):
    assert matching.normal(text) == ""


def test_a_long_run_of_digits_is_read_in_one_go():
    text = "a:" + "1" * 200_000
    assert matching.normal(text) == "a " + "1" * 200_000


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"Halley": 4, "breakfast": 2, "at": 1.9, "noon": 1}, ("breakfast", "halley")),
        ({"red-haired": 2, "girl": 1, ",": 9}, ("girl", "haired", "red")),
        ({"(cup:1.2)": 1}, ("cup",)),
        ({c * 3: 1 for c in "jihgfedcba"}, tuple(c * 3 for c in "cdefghij")),
        ({"cup": 0.0}, ()),
        ({"cup": -1, "noon": -2}, ()),
        ({"cup": float("nan"), "noon": 1}, ("noon",)),
        ({"x" * 41: 2, "noon": 2}, ()),
    ],
)
def test_driving_words_weigh_at_least_half_of_the_heaviest_word(weights, words):
    assert matching.driving_words(report(words=weights).attribution) == words


def test_no_attribution_no_words():
    assert matching.driving_words(None) == ()
    assert matching.driving_words(Attribution("gradient", status="no memory")) == ()


@pytest.mark.parametrize(
    ("words", "clue"),
    [
        (["the", "with"], None),
        (["at", "xy"], None),
        ([], None),
        (["cup", "press", "through"], "press"),
        (["\u732b"], "\u732b"),
    ],
)
def test_stop_words_and_short_words_are_no_clue(words, clue):
    assert matching.clue(words) == clue


# --- what is flagged -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", ["suspicious", "memorized"])
def test_a_known_prompt_is_flagged_with_what_was_found(memory, verdict):
    assert memory.remember(report(verdict=verdict, words={"Halley": 2, "noon": 1}), CHECKPOINT) == "ok"
    status, (found, other) = memory.look(["(halley) BREAKFAST at noon, press kit", "a red kettle"], [CHECKPOINT])
    assert (status, other) == ("ok", None)
    assert (found.kind, found.words, found.verdict) == ("prompt", ("halley", "noon"), verdict)
    assert (found.score, found.percentile, found.seed) == (2.5, 99.9, 7)
    assert (found.checkpoint, found.created) == (CHECKPOINT, "2026-01-02T03:04:05+00:00")


def test_a_text_with_all_driving_words_is_flagged(memory):
    memory.remember(report(words={"Halley": 2, "breakfast": 1.5, "noon": 0.5}))
    texts = ("the breakfast of (Halley:1.2), drawn", "Halley alone", "Halleys breakfast", "breakfast,halley")
    assert kinds(memory, *texts) == ["words", None, None, "words"]
    _, (found, *_) = memory.look(texts)
    assert found.words == ("breakfast", "halley")


def test_stop_words_alone_never_flag(memory):
    memory.remember(report(words={"the": 2, "of": 2}))
    assert kinds(memory, "the end of it") == [None]


def test_a_later_ordinary_verdict_clears_prompt_and_words(memory):
    memory.remember(report(words={"Halley": 2}))
    assert kinds(memory, PROMPT, "comet Halley") == ["prompt", "words"]
    memory.remember(report(verdict="ordinary"))
    assert kinds(memory, PROMPT, "comet Halley") == [None, None]
    memory.remember(report(verdict="suspicious"))
    assert kinds(memory, PROMPT, "comet Halley") == ["prompt", None]


def test_a_run_without_verdict_clears_nothing_and_takes_no_room(memory):
    memory.remember(report())
    memory.remember(report(verdict="unknown"))
    assert kinds(memory, PROMPT) == ["prompt"]
    assert memory.facts().rows == 1


def test_a_prompt_that_was_measured_as_ordinary_is_not_flagged_for_its_words(memory):
    memory.remember(report(words={"Halley": 2}))
    memory.remember(report("comet Halley", "ordinary"))
    assert kinds(memory, "comet Halley", "a comet of Halley") == [None, "words"]


def test_another_model_s_verdict_neither_flags_nor_clears(memory):
    memory.remember(report(words={"Halley": 2}), CHECKPOINT)
    memory.remember(report(verdict="ordinary", model="other"), "other.safetensors")
    assert kinds(memory, PROMPT, "comet Halley", checkpoints=["other.safetensors"]) == [None, None]
    assert kinds(memory, PROMPT, checkpoints=["never seen.safetensors"]) == [None]
    assert kinds(memory, PROMPT, checkpoints=[CHECKPOINT]) == kinds(memory, PROMPT) == ["prompt"]


def test_a_renamed_checkpoint_is_the_same_model_and_a_replaced_one_another(memory):
    memory.remember(report(), "old name.safetensors")
    memory.remember(report("a red kettle", "ordinary"), "new name.safetensors")
    assert kinds(memory, PROMPT, checkpoints=["new name.safetensors"]) == ["prompt"]
    memory.remember(report("a red kettle", "ordinary", model="other"), "new name.safetensors")
    assert kinds(memory, PROMPT, checkpoints=["new name.safetensors"]) == [None]


def test_words_stay_known_when_the_same_prompt_runs_again_without_attribution(memory):
    memory.remember(report(words={"Halley": 2}))
    memory.remember(report(seed=8))
    _, (found, alike) = memory.look([PROMPT, "comet Halley"])
    assert (found.seed, found.words, alike.kind) == (8, ("halley",), "words")


def test_the_largest_seed_a_score_of_infinity_and_an_undecodable_name_are_kept(memory):
    endless = Finding("text_noise_norm", (float("inf"),), (float("nan"),), verdict="memorized")
    assert memory.remember(report(seed=2**64 - 1, findings=(endless,)), "b\udcff.safetensors") == "ok"
    _, (found,) = memory.look([PROMPT], ["b\udcff.safetensors"])
    assert (found.seed, found.score, found.checkpoint) == (2**64 - 1, None, "b?.safetensors")


# --- what is kept --------------------------------------------------------------------------------------------------


def test_the_prompt_is_nowhere_in_the_file(memory, path):
    secret = "Zanzibar lighthouse keeper by moonlight"
    memory.remember(report(secret, words={"Zanzibar": 2, "lighthouse": 1, "keeper": 0.2}, negative_prompt="blurry"))
    memory.remember(report("an ordinary secret", "ordinary", words={"ordinary": 2}))
    for name in path.parent.iterdir():
        held = name.read_bytes().lower()
        assert b"lighthouse zanzibar" in held  # the driving words, in alphabetical order
        for absent in (b"zanzibar lighthouse", b"keeper", b"moonlight", b"an ordinary", b"secret", b"blurry"):
            assert absent not in held, absent


def test_nothing_is_made_before_there_is_something_to_remember(memory, path):
    assert kinds(memory, PROMPT) == [None]
    assert memory.remember(report(prompt=None)) == memory.remember(report(prompt=" ")) == "ok"
    assert memory.remember(report(model="")) == "ok"
    assert memory.facts() == Facts(True, "ok", 0, 0)
    assert not path.parent.exists()


def test_the_oldest_runs_go(path):
    memory = PromptMemory(path, max_rows=3)
    for i in range(5):
        memory.remember(report(f"prompt number {i}"))
    assert memory.facts().rows == 3
    assert kinds(memory, *(f"prompt number {i}" for i in range(5))) == [None, None, "prompt", "prompt", "prompt"]


def test_clearing_forgets_the_bytes_too_and_shrinks_the_file(memory, path):
    for i in range(60):
        memory.remember(report(f"prompt number {i}", words={f"zanzibar{i}": 1}))
    full = memory.facts()
    assert (full.rows, memory.clear()) == (60, "ok")
    empty = memory.facts()
    assert (empty.rows, empty.bytes) == (0, path.stat().st_size) and empty.bytes < full.bytes
    assert b"zanzibar" not in path.read_bytes()
    assert kinds(memory, "prompt number 1") == [None]


def test_switched_off_for_every_program_it_remembers_and_flags_nothing(memory, path):
    memory.remember(report())
    assert memory.enable(False) == "ok"
    other = PromptMemory(path)
    assert other.remember(report("another prompt")) == "ok"
    assert (other.facts().enabled, other.facts().rows, kinds(other, PROMPT)) == (False, 1, [None])
    assert other.clear() == "ok" and other.facts().enabled is False
    assert other.enable(True) == "ok" and memory.facts().enabled is True


# --- a file in trouble ---------------------------------------------------------------------------------------------


def test_a_damaged_file_is_left_alone_and_named_until_it_is_gone(memory, path):
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database at all, but somebody's file" * 40)
    before = path.read_bytes()
    reason = f"{path} is damaged; rename or delete it, and a new one is begun"
    assert memory.remember(report()) == memory.clear() == memory.enable(False) == reason
    assert memory.look([PROMPT]) == (reason, [None])
    assert memory.facts() == Facts(True, reason, 0, len(before))
    assert path.read_bytes() == before
    path.rename(path.with_suffix(".bad"))
    assert memory.facts().status == memory.remember(report()) == "ok"
    assert kinds(memory, PROMPT) == ["prompt"]


def test_damage_in_the_middle_of_the_file(memory, path):
    for i in range(100):
        memory.remember(report(f"prompt number {i}", words={f"zanzibar{i}": 1}))
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))
    for status in (memory.remember(report()), memory.look(["zanzibar1"])[0], memory.facts().status):
        assert status.startswith(f"{path} is damaged; ") and "rename or delete it" in status


def test_values_that_nobody_wrote(memory, path):
    memory.remember(report())
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE runs SET seed = 'seven'")
    status, found = memory.look([PROMPT])
    assert (status.startswith(f"{path} is damaged"), found) == (True, [None])


def test_a_newer_format_and_somebody_else_s_database(memory, path):
    memory.remember(report())
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 2")
    assert memory.remember(report()) == memory.look([PROMPT])[0]
    assert memory.facts().status == (
        f"{path} has format 2, and this MemGuard reads 1; update MemGuard, or rename the file and a new one is begun"
    )
    path.unlink()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE recipes (name)")
    assert memory.remember(report()) == f"{path} is another program's database; rename it, and a new one is begun"


def test_an_empty_file_is_taken_over(memory, path):
    path.parent.mkdir(parents=True)
    path.touch()
    assert kinds(memory, PROMPT) == [None]
    assert memory.remember(report()) == "ok" and kinds(memory, PROMPT) == ["prompt"]


def test_a_full_disk_costs_this_run_s_memory_only(memory, path, monkeypatch):
    memory.remember(report())
    pages, connect = [1], sqlite3.connect

    def small(*args, **kwargs):
        db = connect(*args, **kwargs)
        db.execute(f"PRAGMA max_page_count = {pages[0]}")  # SQLite then answers as on a full disk
        return db

    monkeypatch.setattr(database.sqlite3, "connect", small)
    full = f"no room for {path}; free some space on that disk"
    statuses = [memory.remember(report(f"prompt number {i}", words={"halley" * 6: 1})) for i in range(200)]
    assert set(statuses) == {"ok", full} and statuses[-1] == full
    assert kinds(memory, PROMPT) == ["prompt"]
    assert (memory.facts().status, memory.facts().rows) == (full, 1 + statuses.count("ok"))
    pages[0] = 10_000
    assert memory.remember(report("prompt number 199")) == "ok"
    assert memory.facts().status == "ok" and kinds(memory, "prompt number 199") == ["prompt"]


def test_another_program_that_keeps_writing_costs_this_run_s_memory_only(memory, path):
    memory.remember(report())
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        busy = f"{path} is in use by another program; the next run tries again"
        assert memory.remember(report("another prompt")) == busy
        assert memory.look([PROMPT]) == (busy, [None])
    assert memory.remember(report("another prompt")) == memory.facts().status == "ok"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "user").write_text("a file where a folder should be")
    memory = PromptMemory(tmp_path / "user" / "memguard" / "prompts.sqlite3")
    status = memory.remember(report())
    assert status.startswith(str(tmp_path)) and "cannot be opened for writing; " in status
    assert "allow this program to write to its folder" in status
    assert memory.look([PROMPT]) == ("ok", [None])
    assert memory.facts().status == status


@pytest.mark.skipif(os.name == "nt", reason="folders on Windows have no such rights")
def test_a_read_only_folder_still_flags_what_is_known():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.sqlite3"
        memory = PromptMemory(path)
        memory.remember(report())
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        root = os.geteuid() == 0  # may write anywhere, so it becomes somebody else for a moment
        if root:
            os.seteuid(65534)
        try:
            status = memory.remember(report("another prompt"))
            known = kinds(memory, PROMPT)
            facts = memory.facts()
        finally:
            if root:
                os.seteuid(0)
            Path(folder).chmod(0o755)
    assert status.startswith(f"{path} cannot be opened for writing; ")
    assert (known, facts.status, facts.rows) == (["prompt"], status, 1)


# --- threads and programs ------------------------------------------------------------------------------------------


def test_eight_threads_lose_nothing(memory):
    def work(thread):
        outcomes.extend(memory.remember(report(f"thread {thread} prompt {i}")) for i in range(12))
        outcomes.append(memory.look([PROMPT])[0])

    outcomes = []
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["ok"] * 104
    assert memory.facts().rows == 96


def write_many(path, name, start, outcomes):
    memory = PromptMemory(path)
    start.wait()
    outcomes.put([memory.remember(report(f"{name} prompt {i}")) for i in range(30)])


def test_two_programs_write_at_once(path):
    context = multiprocessing.get_context("spawn")
    start, outcomes = context.Barrier(2), context.Queue()
    programs = [context.Process(target=write_many, args=(path, name, start, outcomes)) for name in ("one", "two")]
    for program in programs:
        program.start()
    statuses = outcomes.get() + outcomes.get()
    for program in programs:
        program.join()
    busy = f"{path} is in use by another program; the next run tries again"
    assert set(statuses) <= {"ok", busy}
    assert number(path) == statuses.count("ok") > 30  # what was answered with "ok" is there, and nothing else
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
