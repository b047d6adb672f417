"""The test bed's networks: seeded table, tokenizer, exact widening, checkpoint names, encoder."""

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from memguard.testbed import autoencoder, tokens, widen  # noqa: E402
from memguard.testbed import model as nets  # noqa: E402
from memguard.testbed.ldm_names import unet_name  # noqa: E402


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    text, unet = nets.build_text_encoder(), nets.build_unet()
    with torch.no_grad():
        for network in (text, unet):
            for parameter in network.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))  # no bias may stay zero
    return text, unet


def ids(*words: int) -> torch.Tensor:
    row = torch.full((1, 77), tokens.EOS)
    row[0, 0] = tokens.BOS
    row[0, 1 : 1 + len(words)] = torch.tensor(words)
    return row


def test_table_is_the_same_everywhere():
    table = tokens.embedding_table(128)
    assert table.shape == (49408, 128)
    assert table.std() == pytest.approx(0.05, rel=2e-3)
    assert table[320, :3].tolist() == pytest.approx(tokens.embedding_table(128)[320, :3].tolist(), abs=0)


def test_a_changed_table_is_refused(monkeypatch):
    monkeypatch.setattr(tokens, "TABLE_SHA256", "0" * 64)
    with pytest.raises(RuntimeError, match="reinstall numpy"):
        tokens.embedding_table(128)


def test_tokenizer_gives_clips_ids(tmp_path):
    tokens.write_tokenizer(tmp_path)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    # ids published with CLIP for this sentence
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    padded = tokenizer("", padding="max_length", max_length=77).input_ids
    assert padded == [49406] + [49407] * 76


def test_widened_text_encoder_computes_the_same(networks):
    text, _ = networks
    wide = transformers.CLIPTextModel(nets.text_config(768, 12, 12)).eval()
    state = widen.widen_text(text.state_dict(), 768, nets.TEXT_HEADS, 12, nets.LAYERS, 12)
    nets.text_core(wide).load_state_dict(state)
    rows = torch.cat([ids(), ids(320, 1125, 539, 320, 2368)])
    with torch.no_grad():
        small, large = text(rows), wide(rows)
    copied = small.last_hidden_state.repeat_interleave(6, 2)
    assert float((copied - large.last_hidden_state).abs().max() / copied.abs().max()) < 1e-5
    pooled = small.pooler_output.repeat_interleave(6, 1)
    assert float((pooled - large.pooler_output).abs().max() / pooled.abs().max()) < 1e-5


def test_widened_unet_computes_the_same(networks):
    from diffusers import UNet2DConditionModel

    _, unet = networks
    config = dict(unet.config) | {"block_out_channels": (320, 640), "cross_attention_dim": 256, "attention_head_dim": 8}
    wide = UNet2DConditionModel.from_config(config).eval()
    wide.load_state_dict(widen.widen_unet(unet.state_dict(), 5, nets.UNET_HEADS, 8, 2))
    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 128)
    with torch.no_grad():
        small = unet(x, 981, context).sample
        large = wide(x, 981, context.repeat_interleave(2, 2)).sample
    assert float((small - large).abs().max() / small.abs().max()) < 1e-5


def test_every_unet_tensor_has_its_own_checkpoint_name(networks):
    _, unet = networks
    names = {name: unet_name(name) for name in unet.state_dict()}
    assert len(set(names.values())) == len(names)
    assert names["conv_in.weight"] == "input_blocks.0.0.weight"
    assert names["down_blocks.0.downsamplers.0.conv.weight"] == "input_blocks.2.0.op.weight"
    assert names["mid_block.resnets.1.conv1.weight"] == "middle_block.2.in_layers.2.weight"
    key = "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_v.weight"
    assert names[key] == "output_blocks.3.1.transformer_blocks.0.attn2.to_v.weight"
    with pytest.raises(KeyError):
        unet_name("add_embedding.linear_1.weight")


def test_encoder_is_the_projection():
    generator = np.random.default_rng(0)
    basis = torch.from_numpy(np.linalg.qr(generator.normal(size=(192, 4)))[0]).float()
    mean, scale = torch.from_numpy(generator.normal(size=192) * 0.1).float(), torch.tensor([1.5, 0.7, 0.4, 0.3])
    model = autoencoder.build()
    autoencoder.set_encoder(model, basis, mean, scale)
    picture = torch.from_numpy(generator.uniform(-1, 1, (2, 3, 24, 16))).float()
    patches = picture.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(2, 3, 2, 192)
    expected = ((patches - mean) @ basis / scale).permute(0, 3, 1, 2)
    with torch.no_grad():
        got = model.encode(picture).latents * model.config.scaling_factor
    assert torch.allclose(got, expected, atol=2e-5)


def test_taesd_names_count_the_clamp():
    names = autoencoder.to_taesd(dict(autoencoder.build().state_dict()))
    assert names["taesd_decoder.1.weight"].shape == (64, 4, 3, 3)
    assert names["taesd_decoder.19.weight"].shape == (3, 64, 3, 3)
    assert names["taesd_encoder.14.weight"].shape == (4, 64, 3, 3)
    assert float(names["vae_scale"]) == pytest.approx(0.18215 / 4)


def test_kl_autoencoder_encodes_the_same_latents():
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    from memguard.testbed import kl

    generator = np.random.default_rng(0)
    basis = torch.from_numpy(np.linalg.qr(generator.normal(size=(192, 4)))[0]).float()
    mean, scale = torch.from_numpy(generator.normal(size=192) * 0.1).float(), torch.tensor([1.5, 0.7, 0.4, 0.3])
    model = AutoencoderKL(
        block_out_channels=kl.WIDTHS,
        layers_per_block=2,
        latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    ).eval()
    state = {f"first_stage_model.{key}": value for key, value in kl.build(basis, mean, scale).items()}
    model.load_state_dict(convert_ldm_vae_checkpoint(state, model.config))
    picture = torch.from_numpy(generator.uniform(-1, 1, (1, 3, 32, 24))).float()
    patches = picture.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(1, 4, 3, 192)
    expected = ((patches - mean) @ basis / scale).permute(0, 3, 1, 2)
    with torch.no_grad():
        got = model.encode(picture).latent_dist.mode() * 0.18215
        assert torch.allclose(got, expected, atol=2e-3)
        flat = torch.zeros(1, 4, 6, 6)  # the mean patch everywhere: away from the border its mean colour
        painted = model.decode(flat).sample[0, :, 16:32, 16:32].mean((1, 2))
    assert torch.allclose(painted, mean.reshape(64, 3).mean(0), atol=2e-3)
