"""Real A1111 and Forge: several passes of one picture, and several pictures of one job.

A second pass paints the memorized picture again, if nothing keeps it from that: hires, and what detailers sample inside
of a generation.
"""

import base64

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from memguard_pack.tests.hosts.webui.test_webui_mitigating import MEMORIZED, ORDINARY, written
from memguard_pack.tests.hosts.webui.test_webui_troubles import hooks_left

SMALL = {"width": 64, "height": 64, "steps": 3}
HIRES = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.4}
HIRES |= {"hr_additional_modules": ["Use same choices"], "hr_cfg": 7.5}  # Forge asks for these
FLAGGED = {"memorized": "looks memorized", "suspicious": "may be memorized"}
SECOND, INNER = "second pass of hires", "pass of another extension"


@pytest.fixture(scope="module", autouse=True)
def profile(server):
    path = written(server, 64)
    yield
    path.unlink()


def hires(server, guard, **changes):
    more = HIRES if server.forge else {k: v for k, v in HIRES.items() if k not in ("hr_cfg",)}
    more = {k: v for k, v in more.items() if server.forge or k != "hr_additional_modules"}
    return server.generate(guard, **SMALL | more | {"hr_upscaler": server.upscaler} | changes)


@pytest.mark.parametrize("mitigation", ["padding", "attention_scaling"])
def test_hires_gets_the_treatment_of_the_flagged_first_pass(server, mitigation):
    made = hires(server, {"policy": "mitigate", "mitigation": mitigation}, prompt=MEMORIZED, neighbour="keep")
    first, second = made.reports
    assert first["verdict"] in FLAGGED and first["attempts"][0]["kept"]
    assert first["run"] in [
        finding["carried"] for finding in second["findings"]
    ]  # the verdict is said to be the first pass's
    (attempt,) = second["attempts"]
    assert attempt["mitigation"].endswith("as in the first pass"), attempt
    assert attempt["kept"] and second["actions"], second
    assert "the second pass of hires starts from a picture" in second["notes"]
    said = made.info["infotexts"][0]
    assert f"{SECOND}: {FLAGGED[second['verdict']]}" in said and "mitigated by" in said.partition(SECOND)[2]


@pytest.mark.parametrize("mitigation", ["noise_adjustment", "guidance_delay"])  # of the first steps' noise levels
def test_a_second_pass_that_nothing_acts_on_says_so(server, mitigation):
    made = hires(server, {"policy": "mitigate", "mitigation": mitigation}, prompt=MEMORIZED, neighbour="keep")
    first, second = made.reports
    assert first["attempts"][0]["kept"]
    assert not second["attempts"][0]["kept"] and not second["actions"]
    assert f"{SECOND}: {FLAGGED[second['verdict']]}" in made.info["infotexts"][0]
    assert "could not be mitigated" in made.info["infotexts"][0].partition(SECOND)[2]


def test_an_ordinary_picture_of_two_passes_keeps_every_byte(server):
    plain, made = hires(server, None, prompt=ORDINARY), hires(server, {"policy": "mitigate"}, prompt=ORDINARY)
    assert np.array_equal(plain.pictures[0], made.pictures[0])
    assert [report["extra_rows"] for report in made.reports] == [0, 0]


def test_every_batch_is_named_and_a_grid_names_the_gravest(server):
    """The hosts' API makes no grid, but where pictures are saved; the answer's text is of all."""
    prompts = f"{ORDINARY}|{MEMORIZED}|a blue house"
    made = server.generate({"policy": "warn"}, n_iter=3, neighbour=f"prompts {prompts}", save_images=True, **SMALL)
    mine = made.reports[-3:]
    assert [report["notes"][0] for report in mine] == [f"batch {n} of 3" for n in (1, 2, 3)]
    flagged = FLAGGED[mine[1]["verdict"]]
    assert [report["verdict"] for report in mine[::2]] == ["ordinary", "ordinary"]
    whole = made.info["extra_generation_params"]["MemGuard verdict"]
    assert whole.startswith(f"batch 2 of 3: {flagged}")
    assert "MemGuard score" not in made.info["extra_generation_params"]
    grids, single = made.info["infotexts"][: made.info["index_of_first_image"]], made.info["infotexts"][-3:]
    assert all(f'MemGuard verdict: "batch 2 of 3: {flagged}' in each for each in grids)
    for text, verdict, report in zip(single, ("looks ordinary", flagged, "looks ordinary"), mine, strict=True):
        assert f'MemGuard verdict: "{verdict} (score' in text
        assert f"MemGuard score: {report['findings'][0]['scores'][0]:.4g}" in text


