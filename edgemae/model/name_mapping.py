"""What other projects call the parts of a ViT and of an MAE, and which networks are not a plain ViT.

Ours are the names in an edgemae teacher file: `encoder.` and `decoder.` followed by the names in `ViT` and `Decoder`.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from edgemae.spec.errors import CheckpointError

# Wrappers of a whole state dict (DataParallel, Lightning, torch.compile); stripped when every key has it.
PREFIXES = ("module.", "model.", "_orig_mod.")

# Names of single tensors. First the Meta MAE / timm spelling, then Hugging Face's (after its `vit.` is dropped).
TOKENS = {
    "cls_token": "encoder.cls",
    "pos_embed": "encoder.pos",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.pos",
    "embeddings.cls_token": "encoder.cls",
    "embeddings.position_embeddings": "encoder.pos",
    "decoder.mask_token": "decoder.mask_token",
    "decoder.decoder_pos_embed": "decoder.pos",
}
# Names of layers, each with a weight and a bias.
LAYERS = {
    "patch_embed.proj": "encoder.patch_embed",
    "norm": "encoder.norm",
    "fc_norm": "encoder.fc_norm",
    "head": "encoder.head",
    "decoder_embed": "decoder.embed",
    "decoder_norm": "decoder.norm",
    "decoder_pred": "decoder.pred",
    "embeddings.patch_embeddings.projection": "encoder.patch_embed",
    "layernorm": "encoder.norm",
    "classifier": "encoder.head",
    "decoder.decoder_embed": "decoder.embed",
    "decoder.decoder_norm": "decoder.norm",
    "decoder.decoder_pred": "decoder.pred",
}
# Names of the stack of blocks. transformers 5 computes with `layers` and saves `encoder.layer`; of its decoder it
# writes `decoder_encoder.layer` where transformers 4 wrote `decoder_layers`.
STACKS = {
    "blocks": "encoder.blocks",
    "encoder.layer": "encoder.blocks",
    "layers": "encoder.blocks",
    "decoder_blocks": "decoder.blocks",
    "decoder.decoder_layers": "decoder.blocks",
    "decoder.decoder_encoder.layer": "decoder.blocks",
}
# Names of a layer inside one block: Meta / timm, transformers 4, transformers 5.
PARTS = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "attn.q": "attn.q",
    "attn.k": "attn.k",
    "attn.v": "attn.v",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "attention.q_proj": "attn.q",
    "attention.k_proj": "attn.k",
    "attention.v_proj": "attn.v",
    "attention.o_proj": "attn.proj",
}
# Not used by any of our outputs: the tanh layer that ViTModel puts behind its cls token.
IGNORED = ("pooler.",)

# Networks that share names with a plain ViT but compute something else: patterns that must all occur, and why not.
# The first that fits is named, so the particular ones stand before the general ones.
REFUSED = {
    "DINOv2": ((r"ls1\.gamma$|layer_scale1", r"mask_token$"), "it scales every branch (LayerScale)"),
    "BEiT": (
        (r"q_bias$", r"gamma_1$|lambda_1$"),
        "it has no key bias, scales every branch and uses relative positions",
    ),
    "a distilled DeiT": ((r"dist_token$|distillation_token$|head_dist\.",), "it has a second class token and head"),
    "an MAE of IcarusWizard's": (
        (r"pos_embedding$", r"(^|\.)transformer\.\d+\."),
        "its tokens are laid out sequence-first and its class token has no position",
    ),
    "a torchvision ViT": ((r"^conv_proj\.", r"encoder_layer_0\."), "its attention is torch.nn.MultiheadAttention"),
    "a ViT with register tokens": (
        (r"reg_token$|register_tokens$|storage_tokens$",),
        "it has tokens besides the patches",
    ),
    "a ViT with LayerScale": ((r"ls[12]\.gamma$|gamma_[12]$|layer_scale|lambda_1$",), "it scales every branch"),
    "a ViT with relative positions": (
        (r"rel_pos|relative_position",),
        "its attention has a position bias: another graph",
    ),
    "a ViT with attention pooling": ((r"(^|\.)attn_pool\.",), "its embedding is neither a mean nor the class token"),
    "a ViT with query-key norms": ((r"\.[qk]_norm\.",), "its attention normalises queries and keys"),
    "a linear-probe checkpoint": ((r"^head\.\d+\.running_mean$",), "a BatchNorm stands before its head"),
}


def strip_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop wrappers that every key carries, in any order and any number (`module.model.` of MAE-Lite)."""
    while prefix := next((p for p in PREFIXES if tensors and all(k.startswith(p) for k in tensors)), ""):
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    return tensors


