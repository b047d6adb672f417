"""What feeds what in a prompt, and the reduced prompt that only checks."""

import json
import subprocess

import pytest

from .javascript import ask, needs_node

pytestmark = needs_node


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def plain(sampler="KSampler", **inputs):
    """A guarded text-to-image prompt: loader 1, LoRA 2, guard 3, texts 4 and 5, latent 6, sampler 7, decoder 8."""
    given = {"model": ["3", 0], "positive": ["4", 0], "negative": ["5", 0], "latent_image": ["6", 0], "seed": 11}
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="a.safetensors"),
        "2": node("LoraLoader", model=["1", 0], clip=["1", 1], lora_name="l"),
        "3": node("MemGuard", model=["2", 0], policy="stop", sensitivity=97.7),
        "4": node("CLIPTextEncode", clip=["2", 1], text="a cup"),
        "5": node("CLIPTextEncode", clip=["2", 1], text=""),
        "6": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "7": node(sampler, **{**given, "steps": 20, "cfg": 4.0, "scheduler": "normal", "denoise": 1.0, **inputs}),
        "8": node("VAEDecode", samples=["7", 0], vae=["1", 2]),
    }


def guided(guider, **inputs):
    """The same with SamplerCustomAdvanced: noise 9, guider 10, sigmas 11."""
    prompt = plain()
    prompt["7"] = node(
        "SamplerCustomAdvanced", noise=["9", 0], guider=["10", 0], sigmas=["11", 0], latent_image=["6", 0]
    )
    prompt["9"] = node("RandomNoise", noise_seed=5)
    prompt["10"] = node(guider, model=["3", 0], **inputs)
    prompt["11"] = node("BasicScheduler", model=["2", 0], scheduler="normal", steps=4, denoise=1.0)
    return prompt


def checked(prompt, guard="3"):
    return ask("precheck", f"precheck.checkPrompt(prompt, {json.dumps(guard)})", prompt=prompt)


def refusal(prompt, guard="3"):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        checked(prompt, guard)
    return caught.value.stderr


def test_the_reduced_prompt_has_what_the_sampler_gets_and_no_sampler():
    found = checked(plain())
    assert set(found) == {"1", "2", "3", "4", "5", "6", "memguard_check_3"}
    assert found["memguard_check_3"] == node(
        "MemGuard_CheckPrompt",
        model=["3", 0],
        positive=["4", 0],
        negative=["5", 0],
        latent=["6", 0],
        seed=11,
        seeds=1,
        policy="observe",
        sensitivity=97.7,
    )


def test_the_other_nodes_stay_as_they_are_so_that_they_come_from_the_cache():
    found = checked(plain())
    assert {key: found[key] for key in found if key != "memguard_check_3"}.items() <= plain().items()


def test_a_seed_that_comes_from_a_node_stays_a_link():
    prompt = plain(seed=["12", 0]) | {"12": node("PrimitiveInt", value=3)}
    found = checked(prompt)
    assert found["memguard_check_3"]["inputs"]["seed"] == ["12", 0]
    assert "12" in found


def test_a_sampler_behind_other_model_nodes_is_found():
    prompt = plain(model=["12", 0]) | {"12": node("ModelSamplingSD3", model=["3", 0], shift=3.0)}
    assert checked(prompt)["memguard_check_3"]["inputs"]["model"] == ["12", 0]


def test_a_profile_of_the_guard_is_used():
    prompt = plain() | {"12": node("MemGuard_LoadProfile", name="p")}
    prompt["3"]["inputs"]["profile"] = ["12", 0]
    assert checked(prompt)["memguard_check_3"]["inputs"]["profile"] == ["12", 0]


def test_a_guider_says_what_its_sampler_gets():
    inputs = checked(guided("CFGGuider", positive=["4", 0], negative=["5", 0], cfg=4.0))["memguard_check_3"]["inputs"]
    assert (inputs["positive"], inputs["negative"], inputs["seed"], inputs["sigmas"]) == (
        ["4", 0],
        ["5", 0],
        5,
        ["11", 0],
    )


def test_a_guider_without_negative_is_compared_with_the_empty_prompt():
    found = checked(guided("BasicGuider", conditioning=["4", 0]))
    empty = found["memguard_check_3"]["inputs"]["negative"]
    assert found[empty[0]] == node("CLIPTextEncode", clip=["2", 1], text="")


