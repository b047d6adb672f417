"""From arguments and pasted text to settings, and from settings to a guard; no host."""

import pytest

from memguard.calibration import Conditions, Profile, fit
from memguard.hosts.webui.fields import Refused
from memguard.hosts.webui.settings import AUTOMATIC, DEFAULTS, NAMES, Settings, files, inside, parsed, restored
from memguard.neurons.files import save
from memguard.records import NeuronSet
from tests.spread import spread


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "models" / "memguard"
    folder.mkdir(parents=True)
    save(NeuronSet({"down_blocks.0.attentions.0.transformer_blocks.0.attn2": (1, 3)}), folder / "set.safetensors")
    conditions = Conditions("cafe", "sd15", (8, 8), 14.6, 999.0, 1, 4, "", "negative", "", 7.5)
    made = Profile(conditions, {"text_noise_norm": fit(spread(0.01))})
    (folder / "own.json").write_text(made.to_json())
    return folder


def test_an_unticked_box_is_no_settings():
    assert Settings.of([False, *DEFAULTS.values()]) is None
    assert Settings.of([]) is None
    assert Settings.of([{"enabled": False}]) is None


def test_arguments_come_in_order_or_by_name():
    values = dict(DEFAULTS, policy="mitigate", strength=0.5, parameters="bos_scale=1.5", mitigation="attention_scaling")
    by_order = Settings.of([True, *values.values()])
    assert by_order == Settings.of([values]) and by_order.strength == 0.5
    assert Settings.of([True, "observe"]).policy == "observe"  # an API call of few arguments
    assert Settings.of([{"sensitivity": "95", "steps": 2.0}]).sensitivity == 95.0


def test_an_axis_changes_a_setting_and_ticks_the_box():
    assert Settings.of([False, *DEFAULTS.values()], {"policy": "stop"}).policy == "stop"
    assert Settings.of([{"policy": "warn", "strength": 0.2}], {"strength": 0.7}).strength == 0.7


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"policy": "destroy"}, "^policy is 'destroy'; use one of observe, warn, stop, mitigate$"),
        ({"mitigation": "x"}, "^mitigation is 'x'; use one of auto, attention_scaling, "),
        ({"colour": 1}, "^'colour' is no setting of MemGuard; there are policy, sensitivity, "),
        ({"sensitivity": "high"}, "^sensitivity is 'high'; give a percentile between 50 and 99.99$"),
        ({"explain": "often"}, "^explain is 'often'; use one of flagged, always, never$"),
    ],
)
def test_bad_settings_are_one_line(given, line):
    with pytest.raises(ValueError, match=line):
        Settings.of([given])


def test_the_guard_that_settings_mean(folder):
    assert Settings(steps=2).guard(folder).steps == 2
    assert Settings(mitigation="guidance_delay").guard(folder).mitigation is None  # policy warn
    assert Settings(policy="mitigate").guard(folder).mitigation is None  # auto
    made = Settings(policy="mitigate", mitigation="guidance_delay", strength=0.5, parameters="until=300").guard(folder)
    assert (made.mitigation.strength, made.mitigation.until) == (0.5, 300)
    made = Settings(policy="mitigate", mitigation="neuron_mask", neurons="set.safetensors").guard(folder)
    assert made.mitigation.neurons.count == 2
    made = Settings(policy="mitigate", mitigation="paraphrase", wording="a comet, at noon").guard(folder)
    assert made.mitigation.text == "a comet, at noon"
    made = Settings(profile="own.json", detector="text_noise_norm", reference="empty").guard(folder)
    assert (made.profile.conditions.model, made.reference) == ("cafe", "empty")
    assert Settings().guard(folder / "missing").profile is None


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"profile": "gone.json"}, "^there is no file 'gone.json' in models/memguard; refresh the list and choose"),
        ({"profile": "../../secret"}, "^there is no file '../../secret' in models/memguard"),
        ({"profile": "set.safetensors"}, "not a memguard profile"),
        ({"policy": "mitigate", "mitigation": "neuron_mask"}, "^neurons is none, and neuron_mask needs a set; choose"),
        ({"policy": "mitigate", "mitigation": "paraphrase"}, "^paraphrase: text is empty; give the prompt in other"),
        (
            {"policy": "mitigate", "mitigation": "padding", "parameters": "bos_scale=1"},
            "^padding has no parameter 'bos_",
        ),
        (
            {"policy": "mitigate", "mitigation": "padding", "parameters": "share=word"},
            "^padding: share is 'word'; give a number between 0 and 1$",
        ),
        (
            {"policy": "mitigate", "mitigation": "padding", "parameters": "strength=0.5"},
            "^parameters has strength, which is a setting of its own$",
        ),
        (
            {"policy": "mitigate", "mitigation": "padding", "parameters": "name=x"},
            "^padding has no parameter 'name'; it",
        ),
        ({"policy": "mitigate", "steps": 2}, "^policy mitigate decides at the first step; use steps 1"),
    ],
)
def test_what_cannot_be_used_is_one_line(folder, settings, line):
    (folder.parent.parent / "secret").write_text("{}")
    with pytest.raises(ValueError, match=line):
        Settings(**settings).guard(folder)


