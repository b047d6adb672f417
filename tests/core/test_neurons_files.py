"""The NeuronSet file, merging, comparing, the CSV of NeMo's scripts, and sets that do not fit."""

import json

import pytest
import torch
from safetensors.torch import save_file

from memguard import neurons
from memguard.neurons.nemo import LAYERS
from memguard.neurons.state import State
from memguard.records import NeuronSet

WIDTHS = {"down_blocks.0.attn2": 64, "mid_block.attn2": 128}
SET = NeuronSet(
    {"down_blocks.0.attn2": (3, 63), "mid_block.attn2": (0,)}, 0.1, "cafe", "prompt: ä red\nfox", 0.9, 0.3, 120
)


def test_a_file_brings_everything_back(tmp_path):
    path = neurons.save(SET, tmp_path / "new" / "set.safetensors")
    assert neurons.load(path) == SET and SET.count == 3
    assert [p.name for p in path.parent.iterdir()] == ["set.safetensors"]
    empty = NeuronSet({})
    assert neurons.load(neurons.save(empty, path)) == empty


@pytest.mark.parametrize("indices", [[2, 1], [1, 1], [-1, 2]])
def test_indices_that_are_no_sorted_list_are_refused(indices, tmp_path):
    path = neurons.save(NeuronSet({"mid_block.attn2": tuple(indices)}), tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match=r"s\.safetensors: the file is damaged \(mid_block"):
        neurons.load(path)


def test_other_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="is not a memguard-neuron-set file but some other safetensors"):
        neurons.load(path)
    save_file({"a": torch.ones(1)}, path, {"kind": "memguard-neuron-set", "schema": "2", "facts": "{}"})
    with pytest.raises(ValueError, match="has schema 2, this memguard reads 1; update memguard"):
        neurons.load(path)
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match="is not a memguard-neuron-set file") as error:
        neurons.load(path)
    assert "\n" not in str(error.value)


FACTS = {"scale": 0.0, "model": "", "provenance": "", "ssim_before": None, "ssim_after": None, "rows": 0}


@pytest.mark.parametrize(
    "facts",
    [
        "[" * 20_000,
        "[]",
        "null",
        "{",
        json.dumps(FACTS | {"scale": float("nan")}),
        json.dumps(FACTS | {"scale": None}),
        json.dumps(FACTS | {"scale": "0"}),
        json.dumps(FACTS | {"scale": 10**400}),
        json.dumps(FACTS | {"model": {"a": 1}}),
        json.dumps(FACTS | {"provenance": [1]}),
        json.dumps(FACTS | {"ssim_after": float("inf")}),
        json.dumps(FACTS | {"rows": {}}),
        json.dumps(FACTS | {"colour": 1}),
        json.dumps(FACTS).replace("0.0", "9" * 5000),
    ],
)
def test_facts_that_nobody_writes_are_refused_in_one_line(facts, tmp_path):
    path = tmp_path / "s.safetensors"
    save_file(
        {"mid_block.attn2": torch.ones(1, dtype=torch.int32)},
        path,
        {"kind": "memguard-neuron-set", "schema": "1", "facts": facts},
    )
    with pytest.raises(ValueError, match="damaged") as error:
        neurons.load(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    facts = facts.replace("{", '{"request": 1, "scores": [], "layers": 3, ', 1)
    for kind, read in (("activation-statistics", neurons.ActivationStatistics.load), ("neuron-search", State)):
        save_file({"a": torch.ones(1)}, path, {"kind": f"memguard-{kind}", "schema": "1", "facts": facts})
        with pytest.raises(ValueError, match=r"damaged|incomplete"):
            read(path)


@pytest.mark.parametrize("dtype", ["F4", "I32", "XX", "F8_E8M0"])
def test_a_number_format_that_is_not_known_is_refused(dtype, tmp_path):
    header = {
        "__metadata__": {"kind": "memguard-neuron-set", "schema": "1", "facts": json.dumps(FACTS)},
        "mid_block.attn2": {"dtype": dtype, "shape": [2, 4], "data_offsets": [0, 4]},
    }
    data = json.dumps(header).encode()
    (tmp_path / "s.safetensors").write_bytes(len(data).to_bytes(8, "little") + data + bytes(4))
    with pytest.raises(ValueError, match="damaged"):
        neurons.load(tmp_path / "s.safetensors")


def test_an_index_above_32_bits_is_refused(tmp_path):
    path = neurons.save(NeuronSet({"mid_block.attn2": (2**31 - 1,)}), tmp_path / "s.safetensors")
    assert neurons.load(path).indices == {"mid_block.attn2": (2**31 - 1,)}
    with pytest.raises(ValueError, match="neuron 2147483648 of mid_block.attn2 is above 2147483647"):
        neurons.save(NeuronSet({"mid_block.attn2": (2**31,)}), path)


def test_a_set_that_fits_is_accepted_and_one_of_another_model_only_by_force():
    neurons.check(SET, WIDTHS, "cafe")
    neurons.check(NeuronSet(SET.indices), WIDTHS, "cafe")
    with pytest.raises(
        ValueError, match="was made for model cafe, and this is model beef; find the neurons on this model"
    ):
        neurons.check(SET, WIDTHS, "beef")
    neurons.check(SET, WIDTHS, "beef", force=True)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (
            {"up.attn2": (1,)},
            "names up.attn2, which is no cross-attention layer of this model; it has down_blocks.0.attn2,",
        ),
        ({"mid_block.attn2": (5, 128)}, r"neuron 128 of mid_block.attn2, and the model has 128 there \(0 to 127\)"),
        ({"mid_block.attn2": (-1,)}, "neuron -1 of mid_block.attn2"),
    ],
)
def test_layers_and_indices_must_fit_also_by_force(indices, message):
    for force in (False, True):
        with pytest.raises(ValueError, match=message):
            neurons.check(NeuronSet(indices, model="cafe"), WIDTHS, "cafe", force)