def test_the_guards_own_empty_prompt_comes_first():
    prompt = guided("BasicGuider", conditioning=["4", 0])
    prompt["3"]["inputs"]["empty"] = ["5", 0]
    assert checked(prompt)["memguard_check_3"]["inputs"]["negative"] == ["5", 0]


def test_a_run_that_starts_from_a_picture_is_checked_at_its_own_noise():
    found = checked(plain(denoise=0.6))
    sigmas = found["memguard_check_3"]["inputs"]["sigmas"]
    assert found[sigmas[0]] == node("BasicScheduler", model=["3", 0], scheduler="normal", steps=20, denoise=0.6)


def test_the_first_of_two_passes_is_checked():
    prompt = plain(denoise=0.5, latent_image=["13", 0])
    prompt["13"] = node("LatentUpscale", samples=["12", 0])
    prompt["12"] = plain()["7"]
    prompt["12"]["inputs"]["seed"] = 99
    found = checked(prompt)
    assert found["memguard_check_3"]["inputs"]["seed"] == 99
    assert not {"7", "12", "13"} & set(found)


def test_a_guard_of_the_second_pass_alone_says_that_it_would_have_to_sample():
    prompt = plain(latent_image=["12", 0])
    prompt["12"] = plain(model=["2", 0])["7"]
    assert "a check would have to sample" in refusal(prompt)


def test_without_a_sampler_it_says_so():
    assert "No sampler gets this node's model; connect its model output" in refusal(plain(model=["2", 0]))


def test_a_bypassed_guard_says_so():
    assert "bypassed or muted" in refusal(plain(), "77")


@pytest.mark.parametrize("guard", ["3", "12:3"])
def test_the_check_knows_its_guard(guard):
    assert ask("precheck", "precheck.guardOf(precheck.checkId(guard))", guard=guard) == guard
    assert ask("precheck", "precheck.guardOf(guard)", guard=guard) is None


def test_the_guards_of_a_sampler_are_found():
    prompt = plain() | {"20": node("MemGuard", model=["1", 0])}
    assert ask("wiring", "wiring.guardsOf(prompt, 7)", prompt=prompt) == ["3"]
    assert ask("wiring", "wiring.guardsOf(prompt, '8')", prompt=prompt) == []


def test_the_checkpoint_is_the_one_before_the_guard():
    prompt = plain() | {"20": node("UNETLoader", unet_name="other.safetensors")}
    assert ask("wiring", "wiring.checkpointsOf(prompt, '3')", prompt=prompt) == ["a.safetensors"]


def typed(prompt, boxes):
    """What graph.js adds: the types of links, and which inputs are boxes for text."""
    types = {"positive": "CONDITIONING", "conditioning_1": "CONDITIONING", "conditioning_2": "CONDITIONING"}
    types |= {"text": "STRING", "string_a": "STRING", "image": "IMAGE", "clip": "CLIP", "model": "MODEL"}
    return {
        key: {**value, "types": {name: types.get(name, "INT") for name in value["inputs"]}, "boxes": boxes.get(key, [])}
        for key, value in prompt.items()
    }


def test_texts_are_found_through_conditioning_and_strings_and_not_through_pictures():
    prompt = plain() | {
        "4": node("CLIPTextEncode", clip=["2", 1], text=["13", 0]),
        "12": node("ConditioningCombine", conditioning_1=["14", 0], conditioning_2=["15", 0]),
        "13": node("StringConcatenate", string_a=["16", 0], string_b="of tea"),
        "14": node("ConditioningSetArea", conditioning_1=["4", 0], width=8),
        "15": node("ControlNetApplyAdvanced", positive=["17", 0], image=["18", 0]),
        "16": node("PrimitiveStringMultiline", value="a cup"),
        "17": node("CLIPTextEncode", clip=["2", 1], text="a tree"),
        "18": node("MakesAPicture", text="another model's prompt"),
    }
    boxes = {"4": ["text"], "16": ["value"], "17": ["text"], "18": ["text"]}
    found = ask("wiring", "wiring.textsOf(prompt, ['12', 0])", prompt=typed(prompt, boxes))
    assert [(entry["id"], entry["name"], entry["text"]) for entry in found] == [
        ("16", "value", "a cup"),
        ("17", "text", "a tree"),
    ]


def test_a_sampler_of_a_missing_pack_ends_nothing():
    prompt = plain()
    prompt["9"] = {"inputs": dict(prompt["7"]["inputs"])}  # ComfyUI knows no class of it
    found = ask("wiring", "wiring.samplersOf(prompt, '3').map(({ id }) => id)", prompt=prompt)
    assert found == ["7", "9"]
