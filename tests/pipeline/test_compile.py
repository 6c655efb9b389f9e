"""The whole way, from many beginnings: what it leaves, what it keeps, what it refuses, and what its gates say.

One compile of a tiny job (`compiled`) answers most questions; the others begin in the middle of it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgemae import load, open_bundle
from edgemae.device.engines import ENGINES
from edgemae.model.student import load_student
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT, ViTShape
from edgemae.pipeline.preflight import check_recipe
from edgemae.spec.bundle import amend_bundle
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_loading import load_plan
from tests.support.tiny_job import CLASSES, Job, Ran, edgemae, meta_pth, stage, write_target

PIXEL = PixelContract(image_px=96)
FLOAT_ONLY = ("--precision", "fp32", "--set", "prune.keep_macs=1")  # the shortest way to a bundle


def stages(output: Path) -> dict[str, int]:
    """Return when each stage was finished, by its folder's name."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (output / "stages").glob("*/done.json")}


def made(before: dict[str, int], after: dict[str, int]) -> set[str]:
    """Return the stages that were made between two looks, without their keys."""
    return {name.rpartition("-")[0] for name, at in after.items() if before.get(name) != at}


# ------------------------------------------------------------------------------------------------ what it leaves


def test_the_report_holds_what_scripts_read(job: Job, compiled: Ran) -> None:
    report = json.loads((job.output / "report.json").read_bytes())
    assert {key: value for key, value in compiled.json.items() if key != "bundle"} == report
    assert compiled.json["bundle"] == str(job.bundle)
    assert [row["stage"] for row in report["stages"]] == ["teacher", "student", "pruned", "int8"]
    for row in report["stages"]:
        assert {"stage", "top1", "n", "params", "macs", "size_bytes"} <= row.keys()
        assert row["n"] == 24
        assert 0 <= row["top1"] <= 1
    macs = {row["stage"]: row["macs"] for row in report["stages"]}
    assert macs["teacher"] > macs["student"] > macs["pruned"] == macs["int8"]
    for row in report["engines"]:
        assert {"engine", "precision", "p50_ms", "n", "ratio_to_torch_eager"} <= row.keys()
    measured = {(row["engine"], row["precision"]) for row in report["engines"]}
    assert measured == {("torch-eager", "fp32")} | {
        (engine, precision) for engine in ("onnxruntime", "openvino") for precision in ("fp32", "int8")
    }
    assert report["gates"] == []
    assert set(report["curves"]) == {"pretrain", "finetune", "distill", "finetune-student", "heal 1"}
    assert len(report["attention"]) == 4
    assert report["data"]["evaluation"]["images of each class"] == {"circle": 12, "square": 12}


def test_the_pages_are_there_and_stand_alone(job: Job, compiled: Ran) -> None:
    page = (job.output / "report.html").read_text()
    assert 'src="http' not in page
    assert "Original, masked, reconstructed" in page
    assert (job.output / "report.md").read_text().startswith("#")
    assert load_plan(job.output / "plan.toml").name == "shapes"


def test_the_bundle_runs_on_each_engine_and_says_the_same(job: Job, compiled: Ran) -> None:
    manifest = open_bundle(job.bundle).manifest
    assert manifest.status == "untested"
    assert manifest.labels == CLASSES
    assert [step.stage for step in manifest.history] == ["pretrain", "distill", "finetune-student", "prune", "heal"]
    frame_bgr = np.full((40, 50, 3), 90, np.uint8)
    found = []
    for engine in ("onnxruntime", "openvino"):
        with load(job.bundle, engine=engine) as model:
            assert model.skipped == ()
            found.append(model(frame_bgr).embedding)
    cosine = found[0] @ found[1] / np.linalg.norm(found[0]) / np.linalg.norm(found[1])
    assert cosine > 0.99


def test_nothing_of_libraries_reaches_the_terminal(compiled: Ran) -> None:
    for line in compiled.err.splitlines():
        assert line[:2].isdigit(), line
        assert " INFO " in line or "teaches next to nothing" in line, line  # the teacher of the tests is hardly trained


# ------------------------------------------------------------------------------------------------ what it keeps


