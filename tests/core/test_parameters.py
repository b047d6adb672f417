"""One table of settings: every front end shows the same default, range and sentence, and refuses the same values."""

import argparse
import importlib
import inspect
import math
from dataclasses import replace
from typing import get_args

import pytest

from memguard import Guard, mitigations
from memguard.commands import audit, copies, explain, generate, neurons_find, scan
from memguard.detectors import available
from memguard.evidence import REFERENCES
from memguard.hosts.diffusers import calibrate, neurons, optimize_prompt
from memguard.hosts.diffusers import explain as explaining
from memguard.hosts.diffusers import scan as scanning
from memguard.hosts.webui.explanation import When
from memguard.hosts.webui.settings import DEFAULTS, KNOWN, NAMES, OF_MITIGATE, Settings, restored
from memguard.lists import BadInput
from memguard.mitigations.base import Mitigation
from memguard.records import POLICIES
from memguard.setting import Setting, of
from memguard.table import AUDIT, COPIES, EXPLAIN, GUARD, NEURONS, RUN
from memguard.troubles import Refused
from memguard_pack.tests.hosts.webui.stand_ins import modules
from tools import parameters

STRENGTH = {"strength": of(Mitigation)["strength"]}
DETECTORS = replace(GUARD["detector"], choices=dict.fromkeys(sorted(available()), ""))


def own(name):
    return of(mitigations.kind(name))


@pytest.mark.parametrize("name", parameters.FILES)
def test_the_files_are_current(name):
    made = parameters.FILES[name]()
    assert (parameters.ROOT / name).read_text(encoding="utf-8") == made, "run python tools/parameters.py"


@pytest.fixture
def controls(monkeypatch, tmp_path):
    """The accordion's controls by name, with what gradio was told of each."""
    yield from _controls(monkeypatch, tmp_path)


def _controls(monkeypatch, tmp_path):
    for _ in modules(monkeypatch, tmp_path):
        made = importlib.import_module("memguard_pack.extension.controls")
        made.build(False)
        calls = [
            (kind, call) for kind in ("Slider", "Dropdown", "Textbox") for call in getattr(made.gr, kind).call_args_list
        ]
        yield {call.kwargs["elem_id"].removeprefix("memguard_txt2img_"): (kind, call) for kind, call in calls}


def test_the_accordion_s_controls_are_the_settings(controls):
    assert set(controls) == set(NAMES)
    for name, (kind, call) in controls.items():
        setting = KNOWN[name]
        assert call.kwargs["value"] == setting.default == getattr(Settings(), name)
        assert call.kwargs["info"] == setting.text and setting.text
        if kind == "Slider":
            assert (*call.args, call.kwargs["step"]) == (*setting.span, setting.step or 1)
        elif setting.choices:
            assert call.args == (list(setting.choices),)


def test_the_webuis_settings_are_those_of_the_others():
    same = {**GUARD, **STRENGTH, "wording": own("paraphrase")["text"], "detector": DETECTORS}
    differing = {"policy": "warn", "profile": "automatic", "neurons": "none"}  # said in docs/parameters.md, or files
    for name in set(NAMES) - {"parameters", "mitigation"}:
        assert KNOWN[name] == replace(same[name], default=differing.get(name, same[name].default))
    assert list(KNOWN["mitigation"].choices) == ["auto", *mitigations.available()]
    assert KNOWN["mitigation"].says == GUARD["mitigation"].says


def test_an_infotext_restores_what_it_does_not_name_as_before():
    """An infotext names what differs from these defaults; pasted, the rest must be what it was when it was written."""
    assert DEFAULTS == {
        "policy": "warn",
        "sensitivity": 99.0,
        "steps": 1,
        "detector": "text_noise_norm",
        "reference": "negative",
        "explain": "flagged",
        "profile": "automatic",
        "mitigation": "auto",
        "strength": 1.0,
        "neurons": "none",
        "wording": "",
        "parameters": "",
    }
    assert list(DEFAULTS) == list(NAMES)
    told = {"MemGuard": "True", "MemGuard policy": "mitigate", "MemGuard strength": "0.35"}
    assert [restored(told, name) for name in OF_MITIGATE] == ["auto", "0.35", "none", "", ""]


# flag -> setting, by command
FLAGS = {
    scan: {
        "steps": GUARD["steps"],
        "sensitivity": GUARD["sensitivity"],
        "reference": GUARD["reference"],
        **{name: RUN[name] for name in RUN},
    },
    explain: {"steps": GUARD["steps"], "method": EXPLAIN["method"], "respect_to": EXPLAIN["respect_to"]},
    generate: {"sensitivity": GUARD["sensitivity"], **{name: RUN[name] for name in RUN if name != "batch_size"}},
    audit: {**AUDIT, "guidance_scale": RUN["guidance_scale"], "embedding_size": COPIES["embedding_size"]},
    copies: COPIES,
    neurons_find: {**NEURONS, "height": RUN["height"], "width": RUN["width"]},
}
OTHERWISE = {(audit, "threshold"), (copies, "threshold")}  # None stands for that of the way to compare
FLAGGED = [(command, name, setting) for command, known in FLAGS.items() for name, setting in known.items()]


def named(each):
    return each if isinstance(each, str) else getattr(each, "__name__", "")


