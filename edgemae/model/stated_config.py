"""What a teacher's file says of its network beside the weights, in one set of terms: no shape of a tensor tells it.

Sources: config.json of transformers and of timm (`model_args`, `pretrained_cfg`), and the options that a training
script stored (`args`, in timm's also `args.model_kwargs`). What is said twice must be said alike, what cannot be
computed here is refused, and nothing that is said is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemae.model.vit import LAYER_NORM_EPS, ViTShape
from edgemae.model.weight_files import WeightFile
from edgemae.spec.errors import CheckpointError

TRANSFORMERS = {
    "num_attention_heads": "heads", "decoder_num_attention_heads": "decoder_heads", "hidden_act": "activation",
    "image_size": "image_px", "patch_size": "patch_px", "hidden_size": "width", "num_hidden_layers": "depth",
    "intermediate_size": "mlp", "num_channels": "channels", "layer_norm_eps": "eps",
    "decoder_hidden_size": "decoder_width", "decoder_num_hidden_layers": "decoder_depth",
    "decoder_intermediate_size": "decoder_mlp",
}  # fmt: skip
TIMM = {
    "num_heads": "heads", "act_layer": "activation", "global_pool": "pool", "img_size": "image_px",
    "patch_size": "patch_px", "embed_dim": "width", "depth": "depth", "mlp_ratio": "mlp_ratio", "in_chans": "channels",
    "num_classes": "classes", "class_token": "cls_token",
}  # fmt: skip
TIMM_TOP = {"global_pool": "pool", "num_classes": "classes"}
ARGS = {"input_size": "image_px", "img_size": "image_px", "gp": "pool", "global_pool": "pool", "in_chans": "channels",
        "num_classes": "classes", "nb_classes": "classes"}  # fmt: skip
# Options of timm's VisionTransformer that do not change what a trained network computes, or that its tensors show.
HARMLESS = {
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path", "weight_init",
    "fix_init", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate",
    "qkv_bias", "proj_bias", "no_embed_class", "fc_norm", "final_norm", "init_values", "dynamic_img_size", "scriptable",
    "exportable", "device", "dtype",
}  # fmt: skip
# Options with the only values that are a plain ViT.
PLAIN: dict[str, tuple[Any, ...]] = {
    "norm_layer": (None, "", "layernorm", "LayerNorm"), "qk_norm": (False, None), "pre_norm": (False, None),
    "reg_tokens": (0, None), "pool_include_prefix": (False, None), "pos_embed": ("learn", None), "block_fn": (None, ""),
    "mlp_layer": (None, ""), "attn_layer": (None, ""), "embed_layer": (None, ""), "embed_norm_layer": (None, ""),
    "scale_attn_norm": (False, None), "scale_mlp_norm": (False, None), "dynamic_img_pad": (False, None),
    "features_only": (False, None),
}  # fmt: skip
POOLS = {"token": "cls", "cls": "cls", False: "cls", "avg": "mean", "mean": "mean", True: "mean"}
# Parts of timm's names of networks that name their tensors as a plain ViT does and compute something else.
OTHER_NETWORKS = {
    "_rpn_": "its norms stand behind the branches (res-post-norm)",
    "so400m_patch16_siglip": "it uses the activation gelu_tanh",
    "giantopt_patch16_siglip": "it uses the activation gelu_tanh",
    "_quickgelu": "it uses the activation quick_gelu",
}
MOST_EPS = 1e-5  # of a LayerNorm that is written as LAYER_NORM_EPS: the outputs of a network move by 5e-5


@dataclass(frozen=True)
class StatedConfig:
    """Hold (name, value, where it stands) of everything that a file says."""

    path: Path
    facts: tuple[tuple[str, Any, str], ...]

    def __call__(self, name: str) -> Any:
        """Return the one value that is stated, None for none. Raises CheckpointError for two."""
        found = [(value, where) for fact, value, where in self.facts if fact == name]
        for value, where in found[1:]:
            if value != found[0][0]:
                raise _error(
                    self.path, f"says {name} {found[0][0]} in {found[0][1]} and {value} in {where}",
                    "one truth", "correct the one that is wrong",
                )  # fmt: skip
        return found[0][0] if found else None

    def where(self, name: str) -> str:
        return next((where for fact, _, where in self.facts if fact == name), "")

    def compare(self, weights: Mapping[str, Any]) -> None:
        """Raise CheckpointError for a stated value that is not the one of the weights."""
        for name, real in weights.items():
            value = self(name)
            if value is not None and value != real:
                raise _error(
                    self.path, f"says {name} {value} in {self.where(name)}, its weights have {real}",
                    "a configuration that belongs to the weights",
                    "use the one that was saved with these weights, or save the weights alone",
                )  # fmt: skip

    def check(self, shape: ViTShape) -> None:
        """Raise CheckpointError for a size that contradicts the weights, or for a network that is not computed here."""
        mlp = shape.mlp[0] if len(set(shape.mlp)) == 1 else shape.mlp
        ratio = self("mlp_ratio")
        weights: dict[str, Any] = {
            "image_px": shape.image_px, "patch_px": shape.patch_px, "width": shape.width, "depth": shape.depth,
            "mlp": mlp, "channels": shape.channels, "classes": shape.classes, "cls_token": shape.cls_token,
            "mlp_ratio": ratio if ratio is None or int(shape.width * ratio) == mlp else f"{shape.mlp} / {shape.width}",
        }  # fmt: skip
        self.compare(weights)
        if self("activation") not in (None, "gelu"):
            raise _error(
                self.path, f"uses the activation '{self('activation')}' ({self.where('activation')})",
                "gelu (the exact one)", "use another teacher",
            )  # fmt: skip
        eps = self("eps")
        if eps is not None and not 0 <= eps <= MOST_EPS:
            raise _error(
                self.path, f"has LayerNorms with epsilon {eps} ({self.where('eps')})",
                f"at most {MOST_EPS:g}: they are written as {LAYER_NORM_EPS:g}", "use another teacher",
            )  # fmt: skip


def stated_config(file: WeightFile, path: Path) -> StatedConfig:
    """Return what a file says. Raises CheckpointError for values of no use and for options that are not known here."""
    config, args = file.config, file.args
    name = str(args.get("model") or config.get("architecture") or "")
    for part, why in OTHER_NETWORKS.items():
        if part in name:
            raise _error(path, f"is a '{name}': {why}", "a plain ViT: pre-norm blocks, gelu", "use another teacher")
    facts: list[tuple[str, Any, str]] = []

    def add(table: Mapping[str, str], values: Any, where: str, *, whole: bool = False) -> None:
        if values in (None, ""):
            return
        if not isinstance(values, Mapping):
            raise _error(path, f"has {where} of type {type(values).__name__}", "a table of options", "correct the file")
        for key, value in values.items():
            if key in table:
                if (fact := _fact(table[key], value, f"{where}: {key}", path)) is not None:
                    facts.append((table[key], fact, f"{where}: {key}"))
            elif whole and key not in HARMLESS and value not in PLAIN.get(key, ()):
                raise _error(
                    path, f"says {key} = {value!r} in {where}, which changes what the network computes",
                    "a plain ViT: patches, an optional class token, absolute positions, pre-norm blocks, gelu",
                    "use another teacher",
                )  # fmt: skip

    if "architecture" in config:
        add(TIMM, config.get("model_args"), "model_args of config.json", whole=True)
        add(TIMM_TOP, config, "config.json")
        pretrained = config.get("pretrained_cfg")
        if isinstance(pretrained, Mapping) and not any(fact == "image_px" for fact, *_ in facts):
            add({"input_size": "image_px"}, pretrained, "pretrained_cfg of config.json")
    else:
        add(TRANSFORMERS, config, "config.json")
    add(TIMM, args.get("model_kwargs"), "args.model_kwargs", whole=True)
    add(ARGS, args, "the options of its training")
    if not file.config and not _has_head(file):  # a script has an option for classes whether it trains a head or not
        facts = [fact for fact in facts if fact[0] != "classes"]
    return StatedConfig(path, tuple(facts))


def _fact(name: str, value: Any, where: str, path: Path) -> Any:
    """Return a stated value in our terms, None where it says nothing."""
    if value is None or (name == "pool" and value in ("", "fast")):
        return None
    if name == "pool":
        if not isinstance(value, str | bool) or value not in POOLS:
            raise _error(path, f"pools its tokens by '{value}' ({where})", "avg or token", "use another teacher")
        return POOLS[value]
    if name == "activation":
        return str(value).lower().removeprefix("nn.")
    if name == "cls_token":
        return bool(value)
    if name in ("image_px", "patch_px"):
        sides = list(value)[-2:] if isinstance(value, list | tuple) else [value]
        if len(set(sides)) != 1 or not _is_count(sides[0]):
            raise _error(path, f"is for {name} {value} ({where})", "squares, of one side", "use another teacher")
        return sides[0]
    fits = isinstance(value, int | float) if name in ("mlp_ratio", "eps") else _is_count(value) or value == 0
    if isinstance(value, bool) or not fits:
        raise _error(path, f"says {name} {value!r} in {where}", "a number", "correct it")
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _has_head(file: WeightFile) -> bool:
    return any(key.endswith(("head.weight", "classifier.weight")) for key in file.tensors)


def _error(path: Path, what: str, expected: str, fix: str) -> CheckpointError:
    return CheckpointError(f"'{path}' {what}", expected=expected, fix=fix)
