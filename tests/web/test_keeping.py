"""What the page keeps and what it says of the past."""

import pytest

from memguard.records import Attempt, Attribution, Finding, Report, TokenSpan

from .javascript import ask, needs_node

pytestmark = needs_node

WARNING = {
    "kind": "prompt",
    "words": [],
    "verdict": "memorized",
    "score": 2.5891,
    "percentile": 99.876,
    "checkpoint": "a.safetensors",
    "seed": 0,
    "created": "2026-01-02T03:04:05+00:00",
}


def report(run="r", created="2026-01-02T00:00:00"):
    finding = Finding("x", (5.0,), (0.1,), per_step=((5.0,),), verdict="memorized", percentile=99.2)
    words = Attribution("gradient", (TokenSpan("cup", (1,)),), (1.0,), token_scores=(1.0,), layers={"down": (1.0,)})
    return Report(run=run, findings=(finding,), attribution=words, created=created).to_dict()


def mitigated(*attempts):
    finding = Finding("x", (5.0,), (0.1,), per_step=((5.0,),), verdict="memorized", percentile=99.2)
    return Report(run="r", findings=(finding,), attempts=attempts, policy="mitigate").to_dict()


TRIED = Attempt("Padding", ("padded with zeros",), (2.0, 3.0), "memorized", kept=False)
HELPED = Attempt("Noise", ("moved",), (0.5123,), "ordinary", kept=True)


@pytest.mark.parametrize(
    ("attempts", "tone", "text"),
    [
        ((TRIED, HELPED), "ordinary", "Mitigated"),
        ((TRIED,), "memorized", "Could not be mitigated"),
        ((Attempt("Delay", kept=True),), "unknown", "Mitigated, not scored again"),
        ((Attempt("Padding", (), (2.0,), "suspicious", kept=True),), "suspicious", "Still may be memorized"),
        ((), "memorized", "Looks memorized"),
    ],
)
def test_the_verdict_is_that_of_the_picture_that_was_made(attempts, tone, text):
    badge = ask("words", "words.describe(values)", values=mitigated(*attempts))
    assert (badge["tone"], badge["text"]) == (tone, text)
    before = "Before: higher" if attempts else "Higher"
    assert badge["lines"][0] == f"{before} than 99.2 % of ordinary prompts"


def test_attempts_are_told_with_what_became_of_them():
    assert ask("attempts", "attempts.attemptLines(values)", values=mitigated(TRIED, HELPED)) == [
        {"text": "1. Padding: score 2.5, looks memorized; not kept", "details": ["Padded with zeros"]},
        {"text": "2. Noise: score 0.512, looks ordinary", "details": ["Moved"]},
    ]


def test_a_known_prompt_is_said_with_its_evidence():
    assert ask("past", "past.sentence(values)", values=WARNING) == (
        "This prompt looked memorized before (score 2.59, higher than 99.87 % of ordinary prompts, a.safetensors, "
        "seed 0, 2026-01-02). Nothing was computed now."
    )


def test_known_words_are_named():
    words = ["a", "b", "c", "d", "e", "f"]
    values = {**WARNING, "kind": "words", "words": words, "percentile": None, "checkpoint": None, "seed": None}
    assert ask("past", "past.sentence(values)", values=values) == (
        "These words drove a memorized run before: a, b, c, d, e, … (score 2.59, 2026-01-02). Nothing was computed now."
    )


def test_no_percentile_is_rounded_up_to_certainty():
    found = ask("past", "past.sentence(values)", values={**WARNING, "percentile": 100.0})
    assert "higher than at least 99.99 % of ordinary prompts" in found


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ({"enabled": True, "status": "ok", "runs": 1, "bytes": 500}, "1 run remembered, 500 B"),
        (
            {"enabled": False, "status": "ok", "runs": 12, "bytes": 40960},
            "12 runs remembered, 40 KiB; new runs are not",
        ),
        ({"status": "the file is damaged"}, "The memory is off: the file is damaged"),
    ],
)
def test_the_settings_say_what_is_remembered(state, line):
    assert ask("past", "past.memoryLine(state)", state=state) == line


def test_what_is_saved_shows_the_same_badge_and_holds_no_more_than_is_shown():
    values = {"report": report(), "prompt": "p", "check": True, "saved": True}
    kept = ask("kept", "kept.restored({memguard: kept.compact(values)})", values=values)
    assert (kept["prompt"], kept["check"], kept["saved"]) == ("p", True, True)
    assert "per_step" not in kept["report"]["findings"][0]
    assert not {"layers", "token_scores"} & set(kept["report"]["attribution"])
    assert ask("words", "words.describe(report)", report=kept["report"]) == ask(
        "words", "words.describe(report)", report=report()
    )


@pytest.mark.parametrize("properties", [None, {}, {"memguard": 3}, {"memguard": {"report": {"run": "r"}}}])
def test_properties_of_another_making_are_left_alone(properties):
    assert ask("kept", "kept.restored(properties)", properties=properties) is None


@pytest.mark.parametrize(
    ("run", "created", "replaced"),
    [("r", "2026-01-01", True), ("s", "2026-01-01", False), ("s", "2026-01-03", True)],
)
def test_a_fetched_report_replaces_the_same_run_and_older_ones(run, created, replaced):
    entries = {"next": {"report": report(run, created)}, "shown": {"report": report()}}
    assert ask("kept", "kept.replaces(e.next, e.shown)", e=entries) is replaced
    assert ask("kept", "kept.replaces(e.next, null)", e=entries) is True


def test_the_pictures_of_a_prompt_come_the_newest_first():
    code = """((store) => {
        store.add("p", {images: [{filename: "a.png"}, {filename: "b.png", subfolder: "x", type: "temp"}]});
        store.add("p", {text: ["no picture"]});
        store.add("q", {images: [{filename: "c.png"}]});
        store.add("p", {images: [{filename: "d.png"}]});
        const names = store.of("p").map((picture) => picture.filename);
        return [pictures.viewPath(store.of("p")[1]), names, store.of("q").length, store.of("r")];
    })(new pictures.Pictures())"""
    assert ask("pictures", code) == ["/view?filename=b.png&subfolder=x&type=temp", ["d.png", "b.png", "a.png"], 1, []]


def test_pictures_are_found_in_the_history_of_a_prompt():
    outputs = {"8": {"text": ["t"]}, "10": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}}
    assert ask("pictures", "pictures.picturesIn(outputs)", outputs=outputs)[0]["filename"] == "a.png"
    assert ask("pictures", "pictures.picturesIn(undefined)") == []


@pytest.mark.parametrize(
    ("size", "picture", "fits"),
    [
        ([16, 16], (128, 128), True),
        ([16, 16], (128, 152), False),
        ([64, 96], (768, 512), True),
        ([96, 64], (768, 512), False),
    ],
)
def test_a_drawing_with_a_legend_is_no_picture_of_the_run(size, picture, fits):
    assert ask("maps", f"maps.fits({size}, {picture[0]}, {picture[1]})") is fits
