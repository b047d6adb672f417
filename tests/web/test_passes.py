"""Several runs of one prompt on one node, a copied node, and the toasts of many runs."""

import pytest

from memguard.records import Attempt, Finding, Report

from .javascript import ask, needs_node

pytestmark = needs_node

SAID = {"memorized": 3.0, "suspicious": 2.0, "ordinary": 1.0, "unknown": 0.5}


def report(run, verdict="memorized", attempts=(), carried="", created="", **facts):
    finding = Finding("x", (SAID[verdict],), (0.1,), verdict=verdict, percentile=99.2, carried=carried)
    return Report(run=run, findings=(finding,), attempts=attempts, created=created, **facts).to_dict()


def entry(report, prompt="p"):
    return {"report": report, "prompt": prompt, "check": False}


def shown(*reports, prompt="p"):
    """Return what a node shows that got these reports one after the other."""
    code = "list.reduce((shown, report) => passes.gathered(shown, { report, prompt }), null)"
    return ask("passes", code, list=list(reports), prompt=prompt)


KEPT = (Attempt("Padding", ("padded",), (0.5,), "ordinary", kept=True),)
UNSCORED = (Attempt("Padding", ("padded",), kept=True),)
FAILED = (Attempt("Padding", ("left out",)),)
FIRST, GREY, ORDINARY = report("1"), report("2", "unknown"), report("3", "ordinary")
MITIGATED, AGAIN = report("4", attempts=KEPT), report("5", attempts=UNSCORED, carried="4")
UNTREATED = report("6", attempts=FAILED, carried="4")


@pytest.mark.parametrize(
    ("runs", "top"),
    [
        ((FIRST, GREY), "1"),  # hires ends without a verdict
        ((GREY, FIRST), "1"),
        ((ORDINARY, GREY), "3"),
        ((ORDINARY, FIRST, GREY), "1"),
        ((MITIGATED, UNTREATED), "6"),  # painted again
        ((MITIGATED, AGAIN), "4"),
        ((MITIGATED, ORDINARY), "4"),
        ((ORDINARY, MITIGATED), "4"),
        ((FIRST, report("7")), "1"),
        ((report("8", carried="1"), FIRST), "1"),
        ((GREY, report("9", "suspicious"), ORDINARY), "9"),
    ],
)
def test_the_gravest_run_stays_on_top_and_the_others_are_listed(runs, top):
    found = shown(*runs)
    assert found["report"]["run"] == top
    assert [one["run"] for one in found["runs"]] == [one["run"] for one in runs]
    lines = ask("passes", "passes.otherLines(entry)", entry=found)
    assert len(lines) == len(runs) - 1 and all(line["sentence"].startswith("MemGuard: ") for line in lines)


def test_a_run_that_is_told_again_is_one_run_and_may_rise_or_fall():
    found = shown(report("1", "ordinary"), report("2"), report("2", attempts=KEPT))
    assert found["report"]["run"] == "2" and len(found["runs"]) == 2
    assert shown(report("1", "unknown"), report("2", "ordinary"), report("1"))["report"]["run"] == "1"
    assert shown(report("1"), report("2", "suspicious"), report("1", "ordinary"))["report"]["run"] == "2"


def test_the_gravest_stays_however_many_runs_come_after_it():
    found = shown(FIRST, *[report(f"n{i}", "ordinary") for i in range(70)])
    assert found["report"]["run"] == "1"
    assert len(found["runs"]) == 64 and [found["runs"][i]["run"] for i in (0, 1, 63)] == ["1", "n7", "n69"]


def test_another_prompt_begins_anew():
    code = "passes.gathered(passes.gathered(null, first), second).runs.map(({ run }) => run)"
    assert ask("passes", code, first=entry(FIRST), second=entry(GREY, "q")) == ["2"]
    assert ask("passes", code, first=entry(FIRST, None), second=entry(GREY, None)) == ["2"]


def test_lines_name_verdict_and_size_and_end_in_a_count():
    found = shown(FIRST, *[report(f"n{i}", "ordinary", width=768, height=512) for i in range(15)])
    lines = ask("passes", "passes.otherLines(entry)", entry=found)
    assert lines[0]["text"] == "✓ Looks ordinary, 768 × 512" and lines[-1]["text"] == "and 3 more" and len(lines) == 13


