"""The demo: scikit-learn's digits from pictures to a bundle, here with few of them and one epoch of everything."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import sklearn.datasets

from edgemae import open_bundle
from edgemae.pipeline.demo import PLAN, PX, write_digits
from edgemae.spec.errors import MachineError
from edgemae.spec.plan_loading import load_plan
from tests.support.tiny_job import edgemae

SMALL = (
    "threads=1", "teacher.width=32", "teacher.depth=1", "teacher.heads=1", "student.width=16", "student.depth=1",
    "student.heads=1", "pretrain.decoder_width=16", "distill.decoder_width=16", "pretrain.epochs=1",
    "finetune.epochs=1", "distill.epochs=1", "distill.finetune.epochs=1", "prune.keep_macs=1",
    "quantize.calibration_images=32", "quantize.smooth_alphas=[-1.0]",
)  # fmt: skip


def test_the_whole_demo_leaves_what_scripts_look_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, labels = sklearn.datasets.load_digits(return_X_y=True)
    few: Any = lambda return_X_y: (pictures[:300], labels[:300])  # noqa: E731, N803 - stands in for load_digits
    monkeypatch.setattr(sklearn.datasets, "load_digits", few)
    settings = [word for text in SMALL for word in ("--set", text)]
    ran = edgemae("demo", "--output", tmp_path / "demo", "--target", "cpu-onnxruntime", *settings)
    assert ran.code == 0, ran.err
    assert open_bundle(tmp_path / "demo" / "digits.edgemae").manifest.labels == tuple("0123456789")
    report = json.loads((tmp_path / "demo" / "report.json").read_bytes())
    assert [row["stage"] for row in report["stages"]] == ["teacher", "student", "pruned", "int8"]
    assert {row["n"] for row in report["stages"]} == {len(list((tmp_path / "demo" / "images" / "test").rglob("*.png")))}
    assert {row["engine"] for row in report["engines"]} == {"torch-eager", "onnxruntime"}
    assert report["gates"] == []
    assert f"edgemae run {tmp_path / 'demo' / 'digits.edgemae'}" in ran.out


def test_each_digit_is_halved_and_the_halves_share_nothing(tmp_path: Path) -> None:
    write_digits(tmp_path / "images")
    halves = {name: sorted((tmp_path / "images" / name).rglob("*.png")) for name in ("train", "test")}
    assert sum(map(len, halves.values())) == 1797
    counts = [Counter(path.parent.name for path in paths) for paths in halves.values()]
    assert all(abs(counts[0][digit] - counts[1][digit]) <= 1 for digit in "0123456789")
    contents = [{path.read_bytes() for path in paths} for paths in halves.values()]
    assert not contents[0] & contents[1]
    picture = cv2.imread(str(halves["train"][0]), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    assert picture.shape == (PX, PX)
    assert picture.dtype == np.uint8
    assert int(picture.max()) > 240
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
    before = halves["train"][0].stat().st_mtime_ns
    write_digits(tmp_path / "images")
    assert halves["train"][0].stat().st_mtime_ns == before


def test_a_broken_off_writing_begins_again(tmp_path: Path) -> None:
    """A kill leaves the part folder; a picture that was cut off in it does not survive."""
    half = tmp_path / "images.part" / "train" / "0" / "000.png"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"\x89PNG")
    write_digits(tmp_path / "images")
    assert cv2.imread(str(tmp_path / "images" / "train" / "0" / "000.png")) is not None
    shutil.rmtree(tmp_path / "images")


def test_without_scikit_learn_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(MachineError, match="scikit-learn is not installed"):
        write_digits(tmp_path / "images")


def test_the_plan_is_valid_and_follows_the_house() -> None:
    plan = load_plan(None, (), PLAN)
    assert plan.name == "digits"
    assert plan.student.image_px == plan.teacher.image_px == PX
    assert plan.student.channels == plan.teacher.channels == 1
