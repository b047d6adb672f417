"""The command line as tests call it."""

from memguard.cli import main


def run(capsys, *words) -> tuple[int, str, str]:
    """Run a command; return its exit code and what it printed to stdout and stderr."""
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


def bad(capsys, *words) -> str:
    """Run with bad input; return the one line on stderr."""
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and "Traceback" not in err
    return err.strip()
