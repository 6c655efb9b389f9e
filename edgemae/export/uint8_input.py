"""Let a graph take the image as it is, (B, H, W, C) uint8: scale, mean and std go into the graph.

Four times fewer bytes go in, and the device has nothing left to compute between the resize and the engine. It is the
last step before a graph ships, and the same for float, fp16 and int8: the patch embedding is float in all of them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgemae.spec.errors import InputError
from edgemae.spec.graph import Graph, IoContract, PixelContract, Step, TensorSpec

INPUT = "pixels"


def take_uint8(graph: Graph, pixel: PixelContract) -> Graph:
    """Return an ONNX graph that takes `pixels` as (B, H, W, C) uint8 and normalises them as `pixel` says.

    In front of a float convolution the normalisation goes into its weights, else two operators do it in float32.
    Raises InputError for a graph whose input is not the contract's float32 tensor.
    """
    byte_input = _byte_input(graph, pixel)
    model = onnx.load_from_string(graph.onnx)
    port = model.graph.input[0].type.tensor_type
    batch, channels, height, width = (onnx.TensorShapeProto.Dimension.FromString(d.SerializeToString())
                                      for d in port.shape.dim)  # fmt: skip
    port.elem_type = TensorProto.UINT8
    del port.shape.dim[:]
    port.shape.dim.extend((batch, height, width, channels))
    factor = 1 / (255 * np.asarray(pixel.std, np.float64))
    offset = np.asarray(pixel.mean, np.float64) / np.asarray(pixel.std, np.float64)
    # TensorRT takes uint8 at the border only: the cast comes first.
    front = [helper.make_node("Cast", [INPUT], ["pixels.float"], name="pixels.cast", to=TensorProto.FLOAT),
             helper.make_node("Transpose", ["pixels.float"], ["pixels.planes"], name="pixels.transpose",
                              perm=[0, 3, 1, 2])]  # fmt: skip
    last = "pixels.planes"
    if not _fold(model, factor, offset):
        for kind, values in (("Mul", factor), ("Sub", offset)):
            name = f"pixels.{kind.lower()}"
            shaped = values.reshape(1, -1, 1, 1).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(shaped, f"{name}.by"))
            front.append(helper.make_node(kind, [last, f"{name}.by"], [name], name=name))
            last = name
    for node in model.graph.node:
        node.input[:] = [last if name == INPUT else name for name in node.input]
    nodes = [*front, *(onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return _result(graph, byte_input, {"model.onnx": model.SerializeToString(deterministic=True)})


def with_uint8(graph: Graph, pixel: PixelContract, files: dict[str, bytes]) -> Graph:
    """Return the graph with other files, whose input is uint8. Raises InputError when the old input is another."""
    return _result(graph, _byte_input(graph, pixel), files)


def _byte_input(graph: Graph, pixel: PixelContract) -> TensorSpec:
    (old,) = graph.io.inputs
    shape = (old.shape[0], pixel.channels, pixel.image_px, pixel.image_px)
    if old.dtype != "float32" or old.shape != shape:
        raise InputError(
            f"the graph takes {old.dtype} {old.shape}",
            expected=f"float32 {shape}, as the pixel contract says",
            fix="pass the graph as it was exported, with its own contract",
        )
    batch, channels, height, width = shape
    return TensorSpec(name=old.name, dtype="uint8", shape=(batch, height, width, channels))


def _result(graph: Graph, byte_input: TensorSpec, files: dict[str, bytes]) -> Graph:
    io = IoContract(inputs=(byte_input,), outputs=graph.io.outputs)
    return replace(graph, files=files, io=io, history=(*graph.history, Step(stage="uint8-input")))


def _fold(model: onnx.ModelProto, factor: NDArray[np.float64], offset: NDArray[np.float64]) -> bool:
    """Write x * factor - offset into the one float32 convolution, without padding, that reads the input.

    Return whether there is one.
    """
    readers = [node for node in model.graph.node if INPUT in node.input]
    fixed = {init.name: init for init in model.graph.initializer}
    if len(readers) != 1 or readers[0].op_type != "Conv" or not set(readers[0].input[1:]) <= set(fixed):
        return False
    conv = readers[0]
    if any(a.name == "pads" and any(a.ints) for a in conv.attribute) or len(conv.input) < 3:
        return False  # a padded zero is no black pixel
    weight, bias = (numpy_helper.to_array(fixed[name]) for name in conv.input[1:])
    if weight.dtype != np.float32:
        return False
    folded = weight * factor.reshape(1, -1, 1, 1)
    moved = bias - (weight * offset.reshape(1, -1, 1, 1)).sum(axis=(1, 2, 3))
    for name, values in zip(conv.input[1:], (folded, moved), strict=True):
        fixed[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
    return True