def refuse_relatives(keys: list[str], path: object) -> None:
    """Raise CheckpointError when the keys are those of a network of the REFUSED table."""
    for name, (patterns, why) in REFUSED.items():
        hits = [next((k for k in keys if re.search(p, k)), None) for p in patterns]
        if all(hits):
            raise CheckpointError(
                f"'{path}' is {name} ({', '.join(str(k) for k in hits)}): {why}",
                expected="a plain ViT or MAE: patches, an optional class token, absolute positions, pre-norm blocks",
                fix="use an MAE, a timm ViT without these extras, or distil that network into a plain ViT elsewhere",
            )


def our_name(key: str) -> str | None:
    """Return our name of one key, or None when no spelling knows it."""
    key = key.removeprefix("vit.")
    if key in TOKENS:
        return TOKENS[key]
    layer, _, kind = key.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if layer in LAYERS:
        return f"{LAYERS[layer]}.{kind}"
    match = re.fullmatch(r"(.+?)\.(\d+)\.(.+)", layer)
    if match is None or match[1] not in STACKS or match[3] not in PARTS:
        return None
    return f"{STACKS[match[1]]}.{int(match[2])}.{PARTS[match[3]]}.{kind}"


def translate(tensors: dict[str, Tensor], path: object) -> tuple[dict[str, Tensor], list[str]]:
    """Return (tensors under our names with q, k, v fused, keys left aside on purpose).

    Raises CheckpointError naming every key that no spelling knows: nothing is dropped in silence.
    """
    ours: dict[str, Tensor] = {}
    ignored: list[str] = []
    unknown: list[str] = []
    for key, tensor in tensors.items():
        name = our_name(key)
        if name is None:
            (ignored if key.removeprefix("vit.").startswith(IGNORED) else unknown).append(key)
        elif name in ours:
            raise CheckpointError(
                f"'{path}' has two tensors for {name}, one of them '{key}'",
                expected="one spelling of every part",
                fix="export the state dict of one model only",
            )
        else:
            ours[name] = tensor
    if unknown:
        raise CheckpointError(
            f"'{path}' has {len(unknown)} tensors that belong to no plain ViT or MAE: {listing(unknown)}",
            expected="weights of a Meta MAE, a Hugging Face ViTMAE or ViT, or a timm ViT",
            fix="check that this is the model you meant; remove the extra tensors if they are not needed",
        )
    return _without_split_qkv(ours), ignored


def _without_split_qkv(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate q, k, v in this order; where no block has a q, k, v bias, zeros say the same."""
    for key in [k for k in ours if re.search(r"\.attn\.q\.(weight|bias)$", k)]:
        parts = [key.replace(".attn.q.", f".attn.{letter}.") for letter in "qkv"]
        if all(p in ours and ours[p].shape == ours[key].shape for p in parts):
            ours[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat([ours.pop(p) for p in parts])
    weights = [k for k in ours if k.endswith(".attn.qkv.weight")]
    for side in ("encoder.", "decoder."):
        mine = [k for k in weights if k.startswith(side)]
        if not any(k.replace("weight", "bias") in ours for k in mine):
            ours |= {k.replace("weight", "bias"): torch.zeros(ours[k].shape[0]) for k in mine}
    return ours


def listing(keys: list[str], most: int = 6) -> str:
    """Return the first keys of a list, and how many more there are."""
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + rest
