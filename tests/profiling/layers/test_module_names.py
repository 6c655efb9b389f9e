"""Names of operators lead to the modules of the student."""

from __future__ import annotations

import pytest

from edgemae.profiling.layers.module_names import module_of, modules_of


@pytest.mark.parametrize(
    ("names", "module"),
    [
        ("blocks.10.attn.qkv", "blocks.10.attn.qkv"),
        ("blocks.0.attn.qkv/WithoutBiases", "blocks.0.attn.qkv"),
        ("blocks.0.attn.qkv.weight_int8", "blocks.0.attn.qkv"),
        ("patch_embed.out_nchwc", "patch_embed"),
        ("blocks.3.norm2,blocks.3", "blocks.3.norm2"),
        ("[ONNX Layer: blocks.1.mlp.fc1]\x1e[ONNX Layer: gelu.23]", "blocks.1.mlp.fc1"),
        ("blocks.1.mlp.fc1 + blocks.1.mlp.fc2", "blocks.1.mlp"),
        ("blocks.1.mlp.fc2,blocks.2.norm1", "blocks.2.norm1"),
        ("logits", "head"),
        ("embedding", "norm"),
        ("layer_norm.3", ""),
        ("norm12", ""),
        ("softmax.15", ""),
        ("subheads", ""),
    ],
)
def test_names_tell_the_module(names: str, module: str) -> None:
    assert module_of(names) == module


def test_operators_without_weights_are_told_by_their_place() -> None:
    rows = [
        ("Reorder", "", "patch_embed"), ("patch_embed", "", "patch_embed"), ("add.3", "Add", "patch_embed"),
        ("MVN_1", "MVN", "blocks.0.norm1"), ("blocks.0.attn.qkv", "", "blocks.0.attn.qkv"),
        ("softmax.5", "Softmax", "blocks.0.attn"), ("blocks.0.attn.proj", "", "blocks.0.attn.proj"),
        ("add.7", "Add", "blocks.0"), ("MVN_8", "MVN", "blocks.0.norm2"), ("blocks.0.mlp.fc1", "", "blocks.0.mlp.fc1"),
        ("gelu.9", "Gelu", "blocks.0.mlp"), ("blocks.0.mlp.fc2", "", "blocks.0.mlp.fc2"), ("add.10", "Add", "blocks.0"),
        ("blocks.1.norm1/FakeQuantize.3", "", "blocks.1.norm1"), ("blocks.1.mlp.fc2", "", "blocks.1.mlp.fc2"),
        ("MVN_99", "MVN", "norm"), ("head", "", "head"),
    ]  # fmt: skip
    assert modules_of([(name, name, kind) for name, kind, _ in rows]) == [module for *_, module in rows]


def test_a_graph_without_our_names_stays_unmapped() -> None:
    assert modules_of([("MatMul.40", "MatMul.40", "MatMul"), ("MVN_1", "MVN_1", "MVN")]) == ["", ""]


def test_the_name_of_an_operator_beats_what_was_fused_into_it() -> None:
    row = (
        "blocks.0.mlp.fc1/WithoutBiases",
        "blocks.0.mlp.fc1/WithoutBiases,gelu.2,blocks.0.mlp.fc2.q",
        "FullyConnected",
    )
    assert modules_of([row]) == ["blocks.0.mlp.fc1"]
