"""MemGuard Token Attribution: which words of a prompt drive its score."""

import json

import torch
from comfy_api.latest import io

from ..memguard.hosts.comfyui.explaining import explain
from ..memguard.overlay import NAMES, coloured_prompt
from ..memguard.plain import attribution_dict
from ..memguard.records import Attribution
from ..memguard.table import EXPLAIN
from .types import CATEGORY, input_of, seed_input


class MemGuardTokenAttribution(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MemGuard_TokenAttribution",
            display_name="MemGuard Token Attribution",
            category=CATEGORY,
            description="Weighs the words of a prompt by how much they drive memorization at the first step, before "
            "any sampling. Edit the word that weighs most.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the sampler gets."),
                io.Clip.Input("clip", tooltip="The text encoder that the prompt goes through."),
                io.Conditioning.Input("negative", tooltip="What the prompt is compared with: the sampler's negative."),
                io.Latent.Input(
                    "latent", tooltip="The latent that the sampler gets; weights are the mean of its images."
                ),
                io.String.Input("text", multiline=True, tooltip="The prompt, with its weights and embeddings."),
                seed_input("seed", "The sampler's seed."),
                input_of("method", EXPLAIN["method"]),
                input_of("respect_to", EXPLAIN["respect_to"]),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="The sampler's own prompt where it is more than text: combined, with areas or time limits. "
                    "Every part gets rows of its own; its texts are found in the workflow.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The words, each on its colour, with its weight below."),
                io.String.Output(display_name="table", tooltip="Word and weight, one per line, the heaviest first."),
                io.String.Output(display_name="json", tooltip="Everything, with token ids and columns."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, clip, negative, latent, text, seed, method, respect_to, positive=None):
        found = explain(model, clip, text, negative, latent, seed, method, respect_to, positive=positive)
        values = attribution_dict(found)
        picture = torch.from_numpy(coloured_prompt(found).copy()).float().div(255).unsqueeze(0)
        lines = _table(found)
        return io.NodeOutput(
            picture,
            lines,
            json.dumps(values, indent=2, ensure_ascii=False),
            ui={"text": [lines], "memguard_attribution": [values]},
        )


def _table(found: Attribution) -> str:
    """Return the words with their weights, the heaviest first; the reason where there are none."""
    if found.status != "ok":
        return f"no attribution: {found.status}"
    named = [(span.text or NAMES[span.group], weight) for span, weight in zip(found.spans, found.weights, strict=True)]
    lines = [f"{name}\t{weight:.4g}" for name, weight in sorted(named, key=lambda pair: -pair[1])]
    return "\n".join([f"{found.method}: {found.unit}", *lines, *found.notes])


NODES = [MemGuardTokenAttribution]