def test_a_saved_workflow_keeps_lines_of_the_others():
    found = shown(FIRST, GREY)
    saved = ask("kept", "kept.compact(entry, 5)", entry=found)
    assert [other["text"] for other in saved["others"]] == ["No verdict"] and "findings" not in saved["others"][0]
    back = ask("kept", "kept.restored(properties, 5)", properties={"memguard": saved})
    assert ask("passes", "passes.otherLines(entry)", entry=back)[0]["text"] == "? No verdict"
    again = ask("passes", "passes.gathered(back, next)", back=back, next=entry(ORDINARY))
    assert again["report"]["run"] == "1" and [one["run"] for one in again["runs"]] == ["1", "2", "3"]


def test_a_copied_node_does_not_show_the_original_s_verdict():
    saved = {"memguard": ask("kept", "kept.compact(entry, 5)", entry=shown(FIRST))}
    found = "[5, '5', 6, -1].map((id) => kept.restored(properties, id)?.report.run ?? null)"
    assert ask("kept", found, properties=saved) == ["1", "1", None, None]
    del saved["memguard"]["node"]  # of a version that did not write it
    assert ask("kept", "kept.restored(properties, 6).report.run", properties=saved) == "1"


def test_a_verdict_that_was_taken_over_is_named():
    badge = ask("words", "words.describe(report)", report=report("2", carried="1"))
    assert badge["lines"][-1] == "The verdict of an earlier pass; this one has none of its own"


def test_a_warning_of_the_shown_run_itself_is_none():
    found = shown(report("1", created="2026-01-02T00:00:00"), report("2", "unknown", created="2026-01-02T00:00:09"))
    warning = {"kind": "prompt", "created": "2026-01-02T00:00:00"}
    code = "passes.remindsOf(warning, entry)"
    assert ask("passes", code, warning=warning, entry=found) is True
    assert ask("passes", code, warning={**warning, "created": "2026-01-01T00:00:00"}, entry=found) is False
    assert ask("passes", code, warning={**warning, "kind": "words"}, entry=found) is False
    assert ask("passes", code, warning=warning, entry=None) is False


def test_one_toast_per_workflow_tells_of_all_its_runs():
    code = """((shelf, clock) => {
        const all = new toasts.Toasts(shelf, () => clock.now);
        for (const [workflow, report, at] of told) { clock.now = at; all.tell(workflow, report); }
        return [shelf.standing.map(({ summary, detail }) => [summary, detail]), shelf.added];
    })({
        standing: [], added: 0,
        add(one) { this.standing.push(one); this.added += 1; },
        remove(one) { this.standing = this.standing.filter((other) => other !== one); },
    }, { now: 0 })"""
    said = [{"policy": "warn", "message": f"message {i}"} for i in range(6)]
    told = [["w", said[0], 0], ["w", said[1], 5], ["v", said[0], 6]]
    found, added = ask("toasts", code, told=told)
    assert found == [["MemGuard warning: 2 runs", "message 0\nmessage 1"], ["MemGuard warning", "message 0"]]
    many, _ = ask("toasts", code, told=[["w", one, i] for i, one in enumerate([*said, said[5]])])
    assert many == [["MemGuard warning: 7 runs", "message 3\nmessage 4\nmessage 5\nand 3 more"]]
    later, added = ask("toasts", code, told=[["w", said[0], 0], ["w", said[1], 70000]])
    assert later[-1] == ["MemGuard warning", "message 1"] and added == 2


def test_a_frontend_whose_toasts_have_ids_gets_one_id_per_workflow():
    code = """((said) => {
        const all = new toasts.Toasts({ warning: (...row) => said.push(row), add: () => said.push("twice") }, () => 0);
        for (const report of reports) all.tell("w", report);
        return said;
    })([])"""
    reports = [{"policy": "warn", "message": f"message {i}"} for i in range(2)]
    first, second = ask("toasts", code, reports=reports)
    assert first[1]["id"] == second[1]["id"] == "memguard/w"
    assert second[0] == "MemGuard warning: 2 runs" and second[1]["description"] == "message 0\nmessage 1"
    assert second[1]["duration"] == 60000
