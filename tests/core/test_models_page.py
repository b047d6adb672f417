"""The page of models, from rows of the two matrices: a mark where something works, else the number of its reason."""

from memguard.mitigations import available
from tools.models_page import YES, comfyui, diffusers, table


def test_a_row_of_comfyui_has_a_mark_or_the_reason_without_the_model_s_name():
    said = "Guard was left out: MemGuard knows no layers; Guard: was left out: MemGuard knows no layers"
    watched = {"text_noise_norm": "ok", "attention_entropy": "Flux has no cross-attention layers: prompt and picture"}
    row = {"watched": watched, "gradient": "ok", "ablation": "ok", "attention": "not known (Flux)", "guard": said}
    found = comfyui(row | {name: "" for name in available() if name != "guard"})
    assert found["score"] == found["gradient"] == found["padding"] == ""
    assert found["entropy"] == "this model has no cross-attention layers: prompt and picture"
    assert (found["attention"], found["guard"]) == ("not known", "MemGuard knows no layers")


def test_a_row_of_diffusers_is_changed_or_said_why_not():
    row = {"watch": [["ok", [0.1]], ["unread", []]], "explain gradient": "refused: no prompt", "padding": "changed"}
    found = diffusers(
        row | {"random_tokens": "the prompt became 'a  x fox': never took effect", "explain ablation": ["ok", "a"]}
    )
    assert (found["score"], found["entropy"], found["padding"], found["ablation"]) == ("", "unread", "", "")
    assert (found["gradient"], found["guard"]) == ("no prompt", "not run")
    assert found["random_tokens"] == "the prompt became another: never took effect"


def test_equal_reasons_have_one_number():
    works = dict.fromkeys(available(), "")
    rows = {
        "B": works | {"score": "", "entropy": "none", "gradient": "", "ablation": "", "attention": "none"},
        "A": works | {"score": "none", "entropy": "other", "gradient": "no", "ablation": "no", "attention": "no"},
    }
    lines = table("Host", rows, left=available()).splitlines()
    assert lines[2] == "| model | score | entropy | words |"
    assert lines[4:6] == ["| A | 1 | 2 | 3 |", f"| B | {YES} | 1 | ga |"]
    assert lines[7:] == ["1. none", "2. other", "3. no"]
