"""Quantization-aware training in a compile: when it runs, what it leaves, and that float stays what it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgemae import open_bundle
from edgemae.model.student import load_student
from tests.support.tiny_job import Job, Ran, edgemae, stage


def test_asked_for_it_is_scored_beside_plain_int8(job: Job, compiled: Ran, tmp_path: Path) -> None:
    student = stage(job.output, "pruned") / "student.safetensors"
    work = ("quantize", student, *job.work, "--target", job.target, "--output", tmp_path, "--json")
    ran = edgemae(*work, "--scheme", "ort-static", "--scheme", "openvino-static", "--qat")
    assert ran.code == 0, ran.err
    assert list(ran.json) == ["ort-static", "openvino-static", "ort-static+qat", "openvino-static+qat"]
    assert (tmp_path / "ort-static+qat.onnx").is_file()
    trained = stage(tmp_path, "qat") / "student.safetensors"
    scales = load_student(trained).scales
    assert scales is not None
    assert not scales.symmetric
    again = edgemae("quantize", trained, *work[2:-3], "--output", tmp_path / "2", "--json", "--scheme", "ort-static")
    assert list(again.json) == ["ort-static+qat"]  # its scales are taken, not calibrated
    assert (tmp_path / "2/ort-static+qat.onnx").read_bytes() == (tmp_path / "ort-static+qat.onnx").read_bytes()


@pytest.mark.parametrize("when", ["on_accuracy_loss", "always"])
def test_a_compile_pays_for_it_only_where_it_must(when: str, job: Job, compiled: Ran, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(job.output, output)
    (output / "shapes.edgemae").unlink()
    work = (*job.work, "--target", job.target, "--output", output, "--json")
    ran = edgemae("compile", *work, "--set", f"quantize.qat_when={when}")
    assert ran.code == 0, ran.err
    report = json.loads((output / "report.json").read_bytes())
    rows = [row["stage"] for row in report["stages"]]
    trained = when == "always"
    assert rows[:3] == ["teacher", "student", "pruned"]
    assert rows[3:] in ([["int8 (PTQ)", "int8 (QAT)"], ["int8 (PTQ)", "int8"]] if trained else [["int8"]])
    assert ("qat" in report["curves"]) is trained
    floats = [row for row in report["engines"] if row["precision"] == "fp32" and row["engine"] != "torch-eager"]
    before = [row for row in compiled.json["engines"] if row["precision"] == "fp32" and row["engine"] != "torch-eager"]
    assert [row["top1"] for row in floats] == [row["top1"] for row in before]
    assert any(row["scheme"].endswith("+qat") for row in report["engines"]) is trained
    manifest = open_bundle(output / "shapes.edgemae").manifest
    shipped = manifest.variants[0].scheme.endswith("+qat")
    assert (manifest.history[-1].stage == "qat") is shipped
    assert (rows[-1] == "int8 (QAT)") >= shipped
