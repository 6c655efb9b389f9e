"""Names of nodes and tensors: layers get their torch names, and two exports of one model become equal byte for byte.

`onnx_ir` has passes that name what has no name and clear metadata. They are not used: the name of a layer is read from
that metadata, and ONNX names must not depend on the numbers that an exporter gives out.
"""

from __future__ import annotations

import onnx
from onnx import helper

from edgemae.export.library_passes import drop_unused


def own_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name each layer after its torch module and give it weights of its own.

    The exporter merges equal initializers (fresh LayerNorms are all alike); smoothing and per-channel scales must be
    able to change one layer without another.
    """
    fixed = {init.name: init for init in model.graph.initializer}
    roles = {"Gemm": "weight bias", "Conv": "weight bias", "LayerNormalization": "weight bias", "MatMul": "weight"}
    paths: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in roles or node.input[1] not in fixed:
            continue
        path = _module_path(node) or node.input[1].removesuffix(".weight")
        while path in paths:
            path += ".again"
        paths.add(path)
        node.name = path
        for i, role in enumerate(roles[node.op_type].split(), start=1):
            if i < len(node.input) and node.input[i]:
                own = onnx.TensorProto.FromString(fixed[node.input[i]].SerializeToString())
                own.name = node.input[i] = f"own/{path}.{role}"
                model.graph.initializer.append(own)
    model = drop_unused(model)
    for init in model.graph.initializer:
        init.name = init.name.removeprefix("own/")
    for node in model.graph.node:
        node.input[:] = [name.removeprefix("own/") for name in node.input]
    return model


def name_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name the other nodes and all tensors by kind and number, and strip what differs between two exports.

    Exporter metadata goes: it holds source paths of the machine, which are nobody's business and not reproducible.
    """
    outputs = {t.name for t in model.graph.output}
    fixed = {init.name for init in model.graph.initializer}
    renamed: dict[str, str] = {}
    for number, node in enumerate(model.graph.node):
        layer = f"{node.name}.weight" in node.input
        if not layer:
            node.name = f"{node.op_type.lower()}.{number}"
        for i, name in enumerate(node.output):
            if name and name not in outputs:
                renamed[name] = f"{node.name}.out{i or ''}"
        for i, name in enumerate(node.input):
            if name in fixed and not layer:
                renamed.setdefault(name, f"{node.name}.const{i}")
        _strip(node, fixed)
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for thing in (*model.graph.initializer, *model.graph.value_info, *model.graph.input, *model.graph.output):
        thing.name = renamed.get(thing.name, thing.name)
        thing.doc_string = ""
        del thing.metadata_props[:]
    model.graph.name, model.graph.doc_string, model.doc_string = "edgemae", "", ""
    model.producer_name, model.producer_version, model.domain = "edgemae", "", ""
    del model.graph.metadata_props[:], model.metadata_props[:], model.functions[:]
    opset = next(o.version for o in model.opset_import if o.domain == "")
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    return model


def _strip(node: onnx.NodeProto, fixed: set[str]) -> None:
    """Drop exporter metadata and `allowzero` (our shapes hold no 0, and old parsers refuse it); order attributes."""
    del node.metadata_props[:]
    node.doc_string = ""
    drop = "allowzero" if node.op_type == "Reshape" and node.input[1] in fixed else ""
    kept = sorted((a for a in node.attribute if a.name != drop), key=lambda a: a.name)
    kept = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
    del node.attribute[:]
    node.attribute.extend(kept)


def _module_path(node: onnx.NodeProto) -> str:
    """Return the torch module that made a node, from the exporter's `['', 'blocks.0.norm1', 'layer_norm']`."""
    scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "")
    parts = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    return parts[-2] if len(parts) > 1 else ""
