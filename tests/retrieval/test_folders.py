"""The commands of `edgemae gallery`: folders in, files and images out, and three lines for every usual mistake."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.support.tiny_job import Job, edgemae, parts, write_bundle_of, write_shapes


@pytest.fixture(scope="module")
def normal(weave: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "cloth.normal"
    ran = edgemae("gallery", "build", weave / "weave.edgemae", weave / "normal", "-o", path, "--json",
                  "--false-alarm-rate", 0.05)  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json["threshold"].items() >= {"frames": 40, "frames_needed": 19, "is_claim": True}.items()
    assert (ran.json["frames"], ran.json["patches"]) == (40, 40 * 64)
    assert ran.json["size_bytes"] == path.stat().st_size < 600 * 1024
    return path


def test_class_folders_become_a_gallery_that_is_searched(weave: Path, job: Job, tmp_path: Path) -> None:
    file = tmp_path / "shapes.gallery"
    built = edgemae("gallery", "build", weave / "weave.edgemae", job.train, "-o", file, "--json")
    assert built.code == 0, built.err
    assert built.json["labels"] == {"circle": 24, "square": 24}
    assert built.json["entries"] == 48
    assert "gallery done: 48" in built.err
    image = job.train / "square" / "1-003.png"
    search = ("gallery", "search", weave / "weave.edgemae", file, image)
    found = edgemae(*search, "--top", 3, "--threads", 1, "--json").json
    assert [sorted(match) for match in found["matches"]] == [["id", "label", "metadata", "score"]] * 3
    assert found["matches"][0]["metadata"] == {"file": "square/1-003.png"}
    shown = edgemae(*search)
    assert shown.code == 0
    assert "square/1-003.png" in shown.out


def test_a_folder_is_scored_and_drawn_the_most_unusual_first(weave: Path, normal: Path, tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for i in range(4):
        shutil.copy(weave / "normal" / f"{i:03d}.png", tmp_path / "in" / "sub")
    frame_bgr = cv2.imread(str(tmp_path / "in" / "sub" / "002.png"))
    cv2.line(frame_bgr, (20, 30), (40, 36), (255, 255, 255), 3)
    assert cv2.imwrite(str(tmp_path / "in" / "sub" / "002.png"), frame_bgr)
    (tmp_path / "in" / "sub" / "corrupt.png").write_bytes(b"no image")
    ran = edgemae("gallery", "score", weave / "weave.edgemae", normal, tmp_path / "in" / "sub", "--save",
                  tmp_path / "maps", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    scores = ran.json["scores"]
    assert (scores[0]["file"], scores[0]["is_anomaly"]) == ("002.png", True)
    assert [row["score"] for row in scores] == sorted((row["score"] for row in scores), reverse=True)
    assert (ran.json["frames"], ran.json["skipped_files"]) == (4, 1)
    assert ran.json["anomalies"] == sum(row["is_anomaly"] for row in scores)
    drawn = cv2.imread(scores[0]["map"])
    assert Path(scores[0]["map"]) == tmp_path / "maps" / "002.png.png"
    moved = np.abs(drawn.astype(int) - frame_bgr).sum(axis=2)
    assert moved[24:44, 14:46].mean() > 2 * moved.mean()
    one = edgemae("gallery", "score", weave / "weave.edgemae", normal, tmp_path / "in" / "sub" / "002.png", "--json")
    assert [row["score"] for row in one.json["scores"]] == [scores[0]["score"]]


def test_class_folders_may_be_one_reference_set(weave: Path, job: Job, tmp_path: Path) -> None:
    for flags in (("--anomaly",), ("--held-out", job.val)):
        ran = edgemae("gallery", "build", weave / "weave.edgemae", job.train, "-o", tmp_path / "a", "--json", *flags)
        assert ran.code == 0, ran.err
        assert ran.json["frames"] == (24 if flags == ("--anomaly",) else 48)
        assert ran.json["threshold"]["frames"] == 24
        assert not ran.json["threshold"]["is_claim"]
        assert "too few for a claim of 1 %" in ran.err


def test_files_of_the_other_kind_and_other_bundles(weave: Path, normal: Path, job: Job, tmp_path: Path) -> None:
    import torch

    from edgemae.model.vit import ViT, ViTShape

    image = weave / "normal" / "000.png"
    ran = edgemae("gallery", "search", weave / "weave.edgemae", normal, image)
    assert (ran.code, ran.out) == (2, "")
    assert parts(ran.err)[0].endswith("is a reference set")
    torch.manual_seed(1)
    other = ViT(ViTShape.uniform(image_px=64, patch_px=8, width=32, depth=1, heads=2)).eval()
    path = write_bundle_of(tmp_path / "other.edgemae", other, weave / "normal", tokens=False, name="other")
    ran = edgemae("gallery", "score", path, normal, image)
    assert ran.code == 2
    assert "was made by weave version 1" in parts(ran.err)[0]
    assert "the model here is other version 1" in parts(ran.err)[0]
    ran = edgemae("gallery", "build", path, weave / "normal", "-o", tmp_path / "x.normal")
    assert ran.code == 2
    assert "gives no tokens" in ran.err
    assert "--set export.tokens=true" in parts(ran.err[ran.err.index("error:") :])[2]
    assert not (tmp_path / "x.normal").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "{bundle}", "{none}", "-o", "{none}"), "image folder"),
        (("search", "{bundle}", "{none}", "{image}"), "cannot be read: No such file"),
        (("score", "{bundle}", "{normal}", "{none}"), "image folder"),
        (("score", "{bundle}", "{normal}", "{none}.png"), "cannot be read any more"),
        (("build", "{bundle}", "{images}", "-o", "{none}", "--false-alarm-rate", "2"), "false-alarm rate of 2"),
        (("biuld",), "Did you mean 'build'"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], message: str, weave: Path, normal: Path, tmp_path: Path) -> None:
    names = {"bundle": weave / "weave.edgemae", "none": tmp_path / "none", "normal": normal,
             "image": weave / "normal" / "000.png", "images": weave / "normal"}  # fmt: skip
    ran = edgemae("gallery", *(text.format(**names) for text in arguments))
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err[ran.err.index("error:") :]


def test_few_shapes_are_told_apart_by_what_they_look_like(weave: Path, tmp_path: Path) -> None:
    """Not by the order they were added in: the same images under exchanged names give exchanged answers."""
    write_shapes(tmp_path / "a", 6, seed=1)
    shutil.copytree(tmp_path / "a" / "circle", tmp_path / "b" / "square")
    shutil.copytree(tmp_path / "a" / "square", tmp_path / "b" / "circle")
    labels = []
    for name in ("a", "b"):
        edgemae("gallery", "build", weave / "weave.edgemae", tmp_path / name, "-o", tmp_path / f"{name}.gallery")
        found = edgemae("gallery", "search", weave / "weave.edgemae", tmp_path / f"{name}.gallery",
                        tmp_path / "a" / "circle" / "0-000.png", "--json")  # fmt: skip
        labels.append(found.json["matches"][0]["label"])
    assert labels == ["circle", "square"]
