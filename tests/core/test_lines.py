"""Lines that say how far a command is where no terminal shows a bar."""

import sys

import pytest

from memguard.commands import lines


@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_a_minute_at_most_and_none_on_a_terminal(capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    times = iter([0, 30, 59, 61, 90, 120, 121, 500])
    found = list(lines.counted("abcdefg", 7, "x\x1b{}: ", " captions", lambda: next(times)))
    said = capsys.readouterr()
    assert found == list("abcdefg") and not said.out
    # at 61 s the third, at 121 s the sixth; the last one is said otherwise
    lines_of = [rf"x\x1b{{}}: {n} of 7 captions" for n in (3, 6)]
    assert said.err.splitlines() == ([] if terminal else lines_of)
