"""Importing teachers: the numbers that come out are those of the original, for every spelling."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from edgemae.model.import_teacher import load_teacher
from edgemae.model.mae import make_keep, patchify
from edgemae.model.vit import LAYER_NORM_EPS, sincos_position

SPELLINGS = ("saved", "saved-in-shards", "v4-bin", "v5-in-memory", "v4-safetensors", "meta")


def write(hf: SimpleNamespace, model: torch.nn.Module, folder: Path, spelling: str) -> tuple[Path, dict]:
    """Write a model in one spelling; return what to load and what to say with it."""
    if spelling == "meta":
        torch.save({"model": hf.meta(model)}, folder / "mae.pth")
        return folder / "mae.pth", {"heads": 4, "decoder_heads": 2}
    model.save_pretrained(folder, max_shard_size="20KB" if spelling == "saved-in-shards" else "1GB")
    if not spelling.startswith("saved"):
        (folder / "model.safetensors").unlink()
        state = {k: v.contiguous() for k, v in (model.state_dict() if "v5" in spelling else hf.v4(model)).items()}
        if spelling.endswith("bin"):
            torch.save(state, folder / "pytorch_model.bin")
        else:
            save_file(state, folder / "model.safetensors")
    return folder, {}


@pytest.fixture
def noise(generator) -> Tensor:
    return torch.rand(3, 16, generator=generator)


@pytest.mark.parametrize("learned", [False, True], ids=["sincos", "learned"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_mae_parity(hf, tmp_path, pixels, noise, spelling: str, learned: bool) -> None:
    model = hf.mae(learned=learned, norm_pix_loss=True)
    path, given = write(hf, model, tmp_path, spelling)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (spelling == "saved-in-shards")
    teacher = load_teacher(path, **given)
    assert teacher.vit.shape.learned_pos is learned
    with torch.no_grad():
        theirs = model(pixels, noise=noise)
        shuffled = noise.argsort(1)[:, :4]  # they keep the lowest noise, in the order of the noise
        keep, order = shuffled.sort(1)
        tokens = teacher.vit.norm(teacher.vit.encode(pixels, keep))
        hidden = model.vit(pixels, noise=noise).last_hidden_state
        assert torch.allclose(theirs.logits, teacher.mae(pixels, keep), atol=1e-5)
        assert torch.allclose(hidden[:, :1], tokens[:, :1], atol=1e-5)
        sorted_patches = hidden[:, 1:].gather(1, order[:, :, None].expand(-1, -1, 32))
        assert torch.allclose(sorted_patches, tokens[:, 1:], atol=1e-5)
        assert torch.allclose(theirs.loss, teacher.mae.loss(pixels, keep), atol=1e-5)
    assert torch.equal(patchify(pixels, 8), model.patchify(pixels))


@pytest.mark.parametrize("spelling", [s for s in SPELLINGS if s != "meta"])
def test_classifier_parity(hf, tmp_path, pixels, spelling: str) -> None:
    model = hf.classifier()
    teacher = load_teacher(write(hf, model, tmp_path, spelling)[0])
    with torch.no_grad():
        theirs = model(pixels, output_hidden_states=True)
        assert torch.allclose(theirs.logits, teacher.vit(pixels)[0], atol=1e-5)
        assert torch.allclose(theirs.hidden_states[-1], teacher.vit.encode(pixels), atol=1e-4)
    assert (teacher.vit.shape.pool, teacher.vit.shape.norm_after_pool) == ("cls", False)
    assert (teacher.labels, teacher.mae) == (("cat", "dog", "owl"), None)


def test_bare_models_of_transformers(hf, tmp_path, pixels) -> None:
    classifier, mae = hf.classifier(), hf.mae(mask_ratio=0.0)
    classifier.vit.save_pretrained(tmp_path / "vit")
    mae.vit.save_pretrained(tmp_path / "mae")
    cls, mean = load_teacher(tmp_path / "vit"), load_teacher(tmp_path / "mae")
    with torch.no_grad():
        assert torch.allclose(classifier.vit(pixels).last_hidden_state[:, 0], cls.vit(pixels)[1], atol=1e-5)
        # Without masking it still shuffles the patches: the mean is equal, a token map would not be.
        theirs = mae.vit(pixels, noise=torch.rand(3, 16, generator=torch.Generator().manual_seed(5)))
        ours = mean.vit.norm(mean.vit.encode(pixels))
        assert torch.allclose(theirs.last_hidden_state[:, 1:].mean(1), mean.vit(pixels)[1], atol=1e-5)
        assert not torch.allclose(theirs.last_hidden_state, ours, atol=1e-2)
        back = theirs.ids_restore[:, :, None].expand(-1, -1, 32)
        assert torch.allclose(theirs.last_hidden_state[:, 1:].gather(1, back), ours[:, 1:], atol=1e-5)
        assert torch.equal(mean.vit(pixels)[1], mean.vit(pixels)[1])  # and ours hides nothing, the same every time


def test_masking_stays_on_in_their_encoder_and_not_in_ours(hf, tmp_path, pixels) -> None:
    model = hf.mae()
    model.save_pretrained(tmp_path)
    assert model.vit(pixels).last_hidden_state.shape[1] == 5  # a quarter of 16, and cls
    assert load_teacher(tmp_path).vit.encode(pixels).shape[1] == 17


def test_pooler_is_named_as_ignored(hf, tmp_path) -> None:
    model = hf.transformers.ViTModel(hf.classifier().config, add_pooling_layer=True)
    model.load_state_dict(hf.classifier().vit.state_dict(), strict=False)
    model.save_pretrained(tmp_path)
    assert load_teacher(tmp_path).history[-1].plan["ignored"] == ["pooler.dense.bias", "pooler.dense.weight"]


@pytest.mark.parametrize("eps", [1e-12, 1e-5])
def test_layer_norm_epsilon_is_always_written_1e_6(hf, tmp_path, pixels, eps: float) -> None:
    model = hf.classifier(layer_norm_eps=eps)
    model.save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path)
    norms = [m for m in teacher.vit.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert {m.eps for m in norms} == {LAYER_NORM_EPS}
    assert teacher.history[-1].plan["layer_norm_eps"] == f"{eps} written as 1e-06"
    with torch.no_grad():
        moved = (teacher.vit(pixels)[0] - model(pixels).logits).abs().max()
    assert 0 < moved < 2e-3  # small in fp32; in fp16 1e-12 would be a division by zero


def test_meta_fine_tuned_file(hf, tmp_path, pixels) -> None:
    model = hf.classifier()
    state = hf.meta(model)
    state |= {f"fc_{k}": state.pop(k) for k in ("norm.weight", "norm.bias")}
    torch.save({"model": state}, tmp_path / "mae_finetuned.pth")
    teacher = load_teacher(tmp_path / "mae_finetuned.pth", heads=4)
    assert (teacher.vit.shape.pool, teacher.vit.shape.norm_after_pool, teacher.labels) == (
        "mean",
        True,
        ("0", "1", "2"),
    )
    with torch.no_grad():
        tokens = model.vit.layers[1](model.vit.layers[0](model.vit.embeddings(pixels)))
        embedding = model.vit.layernorm(tokens[:, 1:].mean(1))  # the class token is not averaged
        assert torch.allclose(model.classifier(embedding), teacher.vit(pixels)[0], atol=1e-5)


def test_timm_without_class_token_and_without_its_position(hf, load_meta, pixels) -> None:
    state = hf.meta(hf.classifier())
    reference = load_meta(state)
    assert reference.vit.shape.pool == "cls"
    no_embed_class = state | {"pos_embed": state["pos_embed"][:, 1:]}
    teacher = load_meta(no_embed_class)
    assert torch.equal(teacher.vit.pos[:, 0], torch.zeros(1, 32))
    del no_embed_class["cls_token"]
    teacher = load_meta(no_embed_class)
    assert (teacher.vit.shape.pool, teacher.vit.shape.cls_token, teacher.vit.shape.tokens) == ("mean", False, 16)
    assert teacher.vit(pixels)[0].shape == (3, 3)


def test_split_and_fused_qkv_give_one_model(hf, load_meta) -> None:
    fused = hf.meta(hf.classifier())
    split = dict(fused)
    for key in [k for k in fused if "qkv" in k]:
        parts = zip("qkv", split.pop(key).chunk(3), strict=True)
        split |= {key.replace("qkv", letter): part for letter, part in parts}
    one, other = load_meta(fused).vit.state_dict(), load_meta(split).vit.state_dict()
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_no_qkv_bias_is_a_zero_bias(hf, tmp_path, pixels) -> None:
    model = hf.classifier(qkv_bias=False)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.allclose(model(pixels).logits, load_teacher(tmp_path).vit(pixels)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("stated", "given", "loss_kind", "assumed"),
    [
        (True, None, "norm-pixel", 0),
        (False, None, "pixel", 0),
        (None, None, "norm-pixel", 1),
        (None, "pixel", "pixel", 0),
    ],
)
def test_what_the_decoder_predicts(hf, load_meta, stated, given, loss_kind: str, assumed: int) -> None:
    args = argparse.Namespace(norm_pix_loss=stated, model="own", epochs=800)
    teacher = load_meta({"model": hf.meta(hf.mae()), "args": args}, decoder_heads=2, loss_kind=given)
    assert teacher.mae.loss_kind == loss_kind
    assert sum("visualize" in a for a in teacher.history[-1].plan["assumed"]) == assumed


def test_norm_pix_loss_of_a_config(hf, tmp_path) -> None:
    hf.mae(norm_pix_loss=False).save_pretrained(tmp_path)
    assert load_teacher(tmp_path).mae.loss_kind == "pixel"


def test_the_other_sincos_layout_is_kept_as_learned(hf, load_meta) -> None:
    state = hf.meta(hf.mae())
    ours = sincos_position(32, 4, True)
    swapped = torch.cat([ours[..., 16:], ours[..., :16]], dim=-1)  # [sin_h | cos_h | sin_w | cos_w]
    assert not load_meta(state).vit.shape.learned_pos
    teacher = load_meta(state | {"pos_embed": swapped})
    assert teacher.vit.shape.learned_pos
    assert torch.equal(teacher.vit.pos, swapped)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(hf, load_meta, pixels, dtype: torch.dtype) -> None:
    state = hf.meta(hf.mae())
    exact = load_meta(state).vit(pixels)[1]
    teacher = load_meta({k: v.to(dtype) for k, v in state.items()})
    assert not teacher.vit.shape.learned_pos
    assert {v.dtype for v in teacher.vit.state_dict().values()} == {torch.float32}
    assert torch.allclose(teacher.vit(pixels)[1], exact, atol=0.2 if dtype == torch.bfloat16 else 1e-2)


def test_grayscale(hf, tmp_path, generator) -> None:
    model = hf.mae(num_channels=1, norm_pix_loss=True)
    model.save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path)
    x, noise = torch.randn(2, 1, 32, 32, generator=generator), torch.rand(2, 16, generator=generator)
    keep = noise.argsort(1)[:, :4].sort(1).values
    with torch.no_grad():
        assert torch.allclose(model(x, noise=noise).logits, teacher.mae(x, keep), atol=1e-5)
    assert (teacher.pixel.channels, teacher.pixel.color, len(teacher.pixel.mean)) == (1, "GRAY", 1)


def test_import_is_a_step_of_the_history(hf, tmp_path, load_meta) -> None:
    teacher = load_meta({"model": hf.meta(hf.mae()), "optimizer": {}, "epoch": 3}, licence="CC0-1.0")
    (step,) = teacher.history
    assert (step.stage, step.licence, teacher.licence) == ("import", "CC0-1.0", "CC0-1.0")
    assert step.plan["file"] == "m.pth"
    assert len(step.plan["sha256"]) == 64
    assert step.plan["ignored"][:2] == ["optimizer", "epoch"]
    assert any("ImageNet" in a for a in step.plan["assumed"])
    teacher.save(tmp_path / "own")
    back = load_teacher(tmp_path / "own")
    assert (back.history, back.licence, back.source) == (teacher.history, "CC0-1.0", teacher.source)


def test_pixels_are_stored_and_survive(hf, tmp_path) -> None:
    hf.classifier().save_pretrained(tmp_path / "hf")
    facts = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": {"height": 32, "width": 32}}
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(facts))
    load_teacher(tmp_path / "hf").save(tmp_path / "own")
    pixel = load_teacher(tmp_path / "own").pixel
    assert (pixel.mean, pixel.std, pixel.image_px, pixel.resize) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 32, "stretch")


def test_an_imported_teacher_reconstructs(hf, load_meta, pixels, generator) -> None:
    teacher = load_meta(hf.meta(hf.mae()), decoder_heads=2)
    masked, rebuilt = teacher.mae.reconstruct(pixels, make_keep(3, 4, 0.75, "random", generator))
    assert masked.shape == rebuilt.shape == (3, 3, 32, 32)
    assert torch.isfinite(rebuilt).all()
