"""One file = one way to say which word, or which region of the picture, drives the noise gap.

``words`` groups tokens to words, ``moment`` is a model call that can be made again with another prompt. ``gradient``,
``ablation`` and ``attention`` weigh words, put together by ``weighing``; ``maps`` weighs places.
"""

METHODS = ("gradient", "ablation", "attention")
MAPS = ("noise_gap", "bright_ending", "word")
