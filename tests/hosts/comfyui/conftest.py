"""Fixtures for tests against a real ComfyUI: a guard on a tiny model, and the network rows that a run costs."""

from contextlib import contextmanager

import pytest

from memguard_pack.tests.hosts.comfyui import host

if host.root():
    host.enter()  # before the test modules, which import ComfyUI


class Skipped(pytest.Module):
    """A module that is reported as skipped, by name, without being imported."""

    def collect(self):
        pytest.skip(host.REASON, allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    """Skip the modules of this folder where there is no ComfyUI."""
    return None if host.root() else Skipped.from_parent(parent, path=module_path)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No profile, no report and no known prompt but those that a test makes."""
    import folder_paths

    from memguard_pack.memguard.calibration import store
    from memguard_pack.memguard.hosts.comfyui import continuing, latents, screen

    monkeypatch.setenv("MEMGUARD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store, "_registered", [])
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path / "user"))
    latents.store._runs.clear()
    latents.store._maps.clear()
    continuing.passes.clear()
    screen.payloads.clear()


@pytest.fixture
def watch():
    """A function that puts a guard on a model: watch(model, policy="warn") -> watched model, watcher."""

    def put(model, empty=None, **settings):
        from memguard_pack.memguard import Guard
        from memguard_pack.memguard.hosts.comfyui.watcher import Watcher

        watcher = Watcher(Guard(**settings), empty)
        return watcher.install(model), watcher

    return put


@pytest.fixture
def rows():
    """A context manager that counts the rows a model's network evaluates: with rows(model) as counted: ..."""

    @contextmanager
    def count(model):
        counted = []
        network = model.model.diffusion_model
        hook = network.register_forward_pre_hook(lambda module, inputs: counted.append(len(inputs[0])))
        try:
            yield counted
        finally:
            hook.remove()

    return count