def actions(command):
    subparsers = argparse.ArgumentParser().add_subparsers()
    (command.add_find if command is neurons_find else command.add_parser)(subparsers)
    (parser,) = subparsers.choices.values()
    return {action.dest: action for action in parser._actions}


@pytest.mark.parametrize(
    ("command", "name", "setting"), FLAGGED, ids=lambda each: getattr(each, "__name__", str(each)[:20])
)
def test_a_flag_is_the_setting(command, name, setting):
    action = actions(command)[name]
    assert action.default == (None if (command, name) in OTHERWISE else setting.default)
    assert action.help.lower().startswith(setting.text.lower().rstrip("."))
    if setting.choices:
        assert list(action.choices) == list(setting.choices)
        return
    for value in outside(setting):
        with pytest.raises(BadInput, match=f"^--{name.replace('_', '-')} is '") as refused:
            action.type(str(value))
        assert setting.give in str(refused.value)
    for value in inside(setting):
        assert action.type(str(value)) == value and type(action.type(str(value))) is setting.kind


def outside(setting):
    """Return numbers just outside of the range, and no numbers."""
    step = setting.multiple or 1
    ends = [setting.least - step, setting.most + step, setting.above, setting.below]
    between = [setting.least + 1] if setting.multiple else []
    return [*(end for end in ends if math.isfinite(end)), *between, math.nan, math.inf, "word"]


def inside(setting):
    """Return the ends of the range."""
    return [setting.kind(end) for end in (setting.least, setting.most) if math.isfinite(end)]


@pytest.mark.parametrize("name", [name for name in NAMES if KNOWN[name].kind in (int, float)])
def test_the_api_refuses_the_same(name):
    for value in outside(KNOWN[name]):
        with pytest.raises(Refused, match=f"^{name} is ") as refused:
            Settings.of([{name: value}])
        assert str(refused.value).endswith(KNOWN[name].give)
    for value in inside(KNOWN[name]):
        assert getattr(Settings.of([{name: value}]), name) == value


PARAMETERS = [
    (name, parameter, setting)
    for name in mitigations.available()
    for parameter, setting in own(name).items()
    if setting.kind in (int, float) and name != "neuron_mask"
]


@pytest.mark.parametrize(
    ("name", "parameter", "setting"), PARAMETERS, ids=lambda each: each if isinstance(each, str) else ""
)
def test_a_mitigation_refuses_the_same(name, parameter, setting):
    more = {"text": "a fox"} if name == "paraphrase" else {}
    for value in outside(setting):
        with pytest.raises(Refused, match=f"^{name}: {parameter} is ") as refused:
            mitigations.get(name, **more, **{parameter: value})
        assert str(refused.value).endswith(setting.give)
    for value in (*inside(setting), setting.default):
        assert getattr(mitigations.get(name, **more, **{parameter: value}), parameter) == value


FUNCTIONS = [
    (Guard.__init__, {**GUARD, "detectors": replace(GUARD["detector"], default=("text_noise_norm",))}),
    (scanning, {**GUARD, **RUN}),
    (calibrate, {**GUARD, **RUN}),
    (explaining, {**GUARD, **RUN, **EXPLAIN, "maps": Setting(())}),
    (neurons.localize, {**RUN, **NEURONS}),
    (optimize_prompt, {**RUN, **own("prompt_optimization")}),
]


@pytest.mark.parametrize(("function", "known"), FUNCTIONS, ids=lambda each: getattr(each, "__qualname__", ""))
def test_a_function_s_defaults_are_the_settings(function, known):
    found = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty
    }
    found.pop("profile", None)
    if function is Guard.__init__:
        found.pop("mitigation")  # None is auto
    both = set(found) & set(known)
    assert len(both) >= 3
    assert {name: found[name] for name in both} == {name: known[name].default for name in both}


def test_the_terms_are_those_of_the_records():
    assert tuple(GUARD["policy"].choices) == POLICIES
    assert tuple(GUARD["reference"].choices) == REFERENCES
    assert tuple(GUARD["explain"].choices) == get_args(When)
    for name, settings in {name: own(name) for name in mitigations.available()}.items():
        annotations = inspect.get_annotations(mitigations.kind(name))
        for parameter, setting in settings.items():
            if setting.choices and parameter in annotations:
                assert annotations[parameter] == f"Literal[{', '.join(map(repr, setting.choices))}]"


def test_a_setting_says_what_to_give():
    assert Setting(2, least=0).give == "give a whole number of at least 0, such as 2"
    assert Setting(1.0, least=0, most=1, neutral=1).give == "give a number between 0 and 1; 1 changes nothing"
    assert Setting(None, kind=int, least=8, most=64, multiple=8, unit="pixels").give == (
        "give a multiple of 8 between 8 and 64 pixels"
    )
    assert Setting(None, kind=str, choices={"a": "", "b": ""}).give == "use one of a, b, None"
    assert Setting(0.5, above=0, below=1, what="a share").give == "give a share above 0 and below 1"
    assert Setting(None, kind=float, shown=(0, 1), unset=-1).span == (-1, 1)
    seed = (1 << 63) - 1
    assert Setting(0, most=seed, spelled=True).read("seed", str(seed)) == seed
    for value in (True, 2.5, "2", 10**400, math.nan):
        with pytest.raises(Refused):
            Setting(0).read("it", value)
