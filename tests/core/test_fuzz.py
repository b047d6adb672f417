"""A short run of the fuzzer, benchmarks/fuzz.py: some odd inputs of every kind, the same ones every time."""

from collections import Counter
from random import Random

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("pyarrow")

from tests.fuzz.bench import Bench, Broken
from tests.fuzz.cases import CASES
from tests.fuzz.running import prepared


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("case", dict.fromkeys(CASES), ids=lambda case: case.__name__)
def test_odd_input_ends_in_one_line_and_costs_no_row_and_no_file(bench, case):
    codes = Counter()
    for number in range(3):
        with bench.fresh(codes):
            case(Random(f"{case.__name__} {number}"), bench)
    assert set(codes) <= {0, 1, 2} and codes.total() >= 3


@pytest.mark.parametrize(
    "does",
    [
        lambda folder: 1 / 0,
        lambda folder: 3,
        lambda folder: (folder / "mine").write_text("changed") and 0,
        lambda folder: print("\x1b[31m") or 0,
        lambda folder: 2,  # and says nothing
    ],
)
def test_the_fuzzer_sees_what_it_looks_for(tmp_path, monkeypatch, does):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    monkeypatch.setattr("memguard.cli.main", lambda words: does(folder))
    with pytest.raises(Broken):
        Bench(folder, None).run(["scan"])
