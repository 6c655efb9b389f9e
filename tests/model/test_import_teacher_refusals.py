"""What an importer must ask for or refuse, instead of guessing."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from edgemae.model.import_teacher import load_teacher
from edgemae.spec.errors import CheckpointError


def test_heads_are_asked_for_because_no_tensor_tells_them(hf, load_meta, pixels) -> None:
    state = hf.meta(hf.mae())
    with pytest.raises(CheckpointError, match=r"how many attention heads") as caught:
        load_meta(state, heads=0)
    assert "--teacher-heads with a divisor of 32: 1, 2, 4" in caught.value.expected
    two, four = load_meta(state, heads=2), load_meta(state, heads=4)
    assert {k: v.shape for k, v in two.vit.state_dict().items()} == {
        k: v.shape for k, v in four.vit.state_dict().items()
    }
    assert not torch.allclose(two.vit(pixels)[1], four.vit(pixels)[1], atol=1e-2)
    for wrong in (5, -4):
        with pytest.raises(CheckpointError, match=f"cannot have {wrong} heads"):
            load_meta(state, heads=wrong)


def test_heads_that_contradict_config_json(hf, tmp_path) -> None:
    hf.mae().save_pretrained(tmp_path)
    assert load_teacher(tmp_path, heads=4).history[-1].plan["heads"] == "given"
    with pytest.raises(CheckpointError, match="it has 4 heads, not 2"):
        load_teacher(tmp_path, heads=2)


def test_a_decoder_of_unknown_heads_is_left_out_and_named(hf, load_meta) -> None:
    state = hf.meta(hf.mae())
    teacher = load_meta(state)
    assert teacher.mae is None
    assert "decoder (32 tensors): its heads are unknown" in teacher.history[-1].plan["ignored"][0]
    assert load_meta(state, decoder_heads=2).mae is not None
    with pytest.raises(CheckpointError, match="decoder of width 16, 2 blocks, 3 heads"):
        load_meta(state, decoder_heads=3)


def test_a_fresh_model_of_transformers_5_has_no_positions_and_is_refused(hf, tmp_path, load_meta) -> None:
    model = hf.transformers.ViTMAEForPreTraining(hf.mae().config)
    if model.vit.embeddings.position_embeddings.any():
        pytest.skip("this transformers sets positions itself")
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="all-zero positions"):
        load_teacher(tmp_path)
    state = hf.meta(hf.mae())
    state["decoder_pos_embed"].zero_()
    with pytest.raises(CheckpointError, match=r"all-zero positions \('decoder\.pos'\)"):
        load_meta(state, decoder_heads=2)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("blocks.1.norm2.bias", None, "blocks.1.norm2.bias is missing"),
        ("blocks.0.mlp.fc2.weight", torch.zeros(32, 63), r"blocks.0.mlp.fc2.weight is \(32, 63\), not \(32, 64\)"),
        ("norm.weight", torch.full((32,), float("nan")), "norm.weight has NaN or infinite values"),
        ("head.weight", torch.zeros(3, 32, dtype=torch.int8), r"head.weight is stored as torch.int8"),
        ("pos_embed", torch.ones(1, 15, 32), "15 positions, which is no square grid"),
        ("pos_embed", torch.ones(17, 32), "no usable 'encoder.pos'"),
        ("pos_embed", None, "no usable 'encoder.pos'"),
        ("patch_embed.proj.weight", torch.zeros(32, 3, 8, 4), "patches of 8x4 pixels"),
        ("patch_embed.proj.weight", torch.zeros(32, 4, 8, 8), "4 channels"),
        ("blocks.0.attn.qkv.weight", torch.zeros(48, 32), r"attention of \[48, 96\] rows"),
        ("fc_norm.weight", torch.ones(32), "both 'norm' and 'fc_norm'"),
        ("blocks.3.norm1.bias", torch.ones(32), "no usable 'encoder.blocks.2.attn.qkv.weight'"),
        ("extra.weight", torch.ones(32), "no plain ViT or MAE: extra.weight"),
    ],
)
def test_wrong_tensors_are_named(hf, load_meta, key: str, change: Tensor | None, message: str) -> None:
    state = hf.meta(hf.classifier()) | {key: change}
    with pytest.raises(CheckpointError, match=message) as caught:
        load_meta({k: v for k, v in state.items() if v is not None})
    assert "m.pth" in caught.value.what


def test_a_config_that_contradicts_the_weights(hf, tmp_path) -> None:
    hf.classifier().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    cases = {
        "image_px 64": {"image_size": 64},
        "is for image_px": {"image_size": [32, 128]},
        "patch_px 16": {"patch_size": 16},
        "width 64": {"hidden_size": 64},
        "depth 3": {"num_hidden_layers": 3},
        "mlp 128": {"intermediate_size": 128},
        "channels 1": {"num_channels": 1},
        "epsilon 0.1": {"layer_norm_eps": 0.1},
        "activation 'relu'": {"hidden_act": "relu"},
        "is a 'swin'": {"model_type": "swin"},
        "names 2 classes": {"id2label": {"0": "a", "1": "b"}},
        "heads 'many'": {"num_attention_heads": "many"},
    }
    for message, change in cases.items():
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=message):
            load_teacher(tmp_path)
