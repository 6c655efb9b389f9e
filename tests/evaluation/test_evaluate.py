"""Questions about finished models: answers that agree with what the model says picture by picture."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import pytest

from edgemae import load
from edgemae.data.image_set import scan
from edgemae.data.validation import known_classes
from edgemae.evaluation.evaluate import evaluate_path
from edgemae.spec.bundle import is_bundle
from edgemae.spec.errors import DataError, InputError
from tests.support.tiny_job import CLASSES, Job, Ran, stage, write_shapes


def test_accuracy_of_a_bundle_is_what_counting_gives(job: Job, compiled: Ran) -> None:
    with load(job.bundle) as model:
        said = {path: model(cv2.imread(str(path))).label for path in sorted(job.val.rglob("*.png"))}
    right = sum(path.parent.name == label for path, label in said.items())
    found = evaluate_path(job.bundle, str(job.val), {})
    assert found["top1"] == right / len(said)
    assert found["n"] == len(said) == 24
    for name in CLASSES:
        own = [label == name for path, label in said.items() if path.parent.name == name]
        assert found["per_class"][name] == sum(own) / len(own)
    assert found["size_bytes"] == job.bundle.stat().st_size


def test_a_model_file_and_the_graph_made_of_it_score_alike(job: Job, compiled: Ran) -> None:
    pruned = stage(job.output, "pruned") / "student.safetensors"
    found = evaluate_path(pruned, str(job.val), {})
    (report,) = (row for row in compiled.json["stages"] if row["stage"] == "pruned")
    assert found["top1"] == report["top1"]
    assert (found["params"], found["macs"]) == (report["params"], report["macs"])
    assert found["ece"] == pytest.approx(report["ece"])
    assert found["engine"] == "torch"


def test_pictures_without_labels_are_counted_and_not_judged(job: Job, compiled: Ran, tmp_path: Path) -> None:
    shutil.copytree(job.flat, tmp_path / "flat")
    (tmp_path / "flat" / "broken.jpg").write_bytes(b"")
    found = evaluate_path(job.bundle, str(tmp_path / "flat"), {"engine": "onnxruntime"})
    assert (found["top1"], found["ece"], found["n"], found["skipped_files"]) == (None, None, 40, 1)
    assert "per_class" not in found


def test_classes_are_matched_by_name_not_by_number(tmp_path: Path) -> None:
    images = scan(write_shapes(tmp_path / "one", 3, seed=1, classes=("square",)))
    assert set(known_classes(images, ("circle", "square")).labels or ()) == {1}
    assert known_classes(images, ("circle", "square")).classes == ("circle", "square")
    assert known_classes(images, ()).labels is None
    with pytest.raises(DataError, match="has the class 'square', which the model does not know"):
        known_classes(images, ("circle", "triangle"))


def test_what_counts_as_a_bundle(job: Job, compiled: Ran, tmp_path: Path) -> None:
    assert is_bundle(tmp_path / "missing.edgemae")
    assert not is_bundle(job.train)
    (tmp_path / "manifest.json").write_text("{}")
    assert is_bundle(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        evaluate_path(tmp_path / "missing.pth", str(job.val), {})
