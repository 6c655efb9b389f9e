"""Model files are read once and known by their digest; graphs come back as they were saved."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from edgemae.data import decoded_images, loader
from edgemae.data.decode_worker import Request, Views
from edgemae.model import import_teacher, model_file, weight_files
from edgemae.model.student import Student
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT
from edgemae.pipeline import stage_cache, stage_files
from edgemae.pipeline.stage_cache import digest_of
from edgemae.pipeline.stage_files import ModelFile, graph_digest, load_graph, save_graph
from edgemae.spec.errors import CheckpointError
from edgemae.spec.graph import Graph, IoContract, PixelContract, Step, TensorSpec
from tests.support.tiny_job import Job, edgemae, meta_pth

PIXEL = PixelContract(image_px=32)


def test_a_digest_knows_content_and_not_order_or_place(tmp_path: Path) -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1}) != digest_of({"a": 1, "b": [3]})
    for name in ("one", "two"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "x").write_bytes(b"x" * (1 << 20) + b"y")
    assert ModelFile(tmp_path / "one").digest == ModelFile(tmp_path / "two").digest
    (tmp_path / "two" / "deep" / "x").write_bytes(b"x" * (1 << 20) + b"z")
    assert ModelFile(tmp_path / "one").digest != ModelFile(tmp_path / "two").digest


def test_a_student_is_known_by_its_header_alone(
    tiny_vit: Callable[..., ViT], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Student(tiny_vit(), PIXEL, ("a", "b", "c")).save(tmp_path / "student.safetensors")
    Teacher(tiny_vit(classes=0), PIXEL).save(tmp_path / "teacher.safetensors")
    monkeypatch.setattr(model_file, "tensors_digest", lambda *_: pytest.fail("tensors were hashed"))
    assert ModelFile(tmp_path / "student.safetensors").is_student
    assert not ModelFile(tmp_path / "teacher.safetensors").is_student
    assert not ModelFile(meta_pth(tmp_path / "mae.pth")).is_student
    assert not ModelFile(tmp_path / "missing.safetensors").is_student


def test_what_is_asked_twice_is_read_once(tiny_vit: Callable[..., ViT], tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    Student(tiny_vit(), PIXEL, ("a", "b", "c")).save(path)
    file = ModelFile(path)
    student, digest = file.student, file.digest
    path.unlink()
    assert file.student is student
    assert file.digest == digest
    with pytest.raises(CheckpointError, match="student"):
        ModelFile(path).student  # noqa: B018 - the access is the test


def test_a_file_that_was_hashed_already_is_not_hashed_again(tmp_path: Path) -> None:
    assert ModelFile(tmp_path / "missing", digest="abc").digest == "abc"


def test_heads_that_a_file_cannot_tell_are_the_plans(tmp_path: Path) -> None:
    path = meta_pth(tmp_path / "mae.pth")
    with pytest.raises(CheckpointError, match="mae"):
        ModelFile(path).teacher  # noqa: B018 - the access is the test
    file = ModelFile(path, heads=2, decoder_heads=2)
    assert file.teacher.mae is not None
    assert file.teacher.history[0].plan["sha256"] == file.digest


def test_a_graph_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    io = IoContract(
        inputs=(TensorSpec(name="pixels", dtype="float32", shape=(1, 3, 8, 8)),),
        outputs=(TensorSpec(name="embedding", dtype="float32", shape=(1, 4)),),
    )
    graph = Graph({"model.xml": b"a", "model.bin": b"b"}, io, "int8", "openvino-static", (Step(stage="export"),))
    save_graph(tmp_path, "int8", graph)
    back = load_graph(tmp_path, "int8")
    assert back == graph
    assert graph_digest(back) == graph_digest(graph)
    assert graph_digest(back) != graph_digest(Graph({"model.xml": b"a", "model.bin": b"c"}, io))


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_compile_reads_its_teacher_twice_and_decodes_an_evaluation_image_three_times(
    kind: str, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine candidates: two forms of float and two or one int8 on two engines, trained scales of two static schemes."""
    source = meta_pth(tmp_path / "mae.pth")
    if kind == "safetensors":
        ModelFile(source, heads=2, decoder_heads=2).teacher.save(tmp_path / "mae.safetensors")
        source = tmp_path / "mae.safetensors"
    reads: Counter[str] = Counter()
    decoded: Counter[tuple[str, PixelContract]] = Counter()
    kept = type(decoded_images._sets)()
    monkeypatch.setattr(decoded_images, "_sets", kept)

    def counted(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(path: Path, *rest: object) -> object:
            if Path(path) == source:
                reads[name] += 1
            return real(path, *rest)

        return call

    real_sha256, real_decode = weight_files.WeightFile.sha256, loader.decode

    def sha256(self: weight_files.WeightFile) -> str:
        if self.files == (source,) and source not in self.hashes:
            reads["sha256"] += 1
        return real_sha256(self)

    def decode(request: Request) -> Views:
        decoded.update((path, request.pixel) for path in request.paths if str(job.val) in path)
        return real_decode(request)

    monkeypatch.setattr(weight_files.WeightFile, "sha256", sha256)
    monkeypatch.setattr(import_teacher, "read_weights", counted("weights", import_teacher.read_weights))
    monkeypatch.setattr(stage_files, "file_digest", counted("digest", stage_cache.file_digest))
    monkeypatch.setattr(loader, "decode", decode)
    flags = ("--teacher-heads", 2, "--teacher-decoder-heads", 2, "--set", "quantize.qat_when=always")
    flags = flags if kind == "pth" else flags[4:]
    ran = edgemae("compile", source, *job.work, "--target", job.target, "--output", tmp_path / "out", *flags, "--json")
    assert ran.code == 0, ran.err
    assert len(ran.json["engines"]) - 1 == 9  # all but torch eager
    assert reads == {"weights": 1, "digest": 1}
    assert "Original, masked, reconstructed" in json.dumps((tmp_path / "out" / "report.html").read_text())
    assert len({path for path, _ in decoded}) == 24
    assert max(decoded.values()) <= 2  # the second: six images of the figure; and all once more by the scan
