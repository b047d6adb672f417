"""From arguments and pasted text to settings, and from settings to a guard; no host."""

import pytest

from memguard.calibration import Conditions, Distribution, Profile
from memguard.hosts.webui.settings import AUTOMATIC, DEFAULTS, NAMES, Settings, files, inside, parsed, restored
from memguard.neurons.files import save
from memguard.records import NeuronSet


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "models" / "memguard"
    folder.mkdir(parents=True)
    save(NeuronSet({"down_blocks.0.attentions.0.transformer_blocks.0.attn2": (1, 3)}), folder / "set.safetensors")
    conditions = Conditions("cafe", "sd15", (8, 8), 14.6, 999.0, 1, 4, "", "negative", "", 7.5)
    made = Profile(conditions, {"text_noise_norm": Distribution(80, -4.6, 0.2, {})})
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
        ({"colour": 1}, "^there is no setting 'colour'; there are policy, sensitivity, "),
        ({"sensitivity": "high"}, "^sensitivity is 'high'; give a number$"),
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
        ({"steps": 0}, "^steps is 0; score at least 1 step$"),
        ({"profile": "gone.json"}, "^there is no file 'gone.json' in models/memguard; refresh the list and choose"),
        ({"profile": "../../secret"}, "^there is no file '../../secret' in models/memguard"),
        ({"profile": "set.safetensors"}, "not a memguard profile"),
        ({"policy": "mitigate", "mitigation": "neuron_mask"}, "^neurons is none, and neuron_mask needs a set; choose"),
        ({"policy": "mitigate", "mitigation": "paraphrase"}, "^paraphrase: text is empty; give the prompt in other"),
        (
            {"policy": "mitigate", "mitigation": "padding", "parameters": "bos_scale=1"},
            "^padding has no parameter 'bos_",
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