def test_a_second_run_makes_nothing_and_ends_with_the_same(job: Job, compiled: Ran) -> None:
    before, bytes_before = stages(job.output), job.bundle.read_bytes()
    files = {path: path.stat().st_mtime_ns for path in job.output.rglob("*.*") if path.is_file()}
    again = edgemae("compile", *job.work, "--target", job.target, "--output", job.output, "--json", "--resume")
    assert again.code == 0
    assert stages(job.output) == before
    assert again.err.count("done before, kept") >= len(before)
    assert "started" not in again.err
    assert again.json["stages"] == compiled.json["stages"]
    assert again.json == compiled.json
    assert job.bundle.read_bytes() == bytes_before, "the same version has the same hash"
    del files[job.output / "plan.toml"], files[job.output / "stages" / ".lock"]
    assert {path: path.stat().st_mtime_ns for path in files} == files, "nothing is written anew"


def test_a_bundle_that_was_added_to_is_kept_and_a_lost_one_comes_back(job: Job, compiled: Ran, tmp_path: Path) -> None:
    """Siblings: a page that was changed, a bundle that is damaged or gone, one of another name."""
    shutil.copytree(job.output, tmp_path / "out")
    bundle, page = tmp_path / "out" / "shapes.edgemae", tmp_path / "out" / "report.md"
    first = bundle.read_bytes()
    work = ("compile", *job.work, "--target", job.target, "--output", tmp_path / "out")
    amend_bundle(bundle, {"profiles/box.json": b"{}"})
    added = bundle.read_bytes()
    page.unlink()
    assert edgemae(*work).code == 0
    assert bundle.read_bytes() == added
    assert page.is_file()
    bundle.write_bytes(first[:-1])
    assert edgemae(*work).code == 0
    assert bundle.read_bytes() == first
    bundle.unlink()
    assert edgemae(*work, "--workers", 1).code == 0, "how images are read decides nothing"
    assert bundle.read_bytes() == first
    before = stages(tmp_path / "out")
    assert edgemae(*work, "--set", "version=2").code == 0
    assert made(before, stages(tmp_path / "out")) == {"bundle-box"}
    assert open_bundle(bundle).manifest.version == 2


