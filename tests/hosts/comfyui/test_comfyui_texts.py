"""Which text of a workflow is the prompt, and which only looks like it: graphs, conditionings, lists, expansion."""

import pytest
import torch
from comfy_execution import progress
from comfy_execution.graph import DynamicPrompt
from comfy_execution.utils import CurrentNodeContext

import nodes
from memguard_pack.memguard import Guard
from memguard_pack.memguard.hosts.comfyui import graph, screen, texts
from memguard_pack.memguard.hosts.comfyui.watcher import CHANGED, Watcher
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.scene import built
from memguard_pack.tests.hosts.comfyui.test_comfyui_explain import encode
from memguard_pack.tests.hosts.comfyui.test_comfyui_words import profile

CLIP = ["clip", 0]


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def sampler(positive, negative=None):
    return node("KSampler", positive=positive, negative=negative or ["neg", 0], seed=1)


def encoder(text, kind="CLIPTextEncode"):
    return node(kind, clip=CLIP, text=text)


def both(made, index=None):
    """Return the positive and the negative prompt of a graph's sampler."""
    return tuple(texts.of(made, "s", role, index).prompt for role in ("positive", "negative"))


PLAIN = {"pos": encoder("a fox"), "neg": encoder("blurry")}


@pytest.fixture(autouse=True)
def others(monkeypatch):
    """Nodes of other packs, as ComfyUI registers them."""

    def kind(outputs, names=None, lists=None):
        return type("Other", (), {"RETURN_TYPES": outputs, "RETURN_NAMES": names, "OUTPUT_IS_LIST": lists})

    pair = ("CONDITIONING", "CONDITIONING")
    known = {
        "Pair": kind(pair, ("positive", "negative")),
        "Swapped": kind(pair, ("NEG", "POS")),
        "Loader": kind(("MODEL", *pair), ("MODEL", "CONDITIONING+", "CONDITIONING-")),
        "Lines": kind(("STRING",), ("lines",), (True,)),
        "Conditionings": kind(("CONDITIONING",), None, (True,)),
        "Styler": kind(("STRING", "STRING"), ("text_positive", "text_negative")),
    }
    for name, cls in known.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, cls)


def test_plain_texts_are_the_prompts():
    assert both({"s": sampler(["pos", 0]), **PLAIN}) == ("a fox", "blurry")
    box = node("PrimitiveStringMultiline", value="a fox")
    linked = {"s": sampler(["pos", 0]), "pos": encoder(["box", 0]), "box": box, "neg": PLAIN["neg"]}
    assert both(linked) == ("a fox", "blurry")
    shown = {**linked, "pos": encoder(["show", 0]), "show": node("ShowText|pysssss", text=["box", 0])}
    assert both(shown)[0] == "a fox"


@pytest.mark.parametrize("kind", ["Pair", "ControlNetApplyAdvanced"])
def test_a_node_with_both_prompts_keeps_them_apart(kind):
    pair = node(kind, positive=["pos", 0], negative=["neg", 0])
    assert both({"s": sampler(["p", 0], ["p", 1]), "p": pair, **PLAIN}) == ("a fox", "blurry")


def test_the_output_decides_and_not_the_role_that_it_is_used_in():
    pair = node("Pair", positive=["pos", 0], negative=["neg", 0])
    assert both({"s": sampler(["p", 1], ["p", 0]), "p": pair, **PLAIN}) == ("blurry", "a fox")
    swapped = node("Swapped", positive=["pos", 0], negative=["neg", 0])
    assert both({"s": sampler(["p", 1], ["p", 0]), "p": swapped, **PLAIN}) == ("a fox", "blurry")


@pytest.mark.parametrize(
    "names", [("positive", "negative"), ("text_positive", "text_negative"), ("prompt", "negative_prompt")]
)
def test_a_loader_with_both_texts_keeps_them_apart(names):
    loader = node("Loader", ckpt_name="x", **dict(zip(names, ("a fox", "blurry"), strict=True)))
    assert both({"s": sampler(["l", 1], ["l", 2]), "l": loader}) == ("a fox", "blurry")


