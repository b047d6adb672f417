"""Real A1111 and Forge: MemGuard's axes of the X/Y/Z plot."""

import numpy as np

from memguard_pack.tests.hosts.webui.test_webui_mitigating import MEMORIZED, profile  # noqa: F401 a fixture

PREFIX = "[MemGuard] "


def plotted(server, x, y):
    return server.generate(prompt=MEMORIZED, cfg_scale=5, **server.plot((PREFIX + x[0], x[1]), (PREFIX + y[0], y[1])))


def test_every_axis_is_there_once(server):
    ours = [label for label in server.axes() if label.startswith(PREFIX)]
    assert ours == [PREFIX + name for name in ("policy", "sensitivity", "mitigation", "strength")]


def test_a_plot_of_policies_and_mitigations(server):
    alone = {
        name: server.generate({"policy": "mitigate", "mitigation": name}, prompt=MEMORIZED, cfg_scale=5).pictures[0]
        for name in ("guidance_delay", "padding")
    }
    made = plotted(server, ("mitigation", "guidance_delay, padding"), ("policy", "mitigate"))
    lone = [picture for picture in made.pictures if picture.shape == (128, 128, 3)]
    assert len(lone) == 2
    assert all(np.array_equal(a, b) for a, b in zip(lone, alone.values(), strict=True))


def test_a_plot_of_strengths_keeps_the_other_settings(server):
    whole = {"policy": "mitigate", "mitigation": "guidance_delay"}
    made = server.generate(whole, prompt=MEMORIZED, cfg_scale=5, **server.plot((PREFIX + "strength", "0.5, 1")))
    lone = [picture for picture in made.pictures if picture.shape == (128, 128, 3)]
    half = server.generate(whole | {"strength": 0.5}, prompt=MEMORIZED, cfg_scale=5).pictures[0]
    full = server.generate(whole, prompt=MEMORIZED, cfg_scale=5).pictures[0]
    assert np.array_equal(lone[0], half) and np.array_equal(lone[1], full) and not np.array_equal(half, full)