def test_merge_is_the_union():
    other = NeuronSet({"mid_block.attn2": (0, 7), "up_blocks.1.attn2": (2,)}, 0.1, "cafe", "two", rows=10)
    found = neurons.merge([SET, other])
    assert found.indices == {"down_blocks.0.attn2": (3, 63), "mid_block.attn2": (0, 7), "up_blocks.1.attn2": (2,)}
    assert (found.scale, found.model, found.rows) == (0.1, "cafe", 130)
    assert found.provenance == "prompt: ä red\nfox\ntwo" and found.ssim_after is None
    assert neurons.merge([SET]) == SET


def test_merge_refuses_what_does_not_belong_together():
    with pytest.raises(ValueError, match="no neuron sets to merge"):
        neurons.merge([])
    with pytest.raises(ValueError, match=r"different models \(cafe, beef\)"):
        neurons.merge([SET, NeuronSet({}, 0.1, "beef")])
    assert neurons.merge([SET, NeuronSet({}, 0.1, "beef")], force=True).model == "cafe"
    with pytest.raises(ValueError, match=r"different scales \(0.1, 0\)"):
        neurons.merge([SET, NeuronSet({})])


def test_diff_says_who_has_what():
    other = NeuronSet({"mid_block.attn2": (0, 7)})
    assert neurons.diff(SET, other) == {
        "first": {"down_blocks.0.attn2": (3, 63)},
        "second": {"mid_block.attn2": (7,)},
        "both": {"mid_block.attn2": (0,)},
    }


HEADER = "Caption;URL;Initial Neurons;Initial SSIM;Refined Neurons;Refined SSIM\n"


def test_the_csv_of_nemo_s_scripts(tmp_path):
    path = tmp_path / "memorization_statistics_v1_4.csv"
    path.write_text(
        HEADER
        + 'A fox; red;u;"[[5, 1, 5], [], [], [], [], [], [1279]]";0.31;"[[], [], [], [], [], [], [1279]]";0.2\n'
        "b;u;[[], [], [], [], [], [], []];0;[[], [], [], [], [], [], []];0\n".replace("A fox; red", '"A fox; red"')
    )
    (first, found), (second, nothing) = neurons.read_csv(path)
    assert (first, second) == ("A fox; red", "b") and nothing.indices == {} and nothing.ssim_after is None
    assert found.indices == {LAYERS[6]: (1279,)} and (found.scale, found.ssim_after, found.model) == (0.0, 0.2, "")
    initial = neurons.read_csv(path, "initial", "cafe")[0][1]
    assert initial.indices == {LAYERS[0]: (1, 5), LAYERS[6]: (1279,)} and (initial.model, initial.ssim_after) == (
        "cafe",
        0.31,
    )
    assert LAYERS[3] == "down_blocks.1.attentions.1.transformer_blocks.0.attn2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Caption;URL\na;b\n", "has no column Refined Neurons; give the result file of NeMo's script 3"),
        ("", "has no column Caption"),
        (HEADER + "a;u;[];0;[[1]];0\n", "row 2: Refined Neurons are not 7 lists of numbers"),
        (HEADER + "a;u;[];0;[[], [], [], [], [], [], [-1]];0\n", "row 2"),
        (HEADER + "a;u;[];0;nonsense;0\n", "row 2"),
    ],
)
def test_other_tables_are_refused(text, message, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        neurons.read_csv(path)
    with pytest.raises(ValueError, match=r"no\.csv: cannot be read"):
        neurons.read_csv(tmp_path / "no.csv")
