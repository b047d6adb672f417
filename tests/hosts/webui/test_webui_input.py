"""Real A1111 and Forge: what cannot be used is refused in one line, whatever door it comes through."""

import numpy as np
import pytest

LINE = 300  # characters
DEEP = b"[" * 100_000 + b"]" * 100_000
CHECK = {"prompt": "a fox", "width": 64, "height": 64, "steps": 2}
NUMBERS = {
    "width": [1e9, 0, -8, 7, 65, 2056, "a", None, True, [64], 64.5],
    "height": [1e9, 0, -8, 7, 2**70, {}],
    "steps": [0, -1, "a", 1.5, 151, 1e400, None],
    "cfg_scale": ["a", -1, 1e9],
    "seed": ["a", 2**70, 0.5],
    "batch_size": [0, 9, 1e9],
    "scored_steps": [0, 1.5, "a"],
    "sensitivity": [0, 100, "a"],
    "sampler_name": ["no such sampler", 3, "x" * 10_000],
    "scheduler": ["no such scheduler", None],
    "prompt": ["", " ", 3, None, ["a"], "x" * 10_001, "a \ud800"],
    "negative_prompt": [3, None, "x" * 10_001],
    "detector": ["x", 3],
    "reference": ["x"],
    "explain": ["x", True],
    "profile": ["../../x", "x" * 300, "a\0b", 3],
}


def bodies(values):
    return [(name, value) for name, each in values.items() for value in each]


@pytest.mark.parametrize(("name", "value"), bodies(NUMBERS), ids=lambda each: repr(each)[:20])
def test_a_check_refuses_what_it_cannot_use(server, name, value):
    code, line = server.status("/memguard/v1/check", {**CHECK, name: value})
    assert code == 400 and "\n" not in line and len(line) < 3 * LINE, line
    assert name in line or "there is no file" in line


@pytest.mark.parametrize(
    ("name", "value"),
    bodies({name: NUMBERS[name] for name in ("width", "height")} | {"name": [3, "x" * 300], "prompts": [3, "x", [3]]}),
    ids=lambda each: repr(each)[:20],
)
def test_a_calibration_refuses_what_it_cannot_use(server, name, value):
    code, line = server.status("/memguard/v1/profiles", {"width": 64, "height": 64, name: value})
    assert code == 400 and line.startswith(name) and len(line) < LINE, line


@pytest.mark.parametrize("route", ["check", "profiles", "memory"])
@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", DEEP, b'{"width": ' + b"9" * 5000 + b"}", b"\xff"])
def test_bodies_that_are_no_object(server, route, body):
    code, _ = server.status(f"/memguard/v1/{route}", body)
    assert code in (400, 422)


def test_infinite_and_missing_numbers_by_json(server):
    for text in (b"Infinity", b"-Infinity", b"NaN", b"1e999"):
        code, line = server.status("/memguard/v1/check", b'{"prompt": "a", "cfg_scale": ' + text + b"}")
        assert code == 400 and line.startswith("cfg_scale is"), line


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"enabled": "false"}, "enabled is 'false'; give true or false"),
        ({"steps": 2.7}, "steps is 2.7; give a whole number of at least 1"),
        ({"sensitivity": "inf"}, "sensitivity is 'inf'; give a percentile between 50 and 99.99"),
        ({"strength": [[[[[[[[]]]]]]]]}, "strength is [[["),
        ({"profile": "x" * 5000}, "profile has 5000 characters; give at most 200"),
        ({"x" * 5000: 1}, "'xxx"),
        ({"policy": "destroy"}, "policy is 'destroy'; use one of observe, warn, stop, mitigate"),
        ({"profile": "gone.json"}, "there is no file 'gone.json' in models/memguard; refresh the list"),
    ],
)
def test_settings_of_a_generation_that_cannot_be_used_leave_it_unguarded_and_say_so(server, given, line):
    plain, made = server.generate(), server.generate({"policy": "warn"} | given)
    assert np.array_equal(plain.pictures[0], made.pictures[0])
    (report,) = made.reports
    assert report["findings"][0]["status"].startswith(f"the settings cannot be used: {line}")
    assert report["verdict"] == "unknown" and report["error"] is None
    assert "MemGuard verdict: " in made.info["infotexts"][0]


@pytest.mark.parametrize("given", [{"steps": 2.7}, {"enabled": "false"}, {"profile": "gone.json"}, {"colour": 1}])
def test_under_stop_they_refuse_the_picture(server, given):
    made = server.generate({"policy": "stop"} | given)
    assert made.coded == []
    (report,) = made.reports
    assert report["findings"][0]["status"].startswith("the settings cannot be used: ")
    assert len(server.generate().coded) == 1
