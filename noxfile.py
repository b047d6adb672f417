"""``nox``: what a contributor asks before a commit, in a minute; ``bash .ci/run`` is all of it."""

import nox

nox.options.default_venv_backend = "none"  # the environment of pip install -e ".[dev]"

# the ideas that everything stands on; the rest of tests/core takes minutes
QUICK = (
    "records report_format parameters guard loop sampling one_file import_direction text_noise_norm attention_entropy "
    "calibration profile attributions words signs pages packaging"
)


@nox.session
def check(session: nox.Session) -> None:
    """Style, types, import directions, and the tests of the core's own ideas."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports", "--no-cache")
    session.run(
        "pytest", "-q", "-x", "tests/core/mitigations", *(f"tests/core/test_{name}.py" for name in QUICK.split())
    )