def test_names_that_only_begin_like_a_side_are_none():
    made = {"s": sampler(["c", 0]), "c": node("Other", conditioning=["pos", 0], pose=3, negate=True), **PLAIN}
    assert both(made)[0] == "a fox"


COMPUTED = {
    "replaced": node("StringReplace", string="a fox", find="fox", replace="cat"),
    "cased": node("CaseConverter", string="a fox", mode="UPPERCASE"),
    "by a pattern": node("RegexReplace", string="a fox", regex_pattern="f.x", replace="cat"),
    "joined": node("StringConcatenate", string_a="a fox", string_b="in snow", delimiter=", "),
    "styled": node("Styler", text_positive="a fox", text_negative="blurry", style="anime"),
    "cut into lines": node("Lines", text="a fox\na cat"),
    "of a node that changes it": node("Translate", text=["box", 0]),
}


@pytest.mark.parametrize("how", COMPUTED)
def test_computed_text_is_no_prompt(how):
    made = {"s": sampler(["pos", 0]), "pos": encoder(["made", 0]), "made": COMPUTED[how], "neg": PLAIN["neg"]}
    made["box"] = node("PrimitiveString", value="a fox")
    assert both(made) == (None, "blurry")
    assert "a fox" in texts.of(made, "s", "positive").found[0]  # a candidate


def test_a_prompt_that_was_zeroed_has_no_text():
    made = {"s": sampler(["pos", 0], ["z", 0]), "z": node("ConditioningZeroOut", conditioning=["pos", 0]), **PLAIN}
    assert both(made) == ("a fox", None)


def test_joined_prompts_are_both_and_mixed_or_chosen_ones_none():
    two = {"s": sampler(["j", 0]), "a": encoder("a fox"), "b": encoder("in snow"), "neg": PLAIN["neg"]}
    for kind in ("ConditioningCombine", "ConditioningConcat"):
        joined = node(kind, conditioning_1=["a", 0], conditioning_2=["b", 0])
        assert both({**two, "j": joined})[0] == "a fox | in snow"
    for kind in ("ConditioningAverage", "Switch", "Conditionings"):
        assert both({**two, "j": node(kind, one=["a", 0], two=["b", 0])})[0] is None


def test_a_text_beside_a_conditioning_is_not_the_prompt():
    box = node("GLIGENTextBoxApply", conditioning_to=["pos", 0], clip=CLIP, text="a cat", x=1)
    assert both({"s": sampler(["g", 0]), "g": box, **PLAIN})[0] == "a fox"


def test_guiders_and_pipes_lead_to_the_prompt():
    assert both({"s": node("SamplerCustomAdvanced", guider=["g", 0]), "g": sampler(["pos", 0]), **PLAIN})[0] == "a fox"
    pipe = node("ToBasicPipe", model=["m", 0], positive=["pos", 0], negative=["neg", 0])
    assert both({"s": node("KSampler //Inspire", basic_pipe=["p", 0]), "p": pipe, **PLAIN}) == ("a fox", "blurry")


@pytest.mark.parametrize(("index", "text"), [(0, "a fox"), (1, "a cat"), (2, "a cat"), (None, "a fox")])
def test_each_entry_of_a_list_is_its_own_prompt(index, text):
    two = {"a": encoder("a fox"), "b": encoder("a cat"), "neg": PLAIN["neg"]}
    listed = node("CreateList", **{"inputs.input0": ["a", 0], "inputs.input1": ["b", 0]})
    assert both({"s": sampler(["l", 0]), "l": listed, **two}, index) == (text, "blurry")
    words = node("CreateList", **{"inputs.input0": "a fox", "inputs.input1": "a cat"})
    assert both({"s": sampler(["pos", 0]), "pos": encoder(["w", 0]), "w": words, **two}, index)[0] == text


def test_loops_and_values_that_look_like_links_end_nowhere():
    assert both({"s": sampler(["a", 0]), "a": node("Other", conditioning=["a", 0])}) == (None, None)
    assert both({"s": sampler([[torch.zeros(1), {}], [torch.zeros(1), {}]])}) == (None, None)
    assert both({}) == (None, None) and graph.prompt_texts({}, None, "positive") == []


