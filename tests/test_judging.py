"""Questions about finished models: answers that agree with what the model says picture by picture."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import msgspec
import pytest

from edgemae import judging, load
from edgemae.data.images import scan
from edgemae.judging import describe, evaluate_path, is_bundle, known_classes
from edgemae.spec.errors import DataError, EngineRuntimeError, InputError
from tests.profiles import full_profile
from tests.tiny import CLASSES, Job, Ran, meta_pth, stage, write_shapes


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


def test_a_file_of_somebody_else_says_what_was_assumed(tmp_path: Path) -> None:
    found = describe(meta_pth(tmp_path / "mae.pth"), heads=2, decoder_heads=2)
    assert found["decoder"]
    assert found["assumed"]
    assert found["history"][0]["stage"] == "import"
    assert "decoder (" in " ".join(describe(meta_pth(tmp_path / "mae.pth"), heads=2)["ignored"])


def test_a_bundle_is_ready_whatever_its_latencies_are_worth(
    job: Job, compiled: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(job.bundle, tmp_path / "b.edgemae")
    invalid = msgspec.structs.replace(full_profile(verdict="INVALID"), reasons=("a clock jumped",))
    monkeypatch.setattr(judging, "profile", lambda *_, **__: invalid)
    found = judging.finalize(tmp_path / "b.edgemae", None)
    assert (found["verdict"], found["reasons"]) == ("INVALID", ("a clock jumped",))
    assert any(engine["ready"] for engine in found["engines"])
    assert "is ready, its latencies are INVALID: a clock jumped" in caplog.text


def test_a_bundle_is_ready_though_it_cannot_be_profiled(
    job: Job, compiled: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise EngineRuntimeError("no room for a second copy", expected="memory", fix="free some")

    shutil.copy(job.bundle, tmp_path / "b.edgemae")
    monkeypatch.setattr(judging, "profile", broken)
    found = judging.finalize(tmp_path / "b.edgemae", None)
    assert any(engine["ready"] for engine in found["engines"])
    assert "verdict" not in found
    assert "is ready, but could not be profiled: no room for a second copy" in caplog.text


def test_what_counts_as_a_bundle(job: Job, compiled: Ran, tmp_path: Path) -> None:
    assert is_bundle(tmp_path / "missing.edgemae")
    assert not is_bundle(job.train)
    (tmp_path / "manifest.json").write_text("{}")
    assert is_bundle(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        describe(tmp_path / "missing.edgemae")
