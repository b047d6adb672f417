"""A door for tests: the suites of the host contract are run in the host's own process, where its objects are.

Linked among a server's extensions for that alone. POST /inside takes {"names": [...]} of tests and returns what became
of each.
"""

import importlib.util

from modules import script_callbacks

PACK = "memguard_webui_pack"  # as MemGuard's own door mounts the repository
SUITES = f"{PACK}.tests.hosts.webui.inside"
OPTIONS = "--noconftest --capture=no -q -p no:cacheprovider -p no:python_path -p no:faulthandler".split()


def serve(_, app):
    @app.post("/inside")
    def inside(asked: dict):
        if importlib.util.find_spec("pytest") is None:
            return {"missing": "pytest is not installed in the environment of the WebUI"}
        check = importlib.import_module(f"{PACK}.extension.check")
        return check.alone(_run, asked["names"])


def _run(names):
    import pytest

    outcomes = importlib.import_module(f"{SUITES}.outcomes").Outcomes(names)
    pytest.main([importlib.util.find_spec(f"{SUITES}.suites").origin, *OPTIONS], plugins=[outcomes])
    return outcomes.found


script_callbacks.on_app_started(serve)