# --- encoding again ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch):
    """A function that samples the conditioning of a text in a graph and returns the report."""

    def sample(made, text, clip=True, index=0, node_id="s"):
        model, encoding, negative = built("sd15")
        monkeypatch.setattr(screen, "running_prompt", lambda prompt_id: made)
        watcher = Watcher(Guard(profile=profile(model, 1e-7)), clip=encoding if clip else None, explain="never")
        with torch.inference_mode(), CurrentNodeContext("job", node_id, index):
            latent = tiny.sample(watcher.install(model), encode(encoding, text), negative, tiny.latent())
        return watcher.report_of(latent)

    return sample


def test_a_computed_text_is_named_where_encoding_it_gives_the_prompt(run):
    made = {"s": sampler(["pos", 0]), "pos": encoder(["c", 0]), "c": COMPUTED["cased"], "neg": PLAIN["neg"]}
    assert run(made, "a fox").prompt == "a fox"  # the node changed nothing
    assert run(made, "A FOX on a hill").prompt is None
    assert run(made, "a fox", clip=False).prompt is None


def test_of_a_list_the_one_is_named_that_was_sampled(run):
    two = {"a": encoder("a fox"), "b": encoder("a cat"), "neg": PLAIN["neg"]}
    made = {"s": sampler(["l", 0]), "l": node("Conditionings", one=["a", 0], two=["b", 0]), **two}
    assert [run(made, text, index=i).prompt for i, text in enumerate(("a cat", "a fox"))] == ["a cat", "a fox"]


def test_an_encoder_of_another_pack_is_believed_only_where_its_text_encodes_alike(run):
    made = {"s": sampler(["pos", 0]), "pos": encoder("a fox", "Advanced Encode"), "neg": PLAIN["neg"]}
    assert run(made, "a fox").prompt == "a fox"
    other = run(made, "a house")
    assert other.prompt is None and CHANGED in other.notes
    assert run(made, "a house", clip=False).prompt == "a fox"  # what was typed


# --- nodes that nodes made -----------------------------------------------------------------------------------------


@pytest.fixture
def expanded(monkeypatch):
    """A prompt of which a loop node has made a second iteration, as the executor keeps it."""
    dynamic = DynamicPrompt({"s": sampler(["pos", 0]), **PLAIN, "loop": node("ForEach", guard=["g", 0])})
    dynamic.add_ephemeral_node("loop.0.pos", encoder("a cat"), "loop", "pos")
    dynamic.add_ephemeral_node("loop.0.s", sampler(["loop.0.pos", 0]), "loop", "s")
    monkeypatch.setattr(progress, "global_progress_registry", progress.ProgressRegistry("job", dynamic))
    return dynamic


def test_the_second_iteration_has_its_own_prompt(expanded):
    with CurrentNodeContext("job", "loop.0.s", 0):
        found = screen.running_prompt("job")
        assert texts.of(found, "loop.0.s", "positive").prompt == "a cat"
        assert texts.of(found, "loop.0.s", "negative").prompt == "blurry"
        assert screen.shown("loop.0.s") == "s" and screen.shown("s") == "s" and screen.shown(None) is None
    assert screen.running_prompt("another job") == {}


def test_the_page_is_told_the_node_that_it_shows(expanded, monkeypatch):
    sent, said = [], []

    class Server:
        client_id = "page"

        def send_sync(self, event, payload, client):
            sent.append(payload)

        def send_progress_text(self, text, node_id, client):
            said.append(node_id)

    monkeypatch.setattr(screen, "server", Server)
    monkeypatch.setattr(screen, "_running", lambda prompt_id: None)
    report = Guard().begin(host="comfyui").report
    with CurrentNodeContext("job", "loop.0.s", 0):
        screen.show(report, home="loop.0.pos")
    assert (sent[0]["node_id"], sent[0]["home"], said) == ("s", "pos", ["s"])
