"""Names: those of torch modules, weights of their own for each layer, and no trace of the machine that exported."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import torch

from edgemae.export.rewrite import rewrite
from edgemae.export.to_onnx import to_onnx
from edgemae.model.vit import ViT
from edgemae.spec.graph import PixelContract
from tests.export.small_graphs import model, node

MakeViT = Callable[..., ViT]


def test_layers_are_named_by_their_module_and_traces_go() -> None:
    gemm = node("Gemm", "x w", "y", transB=1)
    gemm.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'blocks.0.attn.qkv', 'linear']")
    gemm.doc_string = "File /somewhere/vit.py"
    after = rewrite(model([gemm], w=np.ones((3, 4), np.float32)))
    assert after.graph.node[0].name == "blocks.0.attn.qkv"
    assert after.graph.node[0].input[1] == "blocks.0.attn.qkv.weight"
    assert b"somewhere" not in after.SerializeToString()


def test_equal_layers_do_not_share_weights(make_vit: MakeViT, pixel: PixelContract) -> None:
    """Fresh LayerNorms are all ones and zeros; the exporter merges them, and smoothing one must not change another."""
    torch.manual_seed(0)
    fresh = ViT(make_vit().shape)
    exported = onnx.load_from_string(to_onnx(fresh, pixel).onnx)
    weights = [n.input[1] for n in exported.graph.node if n.op_type == "LayerNormalization"]
    assert len(set(weights)) == len(weights) == 5