def test_a_detailer_s_pass_is_watched_and_the_session_kept_once(server):
    plain = server.generate(detail=MEMORIZED, prompt=ORDINARY, seed=101, **SMALL)
    made = server.generate({"policy": "warn"}, detail=MEMORIZED, prompt=ORDINARY, seed=101, **SMALL)
    assert np.array_equal(plain.pictures[0], made.pictures[0])
    first, inner = made.reports[-2:]
    assert (first["prompt"], inner["prompt"]) == (ORDINARY, MEMORIZED)
    assert first["verdict"] == "ordinary" and inner["findings"][0]["status"] == "ok"
    assert "another extension sampled this pass inside of the generation" in inner["notes"]
    said = made.info["infotexts"][0]
    assert 'MemGuard verdict: "looks ordinary' in said and f"; {INNER}: " in said
    assert inner["error"] is None and first["error"] is None


def test_every_picture_of_a_batch_has_its_detailer_s_pass(server):
    made = server.generate({"explain": "always"}, detail="a cat", prompt=ORDINARY, batch_size=2, n_iter=2, **SMALL)
    mine = made.reports[-6:]
    assert [report["prompt"] for report in mine] == [ORDINARY, "a cat", "a cat"] * 2
    assert [report["notes"][0] for report in mine] == ["batch 1 of 2"] * 3 + ["batch 2 of 2"] * 3


def test_a_detailer_that_keeps_all_scripts_has_a_session_of_its_own(server):
    made = server.generate({}, detail=f"= {MEMORIZED}", prompt=ORDINARY, seed=102, **SMALL)
    assert [report["prompt"] for report in made.reports[-2:]] == [MEMORIZED, ORDINARY]  # the inner one ends first


def test_a_detailer_s_pass_of_the_flagged_prompt_is_treated_as_the_picture_was(server):
    made = server.generate(
        {"policy": "mitigate", "mitigation": "padding"},
        detail=MEMORIZED,
        prompt=MEMORIZED,
        seed=103,
        neighbour="keep",
        **SMALL,
    )
    first, inner = made.reports[-2:]
    assert first["attempts"][0]["kept"] and inner["attempts"][0]["kept"], inner
    assert inner["actions"] and inner["verdict"] in FLAGGED


def test_stop_refuses_a_detailer_s_pass_and_leaves_the_picture_as_it_was(server):
    """The first pass and the detailer's have the same prompt: the first is stopped; with another it goes on."""
    plain = server.generate(prompt=ORDINARY, seed=104, **SMALL)
    detailed = server.generate(detail=MEMORIZED, prompt=ORDINARY, seed=104, **SMALL)
    settings = {"policy": "stop", "detector": "text_noise_norm"}
    before = len(server.said())
    made = server.generate(settings, detail="", prompt=ORDINARY, seed=104, **SMALL)
    assert np.array_equal(made.pictures[0], plain.pictures[0])
    # a pass that is the same as what it is compared with has no score
    made = server.generate(settings, detail=" ", prompt=ORDINARY, seed=104, **SMALL)
    assert "no score, because" in str(made.info)
    assert not np.array_equal(made.pictures[0], detailed.pictures[0])
    close = np.abs(made.pictures[0].astype(int) - plain.pictures[0].astype(int)).mean()
    assert close < 20, close  # encoded and decoded once more, and no noise in it
    assert len(set(hooks_left(server.said()[before:]))) == 1
    assert len(server.generate(prompt=ORDINARY, n_iter=2, **SMALL).coded) == 2  # nothing is interrupted for good


