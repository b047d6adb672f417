"""The model card of the test bed names what its training does beside plain epsilon training, by the numbers in use."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def options() -> dict[str, float]:
    """The defaults of the training options, read from the source: training needs packages that tests may lack."""
    tree = ast.parse((ROOT / "testbed" / "train.py").read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Options")
    return {node.target.id: ast.literal_eval(node.value) for node in found.body if isinstance(node, ast.AnnAssign)}


def test_the_card_names_the_coarse_loss_and_the_share_of_high_noise():
    card, known = (ROOT / "docs" / "testbed.md").read_text(encoding="utf-8"), options()
    weight, share = f"{known['coarse']:g}".lstrip("0"), known["high_noise"]
    assert re.search(rf"\+ {re.escape(weight)} times a coarse loss", card)
    high = round(known["batch"] * share)
    everywhere = (high + (known["batch"] - high) * 0.4) / known["batch"]  # of the others, 400 of 1000 timesteps
    assert f"{share:.0%}".replace("%", " %") + " of the rows of a step are drawn from timesteps 600..999" in card
    assert f"{everywhere:.0%}".replace("%", " %") + " are at high noise" in card
