"""``memguard merge``: rows of shards and of whole scans, made here by hand, so that no model is needed."""

import csv
import json
from dataclasses import replace

import pytest

from memguard.calibration import Conditions, Profile, fit
from memguard.lists import merging
from memguard.lists.rows import FLAT, flat, whole
from memguard.lists.shards import Shard, attempt
from memguard.lists.whole import Whole
from memguard.records import Finding, Prescan, Report
from memguard.texts import UNREAD
from tests import command
from tests.spread import spread

MARK = "0123456789ab"
COUNT = 99  # ordinary prompts
SETTINGS = {"seed": "0 + row", "steps": 1, "num images": 1}


def report(index: int, below: int | None, status: str = "ok", rms: float | None = None) -> Report:
    """Of a prompt that scores higher than ``below`` of the ordinary ones."""
    ranked = {} if below is None else {"below": below, "count": COUNT, "p_value": (1 + COUNT - below) / (COUNT + 1)}
    scores = (float(below or 0),) if status == "ok" else ()
    rms = ((rms if rms is not None else 0.01 + (below or 0) / 1e4),) if status == "ok" else ()
    finding = Finding("text_noise_norm", scores, rms, status=status, sigma=14.6, threshold_source="by hand", **ranked)
    return Report(f"run {index}", model="cafe", prompt=f"prompt {index}", sampler="euler", findings=(finding,))


# of 60 prompts, ten score above all ordinary ones, and the others as ordinary ones do
RANKS = [COUNT if index % 6 == 0 else (index * 37) % 90 for index in range(60)]
BOUNDS = [(0, 16), (16, 48), (48, 60)]


def scanned(folder, ranks=RANKS, bounds=BOUNDS, suffix="jsonl", settings=SETTINGS, mark=MARK, skip=()):
    folder.mkdir(exist_ok=True)
    for number, (start, stop) in enumerate(bounds, 1):
        path = folder / Shard(number, len(bounds), start, stop, mark).name(suffix)
        if number not in skip:
            with Whole(path, FLAT if suffix == "parquet" else None) as file:
                for index in range(start, stop):
                    status = "ok" if ranks[index] is not None else "the prompt is no text but NoneType None"
                    made = report(index, ranks[index], status)
                    file.add((flat if suffix == "parquet" else whole)(made, index, settings))
    return folder


def run(capsys, *words) -> tuple[int, str, str]:
    return command.run(capsys, "merge", *words)


def bad(capsys, *words) -> str:
    return command.bad(capsys, "merge", *words)


