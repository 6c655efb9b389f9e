"""Names of other projects, and networks that only look like a plain ViT."""

from __future__ import annotations

import pytest
import torch

from edgemae.model.import_teacher import load_teacher
from edgemae.model.mae import Decoder, DecoderShape
from edgemae.model.name_mapping import LAYERS, REFUSED, STACKS, TOKENS, our_name, translate
from edgemae.spec.errors import CheckpointError

# One real-looking set of extra keys for every row of REFUSED.
RELATIVES = {
    "DINOv2": ["mask_token", "blocks.0.ls1.gamma"],
    "BEiT": ["blocks.0.attn.q_bias", "blocks.0.attn.v_bias", "blocks.0.gamma_1"],
    "a distilled DeiT": ["dist_token", "head_dist.weight"],
    "an MAE of IcarusWizard's": ["encoder.pos_embedding", "encoder.transformer.0.norm1.weight"],
    "a torchvision ViT": ["conv_proj.weight", "encoder.layers.encoder_layer_0.ln_1.weight"],
    "a ViT with register tokens": ["reg_token"],
    "a ViT with LayerScale": ["blocks.3.ls2.gamma"],
    "a ViT with relative positions": ["blocks.0.attn.relative_position_bias_table"],
    "a ViT with attention pooling": ["attn_pool.latent"],
    "a ViT with query-key norms": ["blocks.0.attn.q_norm.weight"],
    "a linear-probe checkpoint": ["head.0.running_mean", "head.1.weight"],
}


def test_every_row_has_an_example() -> None:
    assert RELATIVES.keys() == REFUSED.keys()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_relatives_are_refused_by_name(hf, tmp_path, name: str) -> None:
    state = hf.meta(hf.classifier()) | {k: torch.ones(1, 1, 32) for k in RELATIVES[name]}
    torch.save({"model": state}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError) as caught:
        load_teacher(tmp_path / "m.pth", heads=4)
    assert f"is {name} (" in caught.value.what
    assert REFUSED[name][1] in caught.value.what


def test_relatives_in_transformers_naming(hf, tmp_path) -> None:
    for key in ("embeddings.mask_token", "encoder.layer.0.layer_scale1.lambda1"):
        assert our_name(key) is None
    config = hf.transformers.Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    hf.transformers.Dinov2Model(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is DINOv2"):
        load_teacher(tmp_path)


def test_a_full_mae_with_its_mask_token_is_not_taken_for_dinov2(hf, tmp_path) -> None:
    state = hf.meta(hf.mae())
    assert "mask_token" in state
    torch.save(state, tmp_path / "m.pth")
    assert load_teacher(tmp_path / "m.pth", heads=4, decoder_heads=2).mae is not None


def test_tables_lead_to_parts_that_exist(tiny) -> None:
    vit = tiny(cls_token=True, classes=2)
    decoder = Decoder(DecoderShape(16, 1, 2), 32, 4, 192, True)
    parts = {f"encoder.{k}" for k in vit.state_dict()} | {f"decoder.{k}" for k in decoder.state_dict()}
    assert set(TOKENS.values()) <= parts
    layers = {f"{v}.{kind}" for v in LAYERS.values() for kind in ("weight", "bias")}
    assert {k for k in layers if "fc_norm" not in k} <= parts  # fc_norm becomes our norm
    assert set(STACKS.values()) == {"encoder.blocks", "decoder.blocks"}


def test_names_that_are_almost_right_are_unknown() -> None:
    for key in (
        "blocks.0.attn.qkv",
        "blocks.x.norm1.weight",
        "head.running_mean",
        "cls_tokens",
        "norm",
        "blocks.0.ls1.gamma",
    ):
        assert our_name(key) is None
    assert our_name("vit.encoder.layer.11.output.dense.bias") == "encoder.blocks.11.mlp.fc2.bias"


def test_two_spellings_of_one_part_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"two tensors for encoder\.cls"):
        translate({"cls_token": torch.ones(1, 1, 4), "vit.embeddings.cls_token": torch.ones(1, 1, 4)}, "x")


def test_query_key_value_of_different_shapes_are_not_fused() -> None:
    parts = {"blocks.0.attn.q.weight": torch.ones(4, 4), "blocks.0.attn.k.weight": torch.ones(4)}
    assert translate(parts | {"blocks.0.attn.v.weight": torch.ones(4, 4)}, "x")[0].keys() == {
        f"encoder.blocks.0.attn.{letter}.weight" for letter in "qkv"
    }


def test_many_unknown_keys_are_counted() -> None:
    with pytest.raises(CheckpointError, match=r"has 9 tensors .* stage0\.w, .* and 3 more"):
        translate({f"stage{i}.w": torch.ones(1) for i in range(9)}, "x")
