"""The settings that several front ends show: of a guard, a run, an audit, a search. Those of mitigations are theirs.

Nodes, controls, flags and docs/parameters.md are built from it; what cannot be used is refused by it.
"""

from __future__ import annotations

from dataclasses import replace

from .setting import Setting

GUARD: dict[str, Setting] = {
    "policy": Setting(
        "observe",
        choices={
            "observe": "score and report, never touch the picture",
            "warn": "also show a warning",
            "stop": "end the run after the scored steps if the prompt looks memorized",
            "mitigate": "make the first step of a run that looks memorized anew under a mitigation, and sample on from "
            "there; ordinary prompts stay as they are, bit for bit",
        },
    ),
    "sensitivity": Setting(
        99.0,
        "Percentile of ordinary prompts above which a prompt is suspicious.",
        "At 99, about 1 ordinary prompt in 100 is. 99 takes a profile of at least 99 prompts, 99.9 one of 999. Needs a "
        "profile of the checkpoint.",
        least=50,
        most=99.99,
        step=0.01,
        what="a percentile",
    ),
    "steps": Setting(
        1,
        "Number of model calls to score, from the first on; the score is their mean.",
        "1 is enough, and what profiles are for.",
        least=1,
        shown=(1, 150),
    ),
    "detector": Setting(
        "text_noise_norm",
        "What is measured. text_noise_norm: how strongly the prompt bends the first prediction. attention_entropy: how "
        "widely cross-attention is spread there (models with cross-attention; weaker).",
        "attention_entropy_late: the same in the last fifth of the steps.",
    ),
    "reference": Setting(
        "negative",
        "What the prompt is compared with.",
        "With empty there is a score at cfg 1, too.",
        choices={
            "negative": "the run's own negative prompt, free",
            "empty": "the empty prompt, one more evaluation per image",
        },
    ),
    "explain": Setting(
        "flagged",
        "Which runs get words and maps.",
        "The words cost one pass forward and back at the first step, the maps the time to read attention at every "
        "step. No pixel changes.",
        choices={"flagged": "", "always": "", "never": ""},
    ),
    "profile": Setting("", "What ordinary prompts score on this checkpoint; by default the one that fits is found."),
    "mitigation": Setting(
        "auto",
        "What policy mitigate applies to a run that looks memorized. auto: the cheapest first, at most three attempts.",
    ),
    "neurons": Setting("", "The neuron set, for neuron_mask."),
}
SIDE = Setting(None, kind=int, least=8, most=16_384, multiple=8, unit="pixels")
RUN: dict[str, Setting] = {
    "num_images": Setting(1, "How many pictures of each prompt.", least=1, most=4096),
    "num_inference_steps": Setting(50, "Steps of the schedule.", least=1, most=10_000),
    "guidance_scale": Setting(7.5, "Guidance scale.", shown=(0, 100), step=0.1),
    "height": replace(SIDE, says="Height; by default the model's own."),
    "width": replace(SIDE, says="Width; by default the model's own."),
    "seed": Setting(0, "Of the starting noise.", least=-(1 << 63), most=(1 << 63) - 1),
    "batch_size": Setting(None, "Prompts of one forward pass.", kind=int, least=1, most=4096),
}
EXPLAIN: dict[str, Setting] = {
    "method": Setting(
        "gradient",
        "How words are weighed.",
        "attention is seldom high at the word that drives the score.",
        choices={
            "gradient": "how steeply the score rises with a word's embedding; one pass forward and back",
            "ablation": "how far the score falls without the word; one evaluation per word, any weights",
            "attention": "what cross-attention gives to the word, where the model has it",
        },
    ),
    "respect_to": Setting(
        "input",
        "Of method gradient.",
        "The text encoder writes each word into all later columns too.",
        choices={"input": "which word do I change?", "encoded": "which column does the model look at?"},
    ),
    "maps": Setting(
        "noise_gap",
        "Where in the picture.",
        choices={
            "noise_gap": "where the prompt changes the last step, free",
            "bright_ending": "where the end of the prompt is attended at the last step; finds copied regions best",
            "word": "where one word acts",
        },
    ),
}
AUDIT: dict[str, Setting] = {
    "num_images": replace(RUN["num_images"], default=4, shown=(1, 64)),
    "num_inference_steps": replace(RUN["num_inference_steps"], default=25, shown=(1, 200)),
    "limit": Setting(
        None,
        "Audit a random number of the training pictures; by default all.",
        kind=int,
        least=2,
        shown=(0, 100_000),
        unset=0,
    ),
    "threshold": Setting(
        0.5,
        "Similarity from which a picture counts as a copy.",
        "Held-out pictures can raise it.",
        above=0,
        below=1,
        shown=(0.01, 0.99),
        step=0.01,
        what="a similarity",
    ),
}
COPIES: dict[str, Setting] = {
    "threshold": Setting(0.85, AUDIT["threshold"].says, least=-1, most=1, shown=(0, 1), step=0.01, what="a similarity"),
    "embedding_size": Setting(
        None, "Side of the model's pictures; by default 320 or its own.", kind=int, least=8, most=4096, unit="pixels"
    ),
}
NEURONS: dict[str, Setting] = {
    "num_images": Setting(10, "How many seeds are compared.", least=2, most=4096, shown=(2, 64)),
    "seed": replace(RUN["seed"], default=1),
    "batch_size": Setting(16, "Rows of one forward pass.", least=1, most=4096),
    "threshold": Setting(
        0.428,
        "Likeness (MS-SSIM) of two seeds from which a prompt counts as memorized; the paper's for SD1.4.",
        above=0,
        below=1,
        shown=(0.01, 0.99),
        step=0.001,
        what="an MS-SSIM",
    ),
    "mode": Setting(
        "fast", choices={"fast": "about a tenth of the evaluations", "official": "the paper's own procedure"}
    ),
    "scale": Setting(0.0, "Factor on the neurons: 0 silences them."),
}