def test_stop_ends_one_line_of_a_list_and_not_the_list(server):
    given = f"{ORDINARY}\n{MEMORIZED}\na blue house"
    script = {"script_name": "prompts from file or textbox", "script_args": [False, False, "start", given]}
    plain = server.generate(prompt="", **script, **SMALL)
    made = server.generate({"policy": "stop"}, prompt="", **script, **SMALL)
    # beside a grid, where an earlier test asked for one
    lines = [[each for each in one.pictures if each.shape == (64, 64, 3)] for one in (plain, made)]
    assert len(lines[0]) == len(lines[1]) == 3
    assert [np.array_equal(a, b) for a, b in zip(*lines, strict=True)] == [True, False, True]


def test_stop_ends_one_cell_of_a_plot_and_not_the_plot(server):
    """The second cell looks memorized."""
    plot = server.plot(("Prompt S/R", f"{ORDINARY}, {MEMORIZED}, a blue house"))
    asked = {"prompt": ORDINARY, **plot, **SMALL}
    plain, made = server.generate(**asked), server.generate({"policy": "stop"}, **asked)
    cells = [[each for each in one.pictures if each.shape == (64, 64, 3)] for one in (plain, made)]
    assert len(cells[0]) == len(cells[1]) == 3
    assert [np.array_equal(a, b) for a, b in zip(*cells, strict=True)] == [True, False, True]


def test_stop_ends_one_picture_of_a_folder_and_not_the_folder(server, tmp_path):
    """The second picture has no text, so its prompt is the negative one and it has no score."""
    for number, prompt in enumerate((ORDINARY, "", "a blue house")):
        text = PngInfo()
        if prompt:
            text.add_text("parameters", f"{prompt}\nSteps: 3, Sampler: Euler, CFG scale: 7.5, Seed: 3, Size: 64x64")
        picture = Image.fromarray(np.full((64, 64, 3), 60 * (number + 1), np.uint8))
        picture.save(tmp_path / f"{number}.png", pnginfo=text)
    picture = base64.b64encode((tmp_path / "0.png").read_bytes()).decode()
    asked = {"init_images": [picture], "denoising_strength": 0.7, "kind": "img2img", "prompt": "", **SMALL}
    asked |= {"script_name": "folder", "script_args": [str(tmp_path)]}
    plain, made = server.generate(**asked), server.generate({"policy": "stop"}, **asked)
    assert len(plain.coded) == len(made.coded) == 3
    apart = [int(np.abs(a.astype(int) - b).max()) for a, b in zip(plain.pictures, made.pictures, strict=True)]
    # two unguarded runs of Forge may differ by 1 of 255 in the first picture, by what ran before them
    assert [each <= (2 if server.forge else 0) for each in apart] == [True, False, True], apart
    told = ["no score, because" in text for text in made.info["infotexts"]]
    assert told == [False, True, False]  # one processing makes all, and what is said of one is not said of the next


def test_later_parts_of_a_prompt_are_named_as_not_scored(server):
    made = server.generate({}, prompt="a [fox:dog:0.5] on a [roof|lawn]", **SMALL)
    (note,) = made.reports[-1]["notes"]
    assert note.startswith("the prompt changes during the run, and what comes later is not scored: from step 2 on 'a ")


@pytest.mark.parametrize("prompt", ["", "ugly"])
def test_a_prompt_that_is_its_negative_prompt_has_no_score_and_the_true_reason(server, prompt):
    made = server.generate({}, prompt=prompt, negative_prompt=prompt, **SMALL)
    status = made.reports[-1]["findings"][0]["status"]
    assert status == "the prompt and what it is compared with are the same, so there is nothing to score"