def table(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_found_prompts_stand_at_the_top_with_what_supports_them(capsys, tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    folder, out = scanned(tmp_path / "s", suffix=suffix), tmp_path / "all.jsonl"
    code, said, err = run(capsys, folder, "--out", out)
    assert (code, err) == (0, "")
    lines = said.splitlines()
    assert lines.pop(0) == "q-value    score  prompt"
    assert lines[0].split()[2:] == ["prompt", "0"] and lines[0].index("prompt") == 18
    assert [line.split("  ")[-1] for line in lines[:10]] == [f"prompt {index}" for index in range(0, 60, 6)]
    assert lines[10] == f"{out}: 60 rows"
    # Storey's estimate: ranks below the middle are half of the others'
    high = sum((1 + COUNT - below) / (COUNT + 1) > 0.5 for below in RANKS)
    share = (1 + high) / 30
    assert lines[11] == (
        "found: 10 of 60 prompts at a false-discovery rate of 10 % (Benjamini-Hochberg, estimated share of ordinary"
        f" prompts {share:.3g})"
    )
    assert lines[12] == (
        "99 ordinary prompts support p-values down to 1/100: at this rate and of so many prompts, 6 or more must score"
        " above all of them for any to be found; 10 do"
    )
    assert len(lines) == 13
    rows = table(out)
    assert [row["index"] for row in rows] == list(range(60))
    assert [row["found"] for row in rows] == [index % 6 == 0 for index in range(60)]
    assert [row["p_value"] for row in rows] == [pytest.approx((1 + COUNT - below) / 100) for below in RANKS]
    assert rows[0]["q_value"] == pytest.approx(share * 60 * 0.01 / 10)


def test_too_few_ordinary_prompts_are_said(capsys, tmp_path):
    ranks = [COUNT, COUNT, *[50] * 58]
    code, said, _ = run(capsys, scanned(tmp_path / "s", ranks), "--ordinary-share", 1, "--fail-on-found")
    assert code == 0
    assert "found: 0 of 60 prompts" in said and "assumed share of ordinary prompts 1)" in said
    assert "6 or more must score above all of them for any to be found; 2 do" in said
    assert "to find 2 takes 299 ordinary prompts, if none of those scores as high" in said


@pytest.mark.parametrize(("above", "found"), [(5, 0), (6, 6)])
def test_as_many_as_are_needed_are_found(capsys, tmp_path, above, found):
    folder = scanned(tmp_path / "s", [*[COUNT] * above, *[50] * (60 - above)])
    values = json.loads(run(capsys, folder, "--ordinary-share", 1, "--fdr", 0.1, "--json")[1])
    assert (values["needed_above_all"], values["found"]) == (6, found)


def test_prompts_on_one_noise_are_ranked_only_if_asked_and_without_an_estimate(capsys, tmp_path):
    ranks = [COUNT, *[80] * 59]  # Storey's estimate would be 1/30
    words = (scanned(tmp_path / "s", ranks, settings=SETTINGS | {"seed": 0}), "--same-noise", "--json")
    assert "raises or lowers their scores together" in bad(capsys, words[0])
    values = json.loads(run(capsys, *words)[1])
    assert (values["ordinary_share"], values["found"]) == (1.0, 0)
    said = run(capsys, *words[:2])[1]
    assert "all prompts were scored on the same noise" in said and "assumed share of ordinary prompts 1)" in said
    values = json.loads(run(capsys, scanned(tmp_path / "own", ranks), "--json")[1])
    assert values["ordinary_share"] == pytest.approx(1 / 30) and values["found"] == 60
    assert json.loads(run(capsys, tmp_path / "own", "--json", "--ordinary-share", 1)[1])["found"] == 0


def test_a_whole_scan_is_merged_as_its_shards_are(capsys, tmp_path):
    folder, one = scanned(tmp_path / "s"), tmp_path / "whole.jsonl"
    one.write_text("".join(path.read_text() for path in sorted(folder.iterdir())))
    outs = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for source, out in zip((folder, one), outs, strict=True):
        assert run(capsys, source, "--out", out, "--fail-on-found")[0] == 1
    assert outs[0].read_bytes() == outs[1].read_bytes()
    with outs[0].open(newline="") as file:
        assert [row["found"] for row in csv.DictReader(file)].count("True") == 10
    flat_rows = tmp_path / "flat.csv"
    with Whole(flat_rows, FLAT) as file:
        for index, below in enumerate(RANKS):
            file.add(flat(report(index, below), index, SETTINGS))
    assert run(capsys, flat_rows, "--out", outs[1], "--force")[0] == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_rows_without_a_score_are_kept_and_counted_for_nothing(capsys, tmp_path):
    out = tmp_path / "out.jsonl"
    ranks = [None if index % 7 == 3 else below for index, below in enumerate(RANKS)]
    _, said, _ = run(capsys, scanned(tmp_path / "s", ranks), "--out", out)
    assert "60 rows, 9 without a score (for example because the prompt is no text but NoneType None)" in said
    assert "of 51 prompts" in said
    assert [row["p_value"] is None for row in table(out)] == [index % 7 == 3 for index in range(60)]
    _, said, _ = run(capsys, tmp_path / "s", "--out", out, "--force", "--found-only")
    assert all(row["found"] for row in table(out)) and 0 < len(table(out)) < 20
    assert "no row has a score" in bad(capsys, scanned(tmp_path / "none", [None] * 60))


def prescanned(folder, ranks=RANKS, promoted=lambda index: index % 6 == 0 or index % 5 == 0):
    """The same scan after a pre-scan that promoted some."""
    settings = SETTINGS | {"prescan": "12345678", "promote": 0.1}
    folder.mkdir(exist_ok=True)
    path = folder / "scan.jsonl"
    with Whole(path) as file:
        for index, below in enumerate(ranks):
            made, look = report(index, below), Prescan(promoted(index), 64, 64, 1.0, 0.01, 0.5, 50, 100)
            finding = made.findings[0]
            if not look.promoted:
                finding = Finding(finding.detector, status="not promoted: above 50 of 100", threshold_source="")
            file.add(whole(replace(made, findings=(replace(finding, prescan=look),)), index, settings))
    return path


def test_prompts_that_a_pre_scan_left_out_count_as_tests_that_find_nothing(capsys, tmp_path):
    path, out = prescanned(tmp_path / "s"), tmp_path / "out.jsonl"
    _, said, err = run(capsys, path, "--out", out)
    promoted = [index for index in range(60) if index % 6 == 0 or index % 5 == 0]
    assert f"{out}: 60 rows\n" in said and err == ""
    assert (
        "found: 10 of 60 prompts at a false-discovery rate of 10 % (Benjamini-Hochberg, assumed share of ordinary"
        " prompts 1)\n"
    ) in said
    assert (
        f"a pre-scan promoted {len(promoted)} of 60 prompts; the others count as tests with p = 1, and copies among"
        " them are not found\n"
    ) in said
    assert "6 or more must score above all of them for any to be found; 10 do" in said
    rows = table(out)
    for row in rows:
        p = (1 + COUNT - RANKS[row["index"]]) / 100 if row["index"] in promoted else 1.0
        assert row["p_value"] == pytest.approx(p)
        assert row["status"] == ("ok" if row["index"] in promoted else "not promoted: above 50 of 100")
    assert rows[0]["q_value"] == pytest.approx(60 * 0.01 / 10)  # of all 60, not of the promoted ones
    values = json.loads(run(capsys, path, "--json")[1])
    assert (values["rows"], values["tests"], values["promoted"], values["without_score"]) == (60, 60, len(promoted), 0)
    assert values["ordinary_share"] == 1.0
    assert "promoted" not in json.loads(run(capsys, scanned(tmp_path / "t"), "--json")[1])
    assert run(capsys, path, "--ordinary-share", 1)[0] == 0
    assert "--ordinary-share: 0.9, but prompts that a pre-scan did not promote all stand at p = 1" in bad(
        capsys, path, "--ordinary-share", 0.9
    )


def test_rows_with_and_without_a_pre_scan_are_not_mixed(capsys, tmp_path):
    path, more = prescanned(tmp_path / "s"), json.dumps(whole(report(60, 5), 60, SETTINGS)) + "\n"
    path.write_text(path.read_text() + more)
    assert "rows before were made with prescan 12345678, this run has none; scan these again" in bad(capsys, path)
    path.write_text(more.replace('"index": 60', '"index": 0') + path.read_text().split("\n", 1)[1])
    assert "rows before do not say their prescan, this run has 12345678" in bad(capsys, path)


def test_a_pre_scan_that_promoted_nobody_found_nobody(capsys, tmp_path):
    path = prescanned(tmp_path / "s", promoted=lambda index: False)
    code, said, _ = run(capsys, path, "--fail-on-found")
    assert code == 0 and "found: 0 of 60" in said
    assert said.endswith("no prompt that was promoted has a score, so nothing can be found\n")
    assert json.loads(run(capsys, path, "--json")[1])["above_all"] == 0


def damage(path, how):
    lines = path.read_text().splitlines(keepends=True)
    if how == "cut":
        path.write_text("".join(lines)[:-20])
    elif how == "short":
        path.write_text("".join(lines[:-2]))
    elif how == "doubled":
        path.write_text("".join([*lines[:4], lines[3], *lines[4:-1]]))
    elif how == "lost":
        path.write_text("".join([*lines[:4], *lines[5:]]))
    elif how == "foreign":
        path.write_text('{"a": 1}\n')
    elif how == "empty":
        path.write_text("")
    else:
        path.write_bytes(b"\xff\x00" * 40)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("cut", "it cannot be read behind 31 rows"),
        ("short", "it holds 30 of 32 rows"),
        ("doubled", "row 19 stands where 20 belongs"),
        ("lost", "row 21 stands where 20 belongs"),
        ("foreign", "it cannot be read behind 0 rows"),
        ("empty", "it holds 0 of 32 rows"),
        ("bytes", "it cannot be read behind 0 rows"),
    ],
)
def test_a_damaged_shard_is_named_and_the_rest_goes_on_if_asked(capsys, tmp_path, how, says):
    folder, out = scanned(tmp_path / "s"), tmp_path / "out.jsonl"
    damage(sorted(folder.iterdir())[1], how)
    line = bad(capsys, folder, "--out", out)
    assert f"shard 2/3 is damaged, {says}" in line
    assert line.endswith("scan again (--shard 2/3 scores what is damaged anew), or merge the rest with --partial")
    assert not out.exists()
    code, said, err = run(capsys, folder, "--out", out, "--partial")
    assert code == 0 and f"shard 2/3 is damaged, {says}" in err
    assert [row["index"] for row in table(out)] == [*range(16), *range(48, 60)]
    assert "of 28 prompts" in said  # no row of the damaged one counts


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_prompts_that_were_cut_are_counted(capsys, tmp_path, monkeypatch, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    plain, note = report, f"the text encoder {UNREAD} 9 words"

    def cut(index, *rest):
        return replace(plain(index, *rest), notes=("a note", note) if index in (3, 20) else ("a note",))

    monkeypatch.setitem(globals(), "report", cut)
    folder = scanned(tmp_path / "s", suffix=suffix)
    code, _, err = run(capsys, folder, "--json")
    said = note if suffix == "jsonl" else f"a note; {note}"
    assert (code, err) == (0, f"memguard merge: 2 of 60 prompts were cut: {said}\n")


@pytest.mark.parametrize("how", ["cut", "short", "doubled", "lost", "foreign", "empty", "bytes"])
@pytest.mark.parametrize("tail", [7, 1 << 16])
def test_what_is_damaged_is_not_taken_for_done(tmp_path, monkeypatch, how, tail):
    monkeypatch.setattr(merging, "TAIL", tail)
    path = sorted(scanned(tmp_path / "s").iterdir())[1]
    assert merging.is_whole(path) and merging.has_end(path)
    damage(path, how)
    assert not merging.is_whole(path)
    assert merging.has_end(path) == (how == "lost")  # in the middle, where only the reading of all rows looks


def test_a_shard_without_rows_is_whole(tmp_path):
    path = tmp_path / Shard(1, 9, 0, 0, MARK).name("jsonl")
    path.touch()
    assert merging.is_whole(path) and merging.has_end(path)
    path.write_text("{")
    assert not merging.is_whole(path)


def test_a_damaged_parquet_shard_is_named(capsys, tmp_path):
    pytest.importorskip("pyarrow")
    folder = scanned(tmp_path / "s", suffix="parquet")
    path = sorted(folder.iterdir())[2]
    assert merging.is_whole(path) and merging.has_end(path)
    path.write_bytes(path.read_bytes()[:-30])
    assert not merging.is_whole(path) and not merging.has_end(path)
    assert "shard 3/3 is damaged, it cannot be read behind 0 rows" in bad(capsys, folder)


def test_missing_shards_are_named_with_why(capsys, tmp_path):
    folder = scanned(tmp_path / "s", skip=(1, 3))
    with pytest.raises(RuntimeError), attempt(folder, Shard(3, 3, 48, 60, MARK), 3):
        raise RuntimeError("no memory")
    line = bad(capsys, folder)
    assert "shard 1/3 is missing; shard 3/3 is missing, 1 tries failed: RuntimeError: no memory; scan again" in line
    assert run(capsys, folder, "--partial")[0] == 0


def test_shards_that_do_not_belong_together_are_refused(capsys, tmp_path):
    folder = scanned(tmp_path / "s")
    scanned(folder, mark="f" * 12, bounds=[(0, 60)])
    line = bad(capsys, folder)
    assert (
        f"holds several scans: {'f' * 12} (1 of 1 shards), {MARK} (3 of 3 shards); choose one with --settings" in line
    )
    assert run(capsys, folder, "--settings", MARK)[0] == 0
    other = scanned(tmp_path / "t")
    (other / Shard(2, 3, 16, 48, MARK).name("parquet")).touch()
    assert "is there twice" in bad(capsys, other)
    gap = scanned(tmp_path / "gap", bounds=[(0, 16), (20, 40)])
    assert "begins at row 20, and the shard before ends at 16" in bad(capsys, gap)
    mixed = scanned(tmp_path / "m", skip=(2,))
    scanned(mixed, settings=SETTINGS | {"number format": "float16"}, skip=(1, 3))
    assert "rows before were made with" in bad(capsys, mixed) or "do not say their" in bad(capsys, mixed)


def profile(tmp_path, detector="text_noise_norm", **changes):
    conditions = {
        "model": "cafe", "family": "sd15", "latent": (8, 8), "sigma": 14.6, "timestep": 999.0, "steps_scored": 1,
        "num_steps": 20, "scheduler": "euler", "reference": "negative", "dtype": "float32", "guidance_scale": 7.5,
    }  # fmt: skip
    path = tmp_path / "profile.json"
    among = {detector: fit(spread(0.01, 0.2, 320))}
    path.write_text(Profile(Conditions(**conditions | changes), among).to_json())
    return path, among[detector]


def test_scores_can_be_ranked_afterwards(capsys, tmp_path):
    path, among = profile(tmp_path)
    folder, out = scanned(tmp_path / "s", [None, *[0] * 59]), tmp_path / "out.jsonl"
    assert run(capsys, folder, "--profile", path, "--out", out)[0] == 0
    assert table(out)[5]["p_value"] == among.p_value(0.01)
    unranked = tmp_path / "unranked.jsonl"
    unranked.write_text(json.dumps(whole(report(0, None), 0, SETTINGS)) + "\n")
    assert "row 0 was not ranked (by hand); give --profile FILE" in bad(capsys, unranked)
    assert run(capsys, unranked, "--profile", path)[0] == 0
    path, _ = profile(tmp_path, model="beef")
    assert "profile.json: the profile is for model beef, this is cafe" in bad(capsys, folder, "--profile", path)
    path, _ = profile(tmp_path, "attention_entropy")
    assert "has no text_noise_norm; it has attention_entropy" in bad(capsys, unranked, "--profile", path)


def test_a_tail_is_named_as_an_assumption(capsys, tmp_path):
    pytest.importorskip("scipy")
    path, among = profile(tmp_path)
    source, out = tmp_path / "scan.jsonl", tmp_path / "out.jsonl"
    far = [0.1, *[0.009] * 49]
    rows = [whole(report(index, 0, rms=rms), index, SETTINGS) for index, rms in enumerate(far)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "--tail needs --profile" in bad(capsys, source, "--tail", "generalized-pareto")
    assert "found: 1 of 50" not in run(capsys, source, "--profile", path, "--ordinary-share", 1, "--fdr", 0.01)[1]
    words = ("--profile", path, "--ordinary-share", 1, "--fdr", 0.01, "--tail", "generalized-pareto", "--out", out)
    _, said, _ = run(capsys, source, *words)
    assert "found: 1 of 50" in said
    assert "ASSUMED: above the highest 32 of 320 ordinary prompts scores follow a generalised Pareto" in said
    assert "support p-values down to" not in said
    assert [row["found"] for row in table(out)] == [True, *[False] * 49]
    assert table(out)[1]["p_value"] == among.p_value(0.009)


def test_bad_input_is_one_line_and_nothing_of_others_is_written_over(capsys, tmp_path):
    folder = scanned(tmp_path / "s")
    note = tmp_path / "note.jsonl"
    note.write_text('{"mine": 1}\n')
    assert "was not written by memguard" in bad(capsys, folder, "--out", note, "--force")
    assert note.read_text() == '{"mine": 1}\n'
    out = tmp_path / "out.csv"
    run(capsys, folder, "--out", out)
    assert "is there already; replace it with --force" in bad(capsys, folder, "--out", out)
    one = sorted(folder.iterdir())[0]
    assert "is the same file as" in bad(capsys, one, "--out", one, "--force")
    assert "memguard writes .jsonl, .csv and .parquet" in bad(capsys, folder, "--out", tmp_path / "x.txt")
    assert "no such file or folder" in bad(capsys, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "holds no shards" in bad(capsys, tmp_path / "empty")
    assert "--fdr: 1.0 is not between 0 and 1" in bad(capsys, folder, "--fdr", 1)
    assert "--ordinary-share: 0.0" in bad(capsys, folder, "--ordinary-share", 0)
    assert "the rows have no attention_entropy" in bad(capsys, folder, "--detector", "attention_entropy")


@pytest.mark.parametrize("tail", [7, 1 << 16])
def test_a_shard_is_done_at_its_last_brace_for_all_who_ask(tmp_path, monkeypatch, tail):
    monkeypatch.setattr(merging, "TAIL", tail)
    path = sorted(scanned(tmp_path / "s").iterdir())[1]
    data = path.read_bytes()
    last = len(data.splitlines(keepends=True)[-1])
    for cut in [1, 2, 3, last // 2, last - 1, last, last + 1]:
        path.write_bytes(data[:-cut])
        assert merging.is_whole(path) == merging.has_end(path) == (cut == 1)  # what is cut then is the end of the line


@pytest.mark.parametrize("row", [{"findings": []}, {"index": float("inf")}])
def test_a_row_that_is_none_of_ours_is_damage_and_no_fault(tmp_path, row):
    path = sorted(scanned(tmp_path / "s").iterdir())[1]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:4], json.dumps(json.loads(lines[4]) | row) + "\n", *lines[5:]]))
    assert not merging.is_whole(path)


def test_a_parquet_shard_of_fewer_rows_than_its_name_says_is_not_done(tmp_path):
    pytest.importorskip("pyarrow")
    path = sorted(scanned(tmp_path / "s", suffix="parquet").iterdir())[2]
    shard = Shard.of_name(path.name)
    more = path.with_name(replace(shard, stop=shard.stop + 1).name("parquet"))
    path.rename(more)
    assert not merging.has_end(more) and not merging.is_whole(more)