def test_parameters_are_read_as_numbers_truths_and_words():
    assert parsed("bos_scale=1.5, mask_padding=False,transition = static,") == {
        "bos_scale": 1.5,
        "mask_padding": False,
        "transition": "static",
    }
    for bad in ("bos_scale", "=3", "bos_scale="):
        with pytest.raises(ValueError, match=f"^parameters has '{bad}'; write name=value, separated by commas$"):
            parsed(bad)


def test_pasting_restores_every_control():
    chosen = Settings(policy="mitigate", mitigation="padding", strength=0.5, explain="never", sensitivity=95.0)
    told = {key: str(value) for key, value in chosen.infotext().items()}
    back = {name: type(DEFAULTS[name])(restored(told, name)) for name in NAMES}
    assert Settings(**back) == chosen
    assert "MemGuard strength" not in Settings(policy="warn", strength=0.5).infotext()
    assert all(restored({"Steps": "20"}, name) is None for name in NAMES)  # another picture's text changes nothing


def test_files_below_the_models_folder(folder):
    (folder / "more").mkdir()
    (folder / "more" / "b.json").write_text("{}")
    assert files(folder, ".json") == ["more/b.json", "own.json"]
    assert files(folder / "gone", ".json") == []
    assert inside(folder, "more/b.json").name == "b.json"
    assert AUTOMATIC not in files(folder, ".json")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"steps": 0}, "^steps is 0; give a whole number of at least 1$"),
        ({"steps": 2.7}, "^steps is 2.7; give a whole number"),
        ({"steps": True}, "^steps is True; give a whole number"),
        ({"steps": 10**400}, "^steps is 1000"),
        ({"sensitivity": "inf"}, "^sensitivity is 'inf'; give a percentile"),
        ({"sensitivity": float("nan")}, "^sensitivity is nan; give a percentile"),
        ({"strength": float("inf")}, "^strength is inf; give a number between 0 and 1; 0 changes nothing$"),
        ({"strength": -0.1}, "^strength is -0.1; give a number"),
        ({"strength": [1]}, r"^strength is \[1\]; give a number"),
        ({"enabled": "false"}, "^enabled is 'false'; give true or false$"),
        ({"enabled": 1}, "^enabled is 1; give true or false$"),
        ({"profile": "x" * 300}, "^profile has 300 characters; give at most 200$"),
        ({"profile": 7}, "^profile is 7; give a text$"),
        ({"wording": "a \ud800"}, "^wording holds half a character"),
        ({"policy": {"a": 1}}, "^policy is {'a': 1}; use one of"),
        ({"explain": "often" * 10_000}, "^explain is 'often"),
        ({"c" * 10_000: 1}, "^'ccc"),
    ],
)
def test_values_of_the_wrong_kind_are_one_short_line(given, line):
    with pytest.raises(Refused, match=line) as refused:
        Settings.of([given])
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


def test_deep_nesting_is_one_short_line():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for given in ({"strength": deep}, {"policy": deep}, {"wording": deep}):
        with pytest.raises(Refused) as refused:
            Settings.of([given])
        assert len(str(refused.value)) < 300
    for text in ("a=" + "[" * 900, "a=[1]", "a=inf", "a=NaN", "a=1e999", "a=null"):
        if text in ("a=inf", "a=" + "[" * 900):  # words, which the mitigation refuses
            assert isinstance(parsed(text)["a"], str)
        else:
            with pytest.raises(Refused, match="give a number, true, false or a word"):
                parsed(text)


def test_a_box_is_ticked_by_true_alone():
    for box in ("false", "true", 0, 1, None):
        with pytest.raises(Refused, match="^the box is .*; give true or false$"):
            Settings.of([box, "warn"])


@pytest.mark.parametrize("name", ["a\0b", "x" * 199 + "/" + "y"])
def test_names_that_no_file_can_have(folder, name):
    with pytest.raises(Refused, match="^there is no file"):
        inside(folder, name * 40)
