"""Profiles of the WebUIs without a host: what is refused, which prompts go together, what is saved."""

import math
from dataclasses import replace

import pytest

from memguard import Guard
from memguard.calibration import Profile, ProfileError, ordinary_prompts, store
from memguard.detectors.text_noise_norm import NAME
from memguard.hosts.webui import listed
from memguard.hosts.webui.calibrating import Request, prepared, saved
from memguard.memory import Facts

MODEL = "00000000cafe0001"
PROMPTS = [f"a plain thing {i}" for i in range(50)]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"colour": 1},
            "'colour' is no setting of a profile; there are width, height, batch_size, prompts, negative_prompt, name",
        ),
        ({"width": 100}, "width is 100; give a multiple of 8 between 64 and 2048 pixels"),
        ({"height": True}, "height is True; give a multiple of 8"),
        ({"batch_size": 9}, "batch_size is 9; give a whole number between 1 and 8"),
        ({"height": "512"}, "height is '512'; give a multiple of 8"),
        ({"prompts": PROMPTS[:49] + [" "]}, "prompts holds 49; a profile needs at least 50, or none for ours"),
        ({"prompts": "a fox"}, "prompts is no list of texts; give at least 50, or none for ours"),
        ({"prompts": [*PROMPTS, 3]}, "prompts is no list of texts"),
        ({"name": 3}, "name is 3; give a text"),
        ({"prompts": [*PROMPTS, "a fox <lora:tail:0.5>"]}, "<lora:tail:0.5> is in a prompt; a profile is of"),
        ({"negative_prompt": "<hypernet:x:1>"}, "<hypernet:x:1> is in a prompt"),
    ],
)
def test_bad_input_is_one_line(given, line):
    with pytest.raises(ProfileError) as refused:
        Request.of(given)
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)


def test_no_prompts_are_the_shipped_ones():
    assert Request.of({}) == Request(512, 512, 1, tuple(ordinary_prompts()))
    assert Request.of({"prompts": ["", " "]}).prompts == tuple(ordinary_prompts())


@pytest.mark.parametrize(
    ("size", "images", "most"),
    [(512, 1, 8), (128, 1, 8), (768, 1, 3), (1024, 1, 2), (2048, 1, 1), (512, 3, 8), (1024, 4, 2), (2048, 8, 1)],
)
def test_calls_hold_fewer_large_pictures(size, images, most):
    batches = list(Request(size, size, images, tuple(PROMPTS)).batches(lambda text: True))
    assert [n for batch in batches for n in batch] == list(range(50 * images))
    assert max(map(len, batches)) == most == len(batches[0])


def test_a_long_prompt_is_alone():
    texts = (*PROMPTS[:3], "long", *PROMPTS[3:5], "long", "long")
    batches = list(Request(prompts=texts).batches(lambda text: text != "long"))
    assert batches == [range(0, 3), range(3, 4), range(4, 6), range(6, 7), range(7, 8)]
    pairs = list(Request(768, 768, batch_size=4, prompts=texts[2:5]).batches(lambda text: text != "long"))
    assert pairs == [range(0, 3), range(3, 4), range(4, 7), range(7, 8), range(8, 11), range(11, 12)]


def test_each_image_of_a_prompt_has_a_seed_of_its_own():
    asked = Request(batch_size=3, prompts=("a", "b", "c"))
    assert asked.rows(range(0, 4)) == (["a", "a", "a", "b"], [0, 1, 2, 3])
    assert asked.rows(range(4, 9)) == (["b", "b", "c", "c", "c"], [4, 5, 6, 7, 8])
    assert Request(prompts=("a", "b", "c")).rows(range(1, 3)) == (["b", "c"], [1, 2])


@pytest.fixture
def reports(step):
    """A function that makes the report of each call, of prompts with these RMS scores."""

    def make(*calls):
        made = []
        for scores in calls:
            facts = {"family": "sd15", "sampler": "Euler", "steps": 20, "cfg": 7.0}
            run = Guard().begin(model=MODEL, seeds=(0,) * len(scores), **facts)
            if None in scores:
                run.unavailable("cfg is 1")
            else:
                run.observe(step(*scores, latent=(8, 16)))
            made.append(run.finish())
        return made

    return make


SCORES = [0.01 * math.exp(0.01 * i) for i in range(50)]


def test_saved_profiles_are_found_and_hold_the_scores(reports, tmp_path):
    made = saved(Request(prompts=tuple(PROMPTS), name="mine"), reports(SCORES[:30], SCORES[30:]), "float16", tmp_path)
    assert [each.conditions.reference for each in made] == ["negative", "empty"]
    store.register(tmp_path)
    assert {each.source for each in store.of_model(MODEL)} == {each.source for each in made}
    read = Profile.read(made[0].source)
    assert read.note == "mine" and read.conditions.dtype == "float16" and read.conditions.latent == (8, 16)
    assert (read.conditions.sigma, read.conditions.scheduler, read.conditions.guidance_scale) == (14.6, "Euler", 7.0)
    distribution = read.distributions["text_noise_norm"]
    assert distribution.count == 50
    assert distribution.log_median == pytest.approx(math.log(0.01) + 0.245, abs=1e-4)


