"""Training stages of a real run: interrupted, killed, resumed, and the same bytes in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgemae.model.teacher import Teacher
from edgemae.pipeline.compile import dry_run
from edgemae.pipeline.datasets import gather
from edgemae.pipeline.stage_cache import StageCache
from edgemae.pipeline.training_stages import StageContext, open_stage_context, pretrain_stage, teacher_pixel
from edgemae.spec.errors import PlanError
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_loading import load_plan
from edgemae.spec.target import find_target
from tests.support.tiny_job import Job, Ran, edgemae, stage

EPOCHS = 10  # of three steps, and a checkpoint after each
SLOWLY = """
import sys, time
from edgemae.cli import main
from edgemae.train import loop
step = loop._Run._step
loop._Run._step = lambda *a: (time.sleep(0.05), step(*a))[1]  # a stage lasts for seconds, and costs no more
sys.argv[0] = "edgemae"
main()
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start the command line in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *map(str, arguments)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip


def wait_for(pattern: str, folder: Path, process: subprocess.Popen[str]) -> Path:
    """Return the first file that matches, as soon as there is one."""
    end = time.monotonic() + 120
    while not (found := sorted(folder.rglob(pattern))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)
    return found[0]


def test_interrupted_and_killed_it_ends_with_the_bytes_of_an_undisturbed_run(
    job: Job, compiled: Ran, tmp_path: Path
) -> None:
    """Ctrl-C in stage 1 with a worker process, kill -9 in stage 2, then the end; a second run makes nothing."""
    teacher, tuned = (stage(job.output, name) / "teacher.safetensors" for name in ("pretrain", "finetune"))
    epochs = ("--set", f"distill.epochs={EPOCHS}", "--set", f"distill.finetune.epochs={EPOCHS}")
    work = ("distill", teacher, "--finetuned-teacher", tuned, *job.work, *epochs, "--output")

    first = start(*work, tmp_path / "out", "--workers", 1)
    wait_for("train-1.ckpt", tmp_path, first)
    os.killpg(first.pid, signal.SIGINT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 130, err
    assert err.endswith("interrupted; finished stages are kept: run the same command to go on\n")
    assert "Traceback" not in err
    assert out == ""
    assert not list(tmp_path.rglob("done.json"))

    second = start(*work, tmp_path / "out")
    wait_for("train.ckpt", tmp_path, second)
    os.killpg(second.pid, signal.SIGKILL)
    _, err = second.communicate(timeout=60)
    assert second.returncode == -signal.SIGKILL
    assert "stage-1: going on from the checkpoint" in err
    assert [path.parent.name[:7] for path in tmp_path.rglob("done.json")] == ["stage-1"]

    third = edgemae(*work, tmp_path / "out", "--resume")
    assert third.code == 0, third.err
    assert "stage-1: done before, kept" in third.err
    assert "student: going on from the checkpoint" in third.err
    assert not list(tmp_path.rglob("*.ckpt"))
    undisturbed = edgemae(*work, tmp_path / "undisturbed")
    assert undisturbed.code == 0
    ends = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("out", "undisturbed")]
    assert ends[0] == ends[1]
    curves = [(stage(tmp_path / name, "student") / "curves.json").read_bytes() for name in ("out", "undisturbed")]
    assert curves[0] == curves[1]
    again = edgemae(*work, tmp_path / "out")
    assert "student: done before, kept" in again.err


def test_what_decides_a_stage_is_in_its_key(job: Job, tmp_path: Path) -> None:
    """Each of these numbers changes the teacher, so none may find another's stage."""
    made = []
    for i, settings in enumerate(((), ("seed=1",), ("data.resize=stretch",), ("data.mean=[0.1]", "data.std=[0.2]"))):
        flags = {"data.train": str(job.train), "data.eval": str(job.val)}
        plan = load_plan(job.plan, ("teacher.channels=1", "pretrain.epochs=1", *settings), flags)
        context = StageContext(plan, StageCache(tmp_path / "out"), gather(plan))
        made.append(pretrain_stage(context, None).path.parent.name)
        assert len(set(made)) == i + 1
    assert len(list((tmp_path / "out" / "stages").glob("pretrain-*"))) == 4


def test_what_only_judges_does_not_decide_pretraining_and_stage_1(job: Job, tmp_path: Path) -> None:
    plan = load_plan(job.plan, (), {"data.train": str(job.train), "data.eval": str(job.val)})
    context = StageContext(plan, StageCache(tmp_path / "out"), gather(plan))
    inputs = replace(context.inputs, evaluation=context.inputs.calibration)
    other = replace(context, inputs=inputs)
    assert context.key() == other.key()
    assert context.key_with_labels() != other.key_with_labels()
    assert replace(context, inputs=replace(inputs, labelled=None)).key() == context.key()


@pytest.mark.parametrize(
    ("table", "fine"),
    [("prune.heal", False), ("quantize.qat", False), ("distill", False), ("finetune", False), ("pretrain", True)],
)
def test_a_batch_that_does_not_divide_is_found_ahead(
    job: Job,
    tiny_vit,
    tmp_path: Path,
    table: str,
    fine: bool,  # type: ignore[no-untyped-def]
) -> None:
    """Also one of the last stage, and only one that is trained: `pretrain` has no part in a compile from a teacher."""
    Teacher(tiny_vit(classes=0), PixelContract(image_px=32)).save(tmp_path / "mae.safetensors")
    sizes = {name.removesuffix(".batch"): 12 for name in (
        "distill", "distill.finetune", "finetune", "prune.heal", "quantize.qat", "pretrain")}  # fmt: skip
    batches = [f"{name}.batch={10 if name == table else size}" for name, size in sizes.items()]
    flags = {"data.train": str(job.train), "data.eval": str(job.val)}
    plan = load_plan(None, ("scale.accumulate=3", "student.image_px=32", *batches), flags)
    target = [find_target("cpu-onnxruntime")]
    if fine:
        dry_run(plan, target, tmp_path / "mae.safetensors", tmp_path / "out")
        return
    with pytest.raises(PlanError, match=rf"{table}.batch of 10 images does not divide") as caught:
        dry_run(plan, target, tmp_path / "mae.safetensors", tmp_path / "out")
    assert "scale.accumulate" in caught.value.fix


def test_a_mistyped_folder_leaves_no_output_behind(job: Job, tmp_path: Path) -> None:
    plan = load_plan(job.plan, flags={"data.train": str(tmp_path / "missing")})
    with pytest.raises(Exception, match="does not exist"):
        open_stage_context(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("channels", "color", "mean"), [(1, "GRAY", (0.5,)), (3, "RGB", (0.485, 0.456, 0.406))])
def test_pixels_of_a_teacher_from_scratch(channels: int, color: str, mean: tuple[float, ...]) -> None:
    pixel = teacher_pixel(load_plan(None, (f"teacher.channels={channels}", "teacher.image_px=48")))
    assert (pixel.channels, pixel.color, pixel.mean, pixel.image_px) == (channels, color, mean, 48)
    own = teacher_pixel(load_plan(None, ("data.mean=[0.1, 0.2, 0.3]", "data.std=[1, 1, 1]")))
    assert (own.mean, own.kernel) == ((0.1, 0.2, 0.3), "area-linear")
    assert teacher_pixel(load_plan(None, ("data.kernel=halve-linear",))).kernel == "halve-linear"
