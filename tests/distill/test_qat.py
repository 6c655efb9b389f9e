"""The quantization-aware tail: what it computes, what it hands over bit for bit, and what it wins back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edgemae.data.image_set import ImageSet, sample, scan
from edgemae.distill.qat import RoundedLinear, plain_linears, round_linears, train_quantized
from edgemae.distill.stages import Images, heal_embedding, train_further
from edgemae.distill.supervised import Run, top1, train_classifier
from edgemae.export.to_onnx import to_onnx
from edgemae.model.import_teacher import load_teacher
from edgemae.model.student import Student, load_student
from edgemae.model.vit import ViT, ViTShape
from edgemae.pipeline.candidate_graphs import calibration_of
from edgemae.pipeline.demo import write_digits
from edgemae.prune import prune
from edgemae.quantize.calibrate import Calibration, session
from edgemae.quantize.openvino_int8 import openvino_session
from edgemae.quantize.range_search import starting_scales
from edgemae.quantize.schemes import SCHEMES
from edgemae.spec.errors import CheckpointError, InputError
from edgemae.spec.graph import Graph, Grid, PixelContract, Scales
from edgemae.spec.plan_schema import FinetunePlan, Plan, PrunePlan, QuantizePlan

PIXEL = PixelContract(image_px=32)
MakePlan = Callable[..., Plan]
TAIL = {"quantize__qat__epochs": 2, "quantize__qat__batch": 8, "quantize__qat__lr": 0.01}
PLAIN = QuantizePlan(smooth_alphas=(-1.0,), percentile=100.0)  # one way only: what is tried is not the point


@pytest.fixture(scope="module")
def calibration(pictures: ImageSet) -> Calibration:
    rng = np.random.default_rng(0)
    images = calibration_of(pictures.unlabelled(), PIXEL, 0).images
    more = [images, *(images * np.float32(factor) for factor in rng.uniform(0.5, 1.5, 2))]
    smooth = [image + np.linspace(-1, 1, 32, dtype=np.float32) for image in np.concatenate(more)]
    return Calibration.of(np.stack(smooth).astype(np.float32))


@pytest.fixture(scope="module")
def student(pictures: ImageSet) -> Student:
    """A student whose softmax scale is no power of two and whose values pass through one loud channel."""
    torch.manual_seed(0)
    vit = ViT(ViTShape.uniform(image_px=32, patch_px=8, width=48, depth=2, heads=2, head_dim=24, classes=2))
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if name != "pos":
                parameter += 0.02 * torch.randn_like(parameter)
        vit.blocks[0].norm1.weight[3] = 12.0
    return loud(Student(vit.eval(), PIXEL, pictures.classes), factor=64.0, channels=2)


def loud(student: Student, factor: float, channels: int) -> Student:
    """Make some channels between attention and its projection larger by `factor`: the same outputs, hard to round."""
    vit = copy.deepcopy(student.vit)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in vit.blocks:
            attn, inner = block.attn, block.attn.heads * block.attn.head_dim
            for channel in torch.randperm(inner, generator=generator)[:channels].tolist():
                attn.qkv.weight[2 * inner + channel] *= factor
                attn.qkv.bias[2 * inner + channel] *= factor
                attn.proj.weight[:, channel] /= factor
    return replace(student, vit=vit)


@pytest.fixture(scope="module")
def graph(student: Student) -> Graph:
    return to_onnx(student.vit, PIXEL)


@pytest.fixture(scope="module")
def trained(student: Student, graph: Graph, calibration: Calibration, pictures: ImageSet) -> dict[bool, Student]:
    """The student after the tail, by whether its scales are symmetric."""
    plan = Plan(workers=0, threads=1, quantize=QuantizePlan(qat=FinetunePlan(epochs=2, batch=8, lr=0.01)))
    images = Images(pictures.unlabelled(), pictures)

    def tuned(symmetric: bool) -> Student:
        start, divisors = starting_scales(graph, calibration, plan.quantize, symmetric)
        return train_quantized(student, start, divisors, plan, images, None)[0]

    return {kind: tuned(kind) for kind in (False, True)}


@pytest.fixture(scope="module")
def trained_graph(trained: dict[bool, Student]) -> Graph:
    return to_onnx(trained[False].vit, PIXEL)


# ---------------------------------------------------------------- handing over


@pytest.mark.parametrize(("scheme", "symmetric"), [("ort-static", False), ("tensorrt-qdq", True)])
def test_the_graph_uses_exactly_the_trained_scales(
    scheme: str, symmetric: bool, trained: dict[bool, Student], calibration: Calibration, tmp_path: Path
) -> None:
    trained[symmetric].save(tmp_path / "s.safetensors")
    student = load_student(tmp_path / "s.safetensors")
    assert student.scales == trained[symmetric].scales
    assert student.scales is not None
    rounded = round_linears(student.vit, student.scales)
    graph = SCHEMES[scheme](to_onnx(student.vit, PIXEL), replace(calibration, scales=student.scales), PLAIN)
    assert graph.scheme == f"{scheme}+qat"
    held = {i.name: numpy_helper.to_array(i) for i in onnx.load_from_string(graph.onnx).graph.initializer}
    assert len(student.scales.linears) == 8
    for name, grid in student.scales.linears.items():
        module = rounded.get_submodule(name)
        assert isinstance(module, RoundedLinear)
        scale, zero = module.input_grid()
        assert held[f"{name}.x_scale"].item() == scale.item() == grid.scale  # no bit is lost, in fp16 neither
        assert held[f"{name}.x_zero"].item() == int(zero) == grid.zero
        np.testing.assert_array_equal(held[f"{name}.weight_scale"], np.asarray(grid.weight_scale, np.float32))
        np.testing.assert_array_equal(held[f"{name}.weight_scale"], module.weight_scale()[:, 0].numpy())
        integers = (module.weight * module.fold / module.weight_scale()).round().clamp(-module.levels, module.levels)
        np.testing.assert_array_equal(held[f"{name}.weight_int8"], integers.detach().numpy())


@pytest.mark.parametrize("scheme", ["ort-static", "openvino-static"])
def test_int8_kernels_compute_what_was_trained(
    scheme: str, trained: dict[bool, Student], trained_graph: Graph, calibration: Calibration
) -> None:
    """What is left is the last rounding of float sums and the bias as int32; PTQ of the same weights is far off."""
    student = trained[False]
    assert student.scales is not None
    rounded = round_linears(student.vit, student.scales)
    graphs = {
        "aware": SCHEMES[scheme](trained_graph, replace(calibration, scales=student.scales), PLAIN),
        "ptq": SCHEMES[scheme](trained_graph, calibration, PLAIN),
    }
    error = {}
    for name, graph in graphs.items():
        run = session(graph.onnx) if scheme == "ort-static" else openvino_session(graph.files)
        differences = []
        for image in calibration.images[:16]:
            with torch.no_grad():
                want = rounded(torch.from_numpy(image[None]))
            differences.append(
                max(float(np.abs(a.numpy() - b).max()) for a, b in zip(want, run(image[None]), strict=True))
            )
        error[name] = float(np.median(differences))
    assert error["aware"] < 1e-4
    assert error["aware"] < 0.05 * error["ptq"]


def test_scales_of_another_kind_or_model_are_not_taken(
    trained: dict[bool, Student], graph: Graph, calibration: Calibration
) -> None:
    assert "qat" not in SCHEMES["ort-static"](graph, replace(calibration, scales=trained[True].scales), PLAIN).scheme
    linears = dict(trained[False].scales.linears)  # type: ignore[union-attr]
    del linears["blocks.1.mlp.fc2"]
    wrong = Scales(symmetric=False, linears=linears)
    with pytest.raises(InputError, match=r"'blocks\.1\.mlp\.fc2' differs"):
        SCHEMES["ort-static"](graph, replace(calibration, scales=wrong), PLAIN)


# ---------------------------------------------------------------- the record


def test_a_student_file_with_scales_is_an_ordinary_one(trained: dict[bool, Student], tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    trained[False].save(path)
    again = load_teacher(path).vit.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in trained[False].vit.state_dict().items())
    replace(trained[False], scales=None).save(path)
    assert load_student(path).scales is None
    broken = replace(
        trained[False], scales=Scales(symmetric=False, linears={"x": Grid(scale=1, zero=0, weight_scale=())})
    )
    object.__setattr__(broken, "scales", {"symmetric": "perhaps"})
    broken.save(path)
    with pytest.raises(CheckpointError, match="damaged header"):
        load_student(path)


def test_other_weights_drop_the_scales(trained: dict[bool, Student], pictures: ImageSet, plan_with: MakePlan) -> None:
    student, plan = trained[False], plan_with()
    images = Images(pictures.unlabelled(), pictures)
    assert student.scales is not None
    assert train_further(student, plan.prune.heal, plan, images, None)[0].scales is None
    assert heal_embedding(student, student, plan.prune.heal, plan, pictures.unlabelled())[0].scales is None
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    small = prune(
        student, PrunePlan(keep_macs=0.8, steps=1, criterion="taylor", score_batches=1), width_multiple=1,
        batches=lambda: iter([(pixels, None)]), loss=lambda vit, x, labels: vit(x)[1].square().mean(), heal=None,
    )  # fmt: skip
    assert small.vit.shape != student.vit.shape
    assert small.scales is None


# ---------------------------------------------------------------- training


def test_there_and_back_changes_nothing(student: Student, graph: Graph, calibration: Calibration) -> None:
    start, _ = starting_scales(graph, calibration, PLAIN, False)
    plain, scales = plain_linears(round_linears(student.vit, start), False)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in student.vit.state_dict().items())
    assert [grid.zero for grid in scales.linears.values()] == [grid.zero for grid in start.linears.values()]
    for name, grid in scales.linears.items():
        assert grid.scale == pytest.approx(start.linears[name].scale, rel=1e-6)


def test_the_gradient_passes_inside_the_range_and_widens_it_from_outside() -> None:
    linear = torch.nn.Linear(16, 16)
    module = RoundedLinear(linear, Grid(scale=1 / 64, zero=128, weight_scale=(1.0,) * 16), symmetric=False)
    x = torch.linspace(-1, 1, 16)[None].requires_grad_()
    module(x).sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).all())  # -2 .. 1.98 holds them all
    far = torch.full((1, 16), 5.0, requires_grad=True)
    module.bend.grad = None
    module(far).sum().backward()
    assert far.grad is not None
    assert not far.grad.any()
    assert module.bend.grad is not None
    assert module.bend.grad[1] != 0


def test_without_labels_the_embedding_comes_nearer(
    student: Student, graph: Graph, calibration: Calibration, pictures: ImageSet, plan_with: MakePlan
) -> None:
    plan = plan_with(**TAIL | {"quantize__qat__epochs": 4})
    start, divisors = starting_scales(graph, calibration, plan.quantize, False)
    after, curve = train_quantized(student, start, divisors, plan, Images(pictures.unlabelled()), None)
    assert after.scales is not None
    assert curve[-1]["embedding"] < 0.9 * curve[0]["embedding"]
    assert after.history[-1].stage == "qat"
    assert student.scales is None


@pytest.mark.slow
def test_the_tail_wins_back_most_of_what_rounding_costs(tmp_path: Path) -> None:
    """Handwritten digits, and a few channels 64 times louder than the rest, which no smoothing reaches."""
    write_digits(tmp_path / "digits")
    train, test = scan(tmp_path / "digits/train"), scan(tmp_path / "digits/test")
    pixel = PixelContract(image_px=32, channels=1, color="GRAY", mean=(0.5,), std=(0.5,))
    common = {"batch": 64, "flip": False, "crop_min": 0.6, "layer_decay": 1.0}
    torch.manual_seed(0)
    vit = ViT(ViTShape.uniform(image_px=32, patch_px=8, width=32, depth=2, heads=2, channels=1, classes=10))
    train_classifier(vit, FinetunePlan(epochs=20, lr=1.2e-2, **common), Run(train, pixel), None, "float")
    student = loud(Student(vit.eval(), pixel, train.classes), factor=64.0, channels=4)
    plan = Plan(workers=0, threads=1, quantize=QuantizePlan(qat=FinetunePlan(epochs=8, **common)))
    calibration = calibration_of(sample(train, 64, 0), pixel, 0)

    def int8(float_graph: Graph, scales: Scales | None) -> float:
        graph = SCHEMES["ort-static"](float_graph, replace(calibration, scales=scales), PLAIN)
        run, pixels = session(graph.onnx), calibration_of(test, pixel, 0).images
        said = [int(run(image[None])[0].argmax()) for image in pixels]
        return float(np.mean(np.array(said) == np.array(test.labels)))

    judge = Run(train, pixel, evaluation=test)
    first = to_onnx(student.vit, pixel)
    start, divisors = starting_scales(first, calibration, plan.quantize, False)
    after, _ = train_quantized(student, start, divisors, plan, Images(train.unlabelled(), train), None)
    before, ptq = top1(student.vit, judge), int8(first, student.scales)
    tail = int8(to_onnx(after.vit, pixel), after.scales)
    print(f"float {before:.4f}, PTQ {ptq:.4f}, tail {tail:.4f}")
    assert before - ptq > 0.02
    assert before - tail < 0.5 * (before - ptq)