def test_a_score_is_the_mean_over_the_images_of_a_prompt(reports, tmp_path):
    pairs = [image for score in SCORES for image in (0.5 * score, 1.5 * score)]
    asked = Request(batch_size=2, prompts=tuple(PROMPTS))
    made, _ = saved(asked, reports(pairs[:61], pairs[61:62], pairs[62:]), "float16", tmp_path)  # 31 is in two calls
    assert made.conditions.images == 2 and "-n2-" in made.source
    assert made.distributions[NAME].scores == pytest.approx(SCORES, rel=1e-4)
    assert "<td>50, 2 images each</td>" in listed.profiles(MODEL, [made])
    with pytest.raises(ProfileError, match="^ordinary prompt 31 has no score"):
        saved(asked, reports(pairs[:60], [None, None]), "float16", tmp_path)
    with pytest.raises(ProfileError, match="^ordinary prompt 31 or one of those after it has no score"):
        saved(asked, reports(pairs[:60], [None] * 4), "float16", tmp_path)
    with pytest.raises(ProfileError, match="^ordinary prompt 31 has no score"):
        saved(asked, reports(pairs[:61], [None]), "float16", tmp_path)
    with pytest.raises(ProfileError, match="^ordinary prompt 31 or one of those after it has no score"):
        saved(asked, reports(pairs[:61], [None, None]), "float16", tmp_path)
    for done in (60, 61):
        with pytest.raises(ProfileError, match="^interrupted after 30 of 50 prompts"):
            saved(asked, reports(pairs[:done]), "float16", tmp_path)


def test_every_detector_that_could_score_is_in_the_profile(reports, tmp_path):
    made = reports(SCORES)
    (norm,) = made[0].findings
    attention = replace(norm, detector="attention_entropy", rms=tuple(2 * score for score in SCORES))
    both = [replace(made[0], findings=(norm, attention))]
    profile, _ = saved(Request(prompts=tuple(PROMPTS)), both, "float16", tmp_path)
    assert list(profile.distributions) == ["text_noise_norm", "attention_entropy"]
    one, two = profile.distributions.values()
    assert two.log_median - one.log_median == pytest.approx(math.log(2))
    unread = [replace(made[0], findings=(norm, replace(attention, rms=(), scores=(), status="no layers")))]
    assert list(saved(Request(prompts=tuple(PROMPTS)), unread, "float16", tmp_path)[0].distributions) == [NAME]


def test_a_negative_prompt_of_its_own_says_nothing_of_the_empty_one(reports, tmp_path):
    asked = Request(prompts=tuple(PROMPTS), negative_prompt="blurry")
    (made,) = saved(asked, reports(SCORES), "float16", tmp_path)
    assert made.conditions.reference == "negative"


def test_interrupted_and_without_a_score_saves_nothing(reports, tmp_path):
    asked = Request(prompts=tuple(PROMPTS))
    with pytest.raises(ProfileError, match="^interrupted after 8 of 50 prompts; no profile was saved$"):
        saved(asked, reports(SCORES[:8]), "float16", tmp_path)
    with pytest.raises(ProfileError, match="^interrupted after 0 of 50 prompts"):
        saved(asked, [], "float16", tmp_path)
    with pytest.raises(ProfileError, match="^ordinary prompt 9 has no score, because cfg is 1$"):
        saved(asked, reports(SCORES[:8], [None]), "float16", tmp_path)
    with pytest.raises(ProfileError, match="^ordinary prompt 9 or one of those after it has no score, because cfg"):
        saved(asked, reports(SCORES[:8], [None, None]), "float16", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_hold_profiles_is_named_before_anything_is_scored(tmp_path, monkeypatch):
    assert prepared(tmp_path / "models" / "memguard").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(ProfileError, match="file cannot be made \\(.*\\); profiles are saved there$"):
        prepared(tmp_path / "file")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ProfileError, match="models cannot be written to; profiles are saved there$"):
        prepared(tmp_path / "models")


def test_what_is_kept_is_listed_and_escaped(reports, tmp_path):
    made = saved(Request(prompts=tuple(PROMPTS), name="<b>mine</b>"), reports(SCORES), "float16", tmp_path)
    shown = listed.profiles(MODEL, made)
    assert shown.count("<tr>") == 3
    assert "<td>128x64</td><td>negative prompt</td><td>50</td>" in shown
    assert f"<td>{MODEL}-8x16-empty-s1-14.6.json</td><td>&lt;b&gt;mine&lt;/b&gt;</td>" in shown
    assert listed.profiles("", made) == "<p>No checkpoint is loaded yet.</p>"
    assert listed.profiles(MODEL, []) == "<p>There is no profile for this checkpoint.</p>"
    assert listed.neuron_sets(tmp_path / "none") == "<p>There are no neuron sets.</p>"
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a&b.safetensors").touch()
    assert listed.neuron_sets(tmp_path) == "<ul><li>sub/a&amp;b.safetensors</li></ul>"


def test_the_memory_says_what_hinders_it():
    assert listed.memory(Facts(True, "ok", 1, 0)) == "<p>1 run is remembered.</p>"
    assert listed.memory(Facts(True, "database is locked", 0, 0)) == "<p>0 runs are remembered. database is locked</p>"


def test_the_table_names_its_checkpoint_and_one_that_is_not_loaded_yet():
    assert listed.profiles(MODEL, [], "a", "a") == "<p>There is no profile for a.</p>"
    assert listed.profiles(MODEL, [], "a", "b").startswith("<p>b is chosen and not loaded yet.")
