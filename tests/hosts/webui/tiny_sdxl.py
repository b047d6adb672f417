"""Writes a small random SDXL checkpoint for A1111, and its .yaml: ``python tiny_sdxl.py A1111_ROOT FILE.safetensors``.

Run by A1111's interpreter, which has the model's code; the host's own configuration is made narrow. ViT-B-32's text
encoder takes the place of bigG's.
"""

import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf

root, target = Path(sys.argv[1]), Path(sys.argv[2])
source = root / "repositories" / "generative-models"
sys.path.insert(0, str(source))

import open_clip  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from sgm.util import instantiate_from_config  # noqa: E402

POOLED, FIRST, SIZES = 512, 768, 3 * 2 * 256  # features: ViT-B-32's, CLIP-L's, and those of the picture's sizes

made = OmegaConf.load(source / "configs" / "inference" / "sd_xl_base.yaml")
params = made.model.params
params.network_config.params.update(
    {
        "adm_in_channels": POOLED + SIZES,
        "context_dim": FIRST + POOLED,
        "model_channels": 32,
        "num_head_channels": 16,
        "num_res_blocks": 1,
        "transformer_depth": [1, 1, 1],
        "spatial_transformer_attn_type": "softmax",
        "use_checkpoint": False,
    }
)
params.conditioner_config.params.emb_models[1].params.update({"arch": "ViT-B-32", "version": "openai"})
params.first_stage_config.params.ddconfig.update({"ch": 32, "attn_type": "vanilla"})
OmegaConf.save(made, target.with_suffix(".yaml"))

# nothing is downloaded: the encoders are made of their configurations
whole = open_clip.create_model_and_transforms
open_clip.create_model_and_transforms = lambda *args, pretrained=None, **kwargs: whole(*args, **kwargs)
transformers.CLIPTextModel.from_pretrained = lambda name, **_: transformers.CLIPTextModel(
    transformers.CLIPTextConfig.from_pretrained(name)
)
torch.manual_seed(0)
model = instantiate_from_config(made.model)
with torch.no_grad():
    for weight in model.parameters():  # zeros hide what a prompt does, and the hosts divide by a mean of the text
        weight += 0.02 * torch.randn_like(weight)
save_file({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}, target)
