"""Forge's and Forge Neo's own model classes: each run is labelled with the units that its predictions are in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memguard_pack.tests.hosts.webui.server import FLAGS, NAMED, REPOSITORY

FLOW = {
    "forge": {"Flux", "Chroma", "StableDiffusion3"},
    "neo": {"Flux", "Flux2", "Chroma", "QwenImage", "ZImage", "Wan"},
}


@pytest.fixture(scope="module", params=list(FLOW))
def found(request):
    """What the adapter made of each model class, and the same by hand, as ``forge_predictors`` lists them."""
    root = os.environ.get(f"{NAMED[request.param]}_ROOT")
    if not root:
        pytest.skip(f"{NAMED[request.param]}_ROOT is not set; see tests/hosts/webui/server.py")
    python = os.environ.get(f"{NAMED[request.param]}_PYTHON", sys.executable)
    command = [python, str(Path(__file__).with_name("forge_predictors.py")), FLAGS[request.param][0]]
    own = {"MEMGUARD_REPOSITORY": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(command, cwd=root, env=os.environ | own, capture_output=True, text=True, timeout=600)
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("FOUND ", "WORDS ")))
    assert done.returncode == 0 and len(lines) == 2, done.stderr[-3000:]
    return request.param, json.loads(lines["FOUND"]), json.loads(lines["WORDS"])


def test_flow_models_are_called_so_and_others_epsilon(found):
    host, made, _ = found
    flows = {each["model"] for each in made if each["units"] == "flow_velocity"}
    assert flows >= FLOW[host] and not flows & {"epsilon", "v_prediction"}
    assert all((each["kind"] == "const") == (each["units"] == "flow_velocity") for each in made)


def test_scores_are_those_of_the_network_s_own_output(found):
    """In units of epsilon, of a v-prediction too; of a flow the velocity, which is noise minus picture."""
    for each in found[1]:
        assert each["score"] == pytest.approx(each["by_hand"], rel=1e-5), each


def test_levels_and_steps_are_the_host_s(found):
    for each in found[1]:
        level, own, largest, own_largest = each["sigma"]
        assert (level, largest) == pytest.approx((own, own_largest))
        assert each["unit_noise"][0] == pytest.approx(own)  # noise of unit variance in the sampler's latents
        full = own == own_largest
        assert each["timestep"] == (None if each["kind"] == "const" else 999.0 if full else 469.0)


def test_columns_are_named_by_the_engine_that_made_them(found):
    """Flux's columns are T5's, which CLIP's engine would call by other words."""
    assert found[2] == {"sd15": "alone", "sdxl": "_l", "sd3": "_l", "flux": None, "chroma": None}