def test_a_changed_number_and_a_changed_file_redo_only_what_follows(job: Job, compiled: Ran, tmp_path: Path) -> None:
    shutil.copytree(job.output, tmp_path / "out")
    scores = stage(tmp_path / "out", "scores-student")
    (scores / "logits.npy").write_bytes((scores / "logits.npy").read_bytes()[:-1] + b"x")
    before = stages(tmp_path / "out")
    work = (*job.work, "--target", job.target, "--output", tmp_path / "out")
    ran = edgemae("compile", *work, "--set", "quantize.percentile=99.9")
    assert ran.code == 0
    assert "scores-student: its files have changed, made again" in ran.err
    assert made(before, stages(tmp_path / "out")) == {
        "scores-student", "bundle-box", "int8-ort-static", "int8-ort-dynamic", "int8-openvino-static",
        # Dynamic int8 and OpenVINO's ranges do not depend on the percentile: same bytes, so their scores stand.
        *(name for name in ("scores-onnxruntime-int8-ort-static", "latency-box")),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ gates


@pytest.mark.parametrize(
    ("limits", "code", "missed"),
    [
        (("--max-latency-ms", 1e4, "--max-size-mib", 100, "--max-drop", 99), 0, set()),
        (("--max-size-mib", 0.001, "--max-drop", 99), 4, {"size_mib"}),
        (("--max_latency_ms", 1e-6, "--max-drop", 1e-6), 3, {"p90_ms", "max_drop_pts"}),
        (("--max-latency-ms", 0, "--max-drop", 0, "--max-size-mib", 0), 3, {"p90_ms", "max_drop_pts", "size_mib"}),
    ],
)
def test_gates(job: Job, compiled: Ran, limits: tuple[Any, ...], code: int, missed: set[str], tmp_path: Path) -> None:
    """A missed gate leaves all artefacts, marks the bundle, prints the table and gives its exit code; it is cheap."""
    output = tmp_path / "out"
    shutil.copytree(job.output, output)
    (output / "shapes.edgemae").unlink()
    before = stages(output)
    ran = edgemae("compile", *job.work, "--target", job.target, "--output", output, *limits)
    assert ran.code == code, ran.err
    assert made(before, stages(output)) == {"bundle-box"}, "judged anew, and nothing measured"
    manifest = open_bundle(output / "shapes.edgemae").manifest
    assert manifest.status == ("failed" if missed else "passed")
    assert {gate.gate for gate in manifest.gates if not gate.passed} == missed
    assert len(manifest.gates) == len(limits) // 2
    rows = json.loads((output / "report.json").read_bytes())["gates"]
    assert all({"gate", "limit", "value", "passed"} <= row.keys() for row in rows)
    assert ("not shown to be met" in ran.out) == bool(missed)
    for command in ("verify", "profile", "run"):
        assert f"edgemae {command} {output / 'shapes.edgemae'}" in ran.out


# ------------------------------------------------------------------------------------------------ other beginnings


def test_from_a_student_for_two_targets_one_of_them_tensorrt(job: Job, compiled: Ran, tmp_path: Path) -> None:
    """No TensorRT runs here: its plan is built ahead of time from the bundle's own Q/DQ graph, as the device does."""
    student = stage(job.output, "pruned") / "student.safetensors"
    rtx = write_target(tmp_path / "rtx.toml", ("tensorrt", "onnxruntime"), ("int8", "fp16", "fp32"))
    both = ("--target", rtx, "--target", "jetson-orin-nano", "--output", tmp_path / "out")
    rest = ("--set", "prune.keep_macs=1", "--set", 'quantize.schemes=["tensorrt-qdq"]', "--max-latency-ms", 1e4)
    ran = edgemae("compile", student, *job.work, *both, *rest, "--json")
    assert ran.code == 4, "a latency that was taken elsewhere, or not at all, passes no limit"
    assert "gate p90_ms will be missed for jetson-orin-nano: the machine is " in ran.err
    assert [gate["passed"] for row in ran.json["bundles"] for gate in row["gates"]] == [False, False]
    assert "started" not in "".join(line for line in ran.err.splitlines() if "distill" in line or "finetune" in line)
    bundles = [Path(row["bundle"]) for row in ran.json["bundles"]]
    assert [path.name for path in bundles] == ["shapes-rtx.edgemae", "shapes-jetson-orin-nano.edgemae"]
    assert [row["stage"] for row in ran.json["bundles"][0]["stages"]] == ["student", "pruned", "int8"]
    assert any("Pruning was off" in note for note in ran.json["bundles"][0]["notes"])
    opened = open_bundle(bundles[0])
    variant = opened.manifest.variants[0]
    assert (variant.engine, variant.precision) == ("tensorrt", "int8")
    assert b"QuantizeLinear" in next(iter(opened.variant_files(variant).values()))
    plan = ENGINES["tensorrt"].compile(opened.variant_files(variant), opened.manifest.target)
    assert len(plan) > 10_000
    with load(bundles[0], engine="onnxruntime") as model:
        assert model.variant.precision == "fp32"


def test_without_labels_the_bundle_gives_embeddings(job: Job, compiled: Ran, tmp_path: Path) -> None:
    teacher = stage(job.output, "pretrain") / "teacher.safetensors"
    plan = ("--plan", job.plan, "--data", job.flat, "--unlabelled", job.train)
    rest = ("--set", 'quantize.schemes=["ort-dynamic"]', "--target", "cpu-onnxruntime", "--max-drop", "50")
    ran = edgemae("compile", teacher, *plan, *rest, "--output", tmp_path / "out", "--json")
    assert ran.code == 3, "without labels no drop can be shown"
    assert "gate max_drop_pts will be missed: without labels no drop can be shown" in ran.err
    assert [row["top1"] for row in ran.json["stages"]] == [None] * 4
    assert ran.json["stages"][1]["n"] == 8
    pruned = load_student(stage(tmp_path / "out", "pruned") / "student.safetensors")
    assert pruned.vit.head is None
    assert [step.stage for step in pruned.history] == ["pretrain", "distill", "prune", "heal"]
    with load(tmp_path / "out" / "shapes.edgemae") as model:
        result = model(np.zeros((32, 32, 3), np.uint8))
    assert result.label is None
    assert result.embedding is not None
    assert result.embedding.shape == (32,)


def test_tokens_come_out_of_every_graph_when_asked_for(job: Job, compiled: Ran, tmp_path: Path) -> None:
    student = stage(job.output, "student") / "student.safetensors"
    work = ("compile", student, *job.work, "--target", job.target, "--output", tmp_path / "out", "--json")
    ran = edgemae(*work, "--set", "export.tokens=true", "--set", "prune.keep_macs=1")
    assert ran.code == 0, ran.err
    manifest = open_bundle(tmp_path / "out" / "shapes.edgemae").manifest
    assert [spec.name for spec in manifest.io.outputs] == ["logits", "embedding", "tokens"]
    assert manifest.io.outputs[-1].shape == (1, 16, 32)
    frame_bgr, found = np.full((40, 50, 3), 90, np.uint8), []
    for engine in ("onnxruntime", "openvino"):
        with load(tmp_path / "out" / "shapes.edgemae", engine=engine) as model:
            found.append(model(frame_bgr).tokens)
            assert found[-1].shape == (16, 32)
    assert (found[0] * found[1]).sum() / np.linalg.norm(found[0]) / np.linalg.norm(found[1]) > 0.99
    with load(job.bundle) as without:
        assert without(frame_bgr).tokens is None


def test_from_a_file_of_metas_mae(job: Job, tmp_path: Path) -> None:
    source = meta_pth(tmp_path / "mae.pth")
    work = ("compile", source, *job.work, "--target", "cpu-onnxruntime", "--output", tmp_path / "out", *FLOAT_ONLY)
    asked = edgemae(*work, "--dry-run")
    assert asked.code == 2, "a file that cannot tell its heads is asked about"
    assert "--teacher-heads" in asked.err
    without = edgemae(*work, "--teacher-heads", 2, "--dry-run")
    assert "teacher: ignored: decoder (" in without.err
    ran = edgemae(*work, "--teacher-heads", 2, "--teacher-decoder-heads", 2)
    assert ran.code == 0, ran.err
    assert "teacher: ignored: decoder" not in ran.err
    assert "teacher: assumed: " in ran.err
    assert "Original, masked, reconstructed" in (tmp_path / "out" / "report.html").read_text()
    manifest = open_bundle(tmp_path / "out" / "shapes.edgemae").manifest
    assert manifest.history[0].stage == "import"
    assert manifest.licence == manifest.history[0].licence


def test_from_a_hugging_face_folder(job: Job, tmp_path: Path) -> None:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(6)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = ViTMAEConfig(
        **sizes, **decoder, decoder_intermediate_size=32, image_size=32, patch_size=8, layer_norm_eps=1e-6
    )
    model = ViTMAEForPreTraining(config)
    for name, parameter in model.named_parameters():
        if "position_embeddings" in name or "decoder_pos_embed" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(tmp_path / "hf")
    plan = ("--plan", job.plan, "--data", job.flat, "--target", "cpu-onnxruntime", "--output", tmp_path / "out")
    ran = edgemae("compile", tmp_path / "hf", *plan, *FLOAT_ONLY, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["stages"][0]["macs"] > ran.json["stages"][1]["macs"]
    assert "finetune" not in ran.err
    assert ran.json["history"][0]["stage"] == "import"


# ------------------------------------------------------------------------------------------------ before the first step


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(job: Job, tmp_path: Path) -> None:
    work = ("compile", *job.work, "--target", job.target, "--output", tmp_path / "out", "--dry-run")
    ran = edgemae(*work)
    assert ran.code == 0
    assert not (tmp_path / "out").exists()
    (tmp_path / "plan.toml").write_text(ran.out)
    flags = {"data.train": str(job.train), "data.eval": str(job.val)}
    assert load_plan(tmp_path / "plan.toml") == load_plan(job.plan, ("preset=tiny-thousands",), flags)
    found = edgemae(*work, "--json").json
    assert found["targets"] == ["box"]
    assert found["data"]["training"]["images"] == 48
    assert found["plan"]["name"] == "shapes"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("distill.recipe=relatoin", "Did you mean 'relation'"),
        ("distill.mask=blok", "Did you mean 'block'"),
        ("prune.criterion=tailor", "Did you mean 'taylor'"),
        ('quantize.schemes=["ort-statik"]', "Did you mean 'ort-static'"),
        ('quantize.schemes=["tensorrt-qdq"]', "no engine of target 'box' runs"),
        ("data.resize=squash", "data.resize is 'squash'"),
        ("prune.keep_macs=0.2", "prune.keep_macs"),
        ("student.heads=0", "student.heads is 0"),
        ("student.image_px=0", "student.image_px is 0"),
        ("teacher.mlp_ratio=-1", "teacher.mlp_ratio is -1"),
        ("name=../model", "it names files"),
        ("distill.batch=0", "distill.batch is 0"),
        ("prune.heal.lr=0", "prune.heal.lr is 0"),
        ("pretrain.decoder_heads=0", "pretrain.decoder_heads is 0"),
        ("pretrain.decoder_heads=3", "a divisor of decoder_width, 16"),
        ("data.std=[1, 1, 1]", "mean and std of each channel, or neither"),
        ("quantize.smooth_alphas=[]", "some of -1 (off) and 0 to 1"),
        ("student.channels=1", "channels"),
        ("distill.teacher_block=9", "the teacher has 2 blocks"),
        ("data.calib={flat}", "different calibration images"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    setting: str, message: str, job: Job, tmp_path: Path
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(job.flat.iterdir())[:5]:
        shutil.copy(path, few)
    flags = ("--target", job.target, "--output", tmp_path / "out", "--set", setting.format(flat=few))
    ran = edgemae("compile", *job.work, *flags)
    assert ran.code == 2, ran.err
    assert message in ran.err
    assert "started" not in ran.err
    assert stages(tmp_path / "out") == {}


@pytest.mark.parametrize("limit", ["--max-drop", "--max-latency-ms", "--max-size-mib"])
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "-0.5"])
def test_a_limit_that_is_no_limit_is_refused(limit: str, value: str, job: Job, tmp_path: Path) -> None:
    work = ("compile", *job.work, "--target", job.target, "--output", tmp_path / "out")
    ran = edgemae(*work, f"{limit}={value}")
    assert ran.code == 2, ran.err
    assert "gates." in ran.err
    assert not (tmp_path / "out").exists()


def test_a_student_larger_than_its_teacher_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """The default student beside the teacher that is committed: 292 against 244 M. Siblings: smaller, equal, a part."""
    small = Teacher(ViT(ViTShape.uniform(image_px=96, patch_px=12, width=192, depth=8, heads=6, head_dim=32)), PIXEL)
    check_recipe(load_plan(), small)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "292 M" in said
    assert "244.4 M" in said
    caplog.clear()
    check_recipe(load_plan(None, ("student.patch_px=16",)), small)
    same = Teacher(ViT(ViTShape.uniform(image_px=96, patch_px=8, width=192, depth=4, heads=3, head_dim=64)), PIXEL)
    check_recipe(load_plan(), same)
    check_recipe(load_plan(None, ("elastic.on=true", "elastic.depths=[2,4]", "elastic.shape=[2,3,768,96]")), small)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_labels_must_be_the_students(job: Job, compiled: Ran, tmp_path: Path) -> None:
    student = stage(job.output, "student") / "student.safetensors"
    shutil.copytree(job.train, tmp_path / "train")
    (tmp_path / "train" / "circle").rename(tmp_path / "train" / "disc")
    plan = ("--plan", job.plan, "--target", job.target, "--output", tmp_path / "out")
    ran = edgemae("compile", student, "--data", tmp_path / "train", *plan)
    assert ran.code == 2
    assert "has the classes disc, square, and the model has the classes circle, square" in ran.err


def test_a_source_that_edgemae_trained_is_told_apart(job: Job, compiled: Ran) -> None:
    from edgemae.model.teacher import import_notes
    from edgemae.pipeline.stage_files import ModelFile

    teacher = stage(job.output, "finetune") / "teacher.safetensors"
    assert not ModelFile(teacher).is_student
    assert ModelFile(stage(job.output, "student") / "student.safetensors").is_student
    read = ModelFile.of(teacher, load_plan()).teacher
    assert isinstance(read, Teacher)
    assert read.labels == CLASSES
    assert import_notes(read) == {}
