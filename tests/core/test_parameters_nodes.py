"""ComfyUI's nodes show the table of settings, in the order of saved workflows; read without ComfyUI."""

from dataclasses import replace

import pytest

from memguard import mitigations
from memguard.detectors import available
from memguard.mitigations.base import Mitigation
from memguard.records import POLICIES
from memguard.setting import of
from memguard.table import AUDIT, COPIES, EXPLAIN, GUARD, NEURONS, RUN
from tools import schemas

STRENGTH = {"strength": of(Mitigation)["strength"]}
DETECTORS = replace(GUARD["detector"], choices=dict.fromkeys(sorted(available()), ""))


def own(name):
    return of(mitigations.kind(name))


# widget -> setting, by node
NODES = {
    "MemGuard": {
        "detectors": DETECTORS,
        **{name: GUARD[name] for name in ("policy", "sensitivity", "steps", "reference", "explain")},
    },
    "MemGuard_CheckPrompt": {"policy": GUARD["policy"], "sensitivity": GUARD["sensitivity"]},
    "MemGuard_TokenAttribution": {"method": EXPLAIN["method"], "respect_to": EXPLAIN["respect_to"]},
    "MemGuard_Overlay": {"show": EXPLAIN["maps"]},
    "MemGuard_AuditLora": {
        "seeds": AUDIT["num_images"],
        "steps": AUDIT["num_inference_steps"],
        "cfg": RUN["guidance_scale"],
        "limit": AUDIT["limit"],
        "threshold": AUDIT["threshold"],
    },
    "MemGuard_FindCopies": {"threshold": COPIES["threshold"]},
    "MemGuard_FindNeurons": {
        "images": NEURONS["num_images"],
        "threshold": NEURONS["threshold"],
        "mode": NEURONS["mode"],
    },
    "MemGuard_AttentionScaling": own("attention_scaling"),
    "MemGuard_GuidanceDelay": own("guidance_delay"),
    "MemGuard_NeuronMask": own("neuron_mask"),
    "MemGuard_Mitigation": STRENGTH | {"text": own("paraphrase")["text"]},
    "MemGuard_OptimizePrompt": own("prompt_optimization"),
    "MemGuard_AdjustNoise": own("noise_adjustment"),
}
# numbers and choices of the nodes alone
ALONE = {
    ("MemGuard_AdjustNoise", "noise_seed"),
    ("MemGuard_AuditLora", "lora_name"),
    ("MemGuard_AuditLora", "sampler_name"),
    ("MemGuard_AuditLora", "scheduler"),
    ("MemGuard_AuditLora", "seed"),
    ("MemGuard_Calibrate", "seed"),
    ("MemGuard_CheckPrompt", "seed"),
    ("MemGuard_CheckPrompt", "seeds"),
    ("MemGuard_FindNeurons", "all_layers"),
    ("MemGuard_FindNeurons", "seed"),
    ("MemGuard_LoadNeurons", "name"),
    ("MemGuard_LoadProfile", "name"),
    ("MemGuard_Mitigation", "method"),
    ("MemGuard_OptimizePrompt", "seed"),
    ("MemGuard_Overlay", "opacity"),
    ("MemGuard_Overlay", "smooth"),
    ("MemGuard_TokenAttribution", "seed"),
}
WIDGETS = [
    (name, each)
    for name, schema in schemas.schemas().items()
    for each in schema.inputs
    if each.type in ("Int", "Float", "Boolean", "Combo") and (name, each.id) not in ALONE
]


@pytest.mark.parametrize(("node", "widget"), WIDGETS, ids=lambda each: getattr(each, "id", each))
def test_a_node_s_widget_is_the_setting(node, widget):
    setting = NODES[node][widget.id]  # a KeyError is a widget that is said by itself: put it into the table
    shown = vars(widget)
    assert shown["default"] == (setting.unset if setting.default is None else setting.default)
    if widget.id != "policy":
        assert shown["tooltip"].startswith(setting.whole_text)
        assert shown.get("options") == (list(setting.choices) or None)
    if widget.type in ("Int", "Float"):
        assert (shown["min"], shown["max"], shown["step"]) == (*setting.span, setting.step or 1)
        assert {type(shown[each]) for each in ("default", "min", "max", "step")} == {setting.kind}


def test_the_nodes_policies():
    for node, policies in (("MemGuard", POLICIES), ("MemGuard_CheckPrompt", POLICIES[:3])):
        (policy,) = (each for each in schemas.schemas()[node].inputs if each.id == "policy")
        assert policy.options == list(policies)
        assert all(f"{name}: {GUARD['policy'].choices[name]}." in policy.tooltip for name in policies)


def test_the_widgets_of_saved_workflows_are_in_their_order():
    found = {
        name: [each.id for each in schema.inputs if hasattr(each, "default")]
        for name, schema in schemas.schemas().items()
    }
    assert found["MemGuard"] == ["detectors", "policy", "sensitivity", "steps", "reference", "explain"]
    assert found["MemGuard_AttentionScaling"] == ["bos_scale", "mask_padding", "mask_eos", "strength"]
    assert found["MemGuard_GuidanceDelay"] == ["transition", "until", "before", "strength"]
    assert found["MemGuard_NeuronMask"] == ["factor", "force", "strength"]
    assert found["MemGuard_OptimizePrompt"] == ["seed", "lr", "iterations", "target", "pooled", "strength"]
    adjust = ["noise_seed", "method", "rounds", "iterations", "target", "until", "strength"]
    assert found["MemGuard_AdjustNoise"] == adjust
    audit = "lora_name folder held_out seeds steps cfg limit seed sampler_name scheduler threshold".split()
    assert found["MemGuard_AuditLora"] == audit
