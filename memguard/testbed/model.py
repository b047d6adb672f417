"""The test bed's networks: a small CLIP text encoder and a small Stable Diffusion UNet, both of SD1's layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .tokens import BOS, EOS, VOCABULARY, embedding_table

WIDTH = 128  # of the text encoder
LAYERS, TEXT_HEADS = 3, 4
CHANNELS = (64, 128)
UNET_HEADS = 4
LATENT = 16
# The schedule that Stable Diffusion 1 was trained with.
SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def text_config(width: int = WIDTH, layers: int = LAYERS, heads: int = TEXT_HEADS, hidden: int | None = None) -> Any:
    """Return the transformers configuration of the text encoder."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=hidden or 4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        projection_dim=width,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )


def build_text_encoder() -> Any:
    """Return the small text encoder with the seeded embedding table for every BPE id."""
    from transformers import CLIPTextModel

    model = CLIPTextModel(text_config())
    embeddings = text_core(model).embeddings
    with torch.no_grad():
        embeddings.token_embedding.weight.copy_(torch.from_numpy(embedding_table(WIDTH)))
        nn.init.normal_(embeddings.position_embedding.weight, std=0.02)
    return model.eval()


def text_core(model: Any) -> Any:
    """Return the module that holds ``embeddings`` (older transformers nest it as ``text_model``)."""
    return getattr(model, "text_model", model)


def build_unet() -> Any:
    """Return the small UNet: cross-attention at both levels and in the middle block."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=UNET_HEADS,  # diffusers' name for the number of heads in this class
    ).eval()


class SplitEmbedding(nn.Module):
    """A token embedding in which only the rows of ``used`` ids are trained; the seeded rest stays frozen.

    ids [B, T] -> [B, T, width].
    """

    frozen: Tensor
    lookup: Tensor

    def __init__(self, table: Tensor, used: Tensor) -> None:
        super().__init__()
        lookup = torch.full((table.shape[0],), -1, dtype=torch.long)
        lookup[used] = torch.arange(len(used))
        self.register_buffer("frozen", table, persistent=False)
        self.register_buffer("lookup", lookup, persistent=False)
        self.weight = nn.Parameter(table[used].clone())

    def forward(self, ids: Tensor) -> Tensor:
        """Look the ids up; gradients reach the rows of used ids only."""
        row = self.lookup[ids]
        trained = nn.functional.embedding(row.clamp(min=0), self.weight)
        return torch.where((row >= 0).unsqueeze(-1), trained, nn.functional.embedding(ids, self.frozen))
