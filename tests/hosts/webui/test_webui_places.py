"""Which pass is about to be sampled, and what is known of it, from what the hosts tell; no host."""

from types import SimpleNamespace

import pytest
import torch

from memguard import Guard
from memguard.hosts.webui import model
from memguard.hosts.webui.places import Place
from memguard.hosts.webui.session import Session
from memguard.hosts.webui.treated import Treated


class Processing(SimpleNamespace):
    """A second batch of three, as txt2img has it before hires."""

    def __init__(self, **more):
        own = {"iteration": 1, "n_iter": 3, "prompts": ["a fox", "a cat"], "negative_prompts": ["ugly", "ugly"]}
        own |= {"hr_prompts": ["a big fox", "a big cat"], "hr_negative_prompts": ["blurry", "low"], "hr_cfg": 3.0}
        own |= {"hr_second_pass_steps": 7, "hr_upscale_to_x": 96, "hr_upscale_to_y": 160, "is_hr_pass": False}
        own |= {"seeds": [5, 6], "sampler_name": "Euler", "steps": 20, "cfg_scale": 7.5, "width": 64, "height": 128}
        super().__init__(**own | {"sd_model": SimpleNamespace(is_sdxl=True)} | more)


PLAIN = Place(1, 3, "", "a fox\0a cat")


@pytest.mark.parametrize(
    ("told", "place"),
    [
        ({}, PLAIN),
        ({"init_latent": None}, PLAIN),
        ({"init_latent": torch.zeros(1)}, Place(1, 3, "", "a fox\0a cat", painted=True)),
        ({"is_hr_pass": True}, Place(1, 3, "hires", "a big fox\0a big cat", painted=True)),
        ({"iteration": None, "n_iter": None, "prompts": None}, Place()),
    ],
)
def test_the_place_of_a_generation_s_own_pass(told, place):
    assert model.place(Processing(**told)) == place


@pytest.mark.parametrize(
    ("told", "painted"), [({}, False), ({"init_latent": torch.zeros(1)}, True), ({"is_hr_pass": True}, True)]
)
def test_the_place_of_another_extension_s_pass_is_in_the_batch_that_it_is_sampled_in(told, painted):
    inner = Processing(iteration=0, n_iter=1, prompts=["a hand"], hr_prompts=["a hand"], **told)
    expected = Place(1, 3, "inner", "a hand", painted)
    assert model.place(inner, Processing()) == expected
    watch, owner = Treated(Session(Guard(), "a1111", "v1", lambda: None)), Processing()
    watch.own(owner)
    assert watch.place(inner) == expected and watch.inner is inner
    assert watch.place(owner) == PLAIN and watch.inner is None


def test_what_is_known_of_both_passes_before_they_are_sampled():
    known = {"family": "sdxl", "seeds": (5, 6), "sampler": "Euler"}
    first = {"prompt": "a fox | a cat", "negative_prompt": "ugly", "steps": 20, "cfg": 7.5, "width": 64, "height": 128}
    assert model.facts(Processing()) == known | first
    second = {"prompt": "a big fox | a big cat", "negative_prompt": "blurry | low", "steps": 7, "cfg": 3.0}
    assert model.facts(Processing(is_hr_pass=True)) == known | second | {"width": 96, "height": 160}
    none = {"hr_prompts": None, "hr_negative_prompts": None, "hr_cfg": 0, "hr_second_pass_steps": 0}
    none |= {"hr_upscale_to_x": 0, "hr_upscale_to_y": 0}
    assert model.facts(Processing(is_hr_pass=True, **none)) == known | first  # nothing of its own: the first pass's


@pytest.mark.parametrize(
    ("engine", "family"),
    [
        (SimpleNamespace(is_sd1=True), "sd15"),
        (SimpleNamespace(is_sd2=True, is_sd1=False), "sd2"),
        (SimpleNamespace(is_sd3=True), "sd3"),
        (type("Flux", (), {})(), "flux"),
        (type("Flux2", (), {})(), "other"),
    ],
)
def test_families_by_the_engine_s_flags(engine, family):
    assert model.family(engine) == family
