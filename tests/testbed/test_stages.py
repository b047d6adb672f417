"""Early stages of the test bed are in the source tree alone; a package without them says so."""

import shutil

import pytest

from memguard import cli
from memguard.testbed import loader


def test_the_source_tree_has_all_stages_and_the_package_the_final_one():
    assert [loader.weights(stage).is_file() for stage in loader.STAGES] == [True, True, True]
    assert [path.name for path in loader.assets().glob("stage-*")] == ["stage-final.safetensors"]
    with pytest.raises(ValueError, match="no stage 'late'"):
        loader.weights("late")


def test_without_the_source_tree_an_early_stage_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("diffusers")
    package = tmp_path / "site" / "memguard" / "testbed"
    package.mkdir(parents=True)
    shutil.copy(loader.__file__, package / "loader.py")
    monkeypatch.setattr(loader, "__file__", str(package / "loader.py"))
    assert cli.main(["testbed", "export", "--format", "diffusers", "--stage", "early", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "stage-early.safetensors is missing" in said and "use the final one" in said and said.count("\n") == 1
