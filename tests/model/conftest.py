"""Small networks of other projects, with random weights and positions that are set."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from edgemae.model.import_teacher import load_teacher
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT, ViTShape, sincos_position

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8, "layer_norm_eps": 1e-6,
}  # fmt: skip
DECODER = {
    "decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 48,
}  # fmt: skip
V4_PARTS = {
    "attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
}  # fmt: skip
META_PARTS = {
    "layernorm_before": "norm1", "layernorm_after": "norm2", "attention.o_proj": "attn.proj", "vit.layers": "blocks",
    "vit.layernorm": "norm", "vit.embeddings.cls_token": "cls_token", "decoder.decoder_layers": "decoder_blocks",
    "vit.embeddings.position_embeddings": "pos_embed", "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "decoder.mask_token": "mask_token", "decoder.decoder_": "decoder_", "classifier": "head",
}  # fmt: skip


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.fixture
def pixels(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=generator)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., ViT]:
    """Make a 32 px, width 32, depth 2 ViT with every value random, so that no part can be missed."""

    def make(**changes: Any) -> ViT:
        sizes = {"image_px": 32, "patch_px": 8, "width": 32, "heads": (4, 4), "head_dim": 8, "mlp": (64, 64)}
        return scramble(ViT(ViTShape(**(sizes | changes)))).eval()

    return make


def scramble(model: Any, seed: int = 0) -> Any:
    """Give every trained value a random number of a useful size; fixed positions stay."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = 1.0 if "pos" in name else 0.1 + 0.1 * (parameter.dim() > 1)
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.data = noise + float("norm" in name and name.endswith("weight"))
    return model


@pytest.fixture(scope="session")
def hf() -> SimpleNamespace:
    """Makers of transformers models, and of the names that other versions and projects give their weights."""
    import transformers

    def positions(model: Any, learned: bool) -> Any:
        for name, parameter in model.named_parameters():
            if "pos" in name:
                ours = sincos_position(parameter.shape[2], 4, True)
                parameter.data = (
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) if learned else ours
                )
        return model.eval()

    def mae(learned: bool = False, **changes: Any) -> Any:
        config = transformers.ViTMAEConfig(**(SIZES | DECODER | changes))
        return positions(scramble(transformers.ViTMAEForPreTraining(config)), learned)

    def classifier(**changes: Any) -> Any:
        names = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}
        config = transformers.ViTConfig(**(SIZES | names | changes))
        return positions(scramble(transformers.ViTForImageClassification(config)), learned=True)

    return SimpleNamespace(mae=mae, classifier=classifier, v4=v4_names, meta=meta_names, transformers=transformers)


@pytest.fixture
def load_meta(tmp_path: Path) -> Callable[..., Teacher]:
    """Save a checkpoint as torch does and load it as a teacher; four heads unless told otherwise."""

    def load(content: dict[str, Any], **given: Any) -> Teacher:
        torch.save(content, tmp_path / "m.pth")
        return load_teacher(tmp_path / "m.pth", **({"heads": 4} | given))

    return load


def v4_names(model: Any) -> dict[str, Tensor]:
    """Return a state dict as transformers 4 names it."""
    state = {}
    for key, value in model.state_dict().items():
        key = key.replace("vit.layers.", "vit.encoder.layer.")
        for new, old in V4_PARTS.items():
            key = key.replace(f".{new}.", f".{old}.")
        state[key] = value.clone()
    return state


def meta_names(model: Any) -> dict[str, Tensor]:
    """Return a state dict as Meta's MAE and timm name it, with q, k, v fused."""
    state = {}
    for key, value in model.state_dict().items():
        new = key
        for theirs, meta in META_PARTS.items():
            new = new.replace(theirs, meta)
        state[new] = value.clone()
    for key in [k for k in state if ".attention.q_proj." in k]:
        parts = [state.pop(key.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        state[re.sub(r"attention\.q_proj", "attn.qkv", key)] = torch.cat(parts)
    return state
