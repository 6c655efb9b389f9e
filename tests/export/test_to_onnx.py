"""Export: equal to torch for every kind of ViT, static and dynamic, both attention forms, byte for byte repeatable."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edgemae.export import to_onnx as module
from edgemae.export.lint import lint
from edgemae.export.to_onnx import ATTENTION_FORMS, both_forms, to_onnx
from edgemae.model.vit import ViT
from edgemae.spec.errors import CheckpointError, InputError, InternalError
from edgemae.spec.graph import Graph, PixelContract, Step

MakeViT = Callable[..., ViT]
KINDS = {
    "mean": {},
    "mean-no-head-norm-first": {"classes": 0, "norm_after_pool": False},
    "cls-token-mean": {"cls_token": True, "learned_pos": True},
    "cls-pool": {"cls_token": True, "pool": "cls", "norm_after_pool": False},
}


def run(graph: Graph, pixels: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(graph.onnx, providers=["CPUExecutionProvider"]).run(None, {"pixels": pixels})


def wanted(vit: ViT, pixels: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        return [t.numpy() for t in copy.deepcopy(vit).eval()(torch.from_numpy(pixels)) if t is not None]


def kinds(graph: Graph) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(graph.onnx).graph.node)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_vit_equals_torch(kind: str, make_vit: MakeViT, pixel: PixelContract) -> None:
    vit, dynamic, tokens = make_vit(**KINDS[kind]), kind == "cls-token-mean", kind != "mean"
    graph = to_onnx(vit, pixel, batch=None if dynamic else 1, tokens=tokens)
    first = -1 if dynamic else 1
    assert graph.io.inputs[0].shape == (first, 3, 32, 32)
    assert {o.name: o.shape for o in graph.io.outputs}["embedding"] == (first, 32)
    names = ["logits", "embedding", "tokens"]
    assert [o.name for o in graph.io.outputs] == names[vit.shape.classes == 0 : 3 if tokens else 2]
    for batch in (1, 5) if dynamic else (1,):
        pixels = np.random.default_rng(batch).standard_normal((batch, 3, 32, 32)).astype(np.float32)
        outputs = run(graph, pixels)
        for a, b in zip(wanted(vit, pixels), outputs, strict=not tokens):
            assert np.abs(a - b).max() <= 1e-4 * np.abs(a).max()
        if tokens:
            assert outputs[-1].shape == (batch, 16, 32)
            assert graph.io.outputs[-1].shape == (first, 16, 32)
            if vit.shape.pool == "mean":  # the embedding is the mean of these patches, and a norm before or after it
                mean = torch.from_numpy(outputs[-1]).mean(dim=1)
                pooled = vit.norm(mean) if vit.shape.norm_after_pool else mean
                np.testing.assert_allclose(pooled.detach().numpy(), outputs[-2], atol=1e-4)
    assert lint(graph) == []


@pytest.fixture(scope="module")
def forms(vit: ViT, pixel: PixelContract) -> dict[str, Graph]:
    return both_forms(vit, pixel, history=(Step(stage="distill"),))


def test_both_forms_keep_whole_ops(forms: dict[str, Graph]) -> None:
    assert tuple(forms) == ATTENTION_FORMS
    for form, graph in forms.items():
        counts = kinds(graph)
        assert counts["LayerNormalization"] == 5
        assert counts["Gelu"] == 2
        assert counts["Gemm"] == 9
        assert not {"IsNaN", "Where", "Pow", "Erf", "Shape", "Expand", "Mul", "Constant", "Cast", "Identity"} & set(
            counts
        )
        assert counts["Attention"] == (2 if form == "fused" else 0)
        assert counts["Softmax"] == (0 if form == "fused" else 2)
    pixels = np.random.default_rng(2).standard_normal((1, 3, 32, 32)).astype(np.float32)
    for a, b in zip(*(run(graph, pixels) for graph in forms.values()), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_bytes_repeat_name_no_folder_and_leave_the_caller_alone(make_vit: MakeViT, pixel: PixelContract) -> None:
    vit = make_vit().train()
    before = {k: v.clone() for k, v in vit.state_dict().items()}
    first, second = to_onnx(vit, pixel), to_onnx(copy.deepcopy(vit), pixel)
    assert vit.training
    assert vit.blocks[0].training
    assert all(torch.equal(before[k], v) for k, v in vit.state_dict().items())
    assert first.onnx == second.onnx
    assert str(Path(module.__file__).parents[2]).encode() not in first.onnx
    assert b"site-packages" not in first.onnx
    names = [node.name for node in onnx.load_from_string(first.onnx).graph.node]
    assert len(names) == len(set(names))
    assert {"blocks.0.attn.qkv", "blocks.1.mlp.fc2", "blocks.1.norm1", "head"} <= set(names)


def test_file_explains_itself_and_history_grows(forms: dict[str, Graph]) -> None:
    graph = forms["explicit"]
    assert graph.io.inputs[0].shape == (1, 3, 32, 32)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        run(graph, np.zeros((2, 3, 32, 32), np.float32))
    facts = {p.key: p.value for p in onnx.load_from_string(graph.onnx).metadata_props}
    assert json.loads(facts["edgemae.shape"])["heads"] == [2, 3]
    assert json.loads(facts["edgemae.pixel"])["image_px"] == 32
    assert [step.stage for step in graph.history] == ["distill", "export"]
    assert graph.precision == "fp32"
    assert graph.history[-1].scores["max_relative_difference"] < 1e-4


@pytest.mark.parametrize(
    ("change", "value"),
    [({"attention": "flash"}, "'flash'"), ({"batch": 0}, r"\b0\b"), ({"image_px": 64}, r"\b64\b")],
)
def test_wrong_arguments(vit: ViT, change: dict, value: str) -> None:
    contract = PixelContract(image_px=change.pop("image_px", 32))
    with pytest.raises(InputError, match=value):
        to_onnx(vit, contract, **change)


def test_diverged_weights_are_the_users(make_vit: MakeViT, pixel: PixelContract) -> None:
    vit = make_vit()
    with torch.no_grad():
        vit.blocks[0].mlp.fc1.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="'noise'"):
        to_onnx(vit, pixel)


def test_a_wrong_rewrite_is_ours(vit: ViT, pixel: PixelContract, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check against torch can fail: a graph with one weight changed is refused."""
    good = module.rewrite

    def bad(model: onnx.ModelProto) -> onnx.ModelProto:
        model = good(model)
        init = next(i for i in model.graph.initializer if i.name == "blocks.1.mlp.fc2.bias")
        value = onnx.numpy_helper.to_array(init).copy()
        value[0] += 0.1  # one channel only: the LayerNorm behind it takes a shift of all away
        init.CopyFrom(onnx.numpy_helper.from_array(value, init.name))
        return model

    monkeypatch.setattr(module, "rewrite", bad)
    with pytest.raises(InternalError, match=r"\d\.\de[-+]\d\d"):
        to_onnx(vit, pixel)
