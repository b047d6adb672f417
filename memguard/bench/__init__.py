"""How good a detector is: ROC figures with intervals."""
