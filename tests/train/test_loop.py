"""The training loop: what it logs, when it stops, and that a killed run ends as one that was not."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

import edgemae
from edgemae.data.image_set import ImageSet
from edgemae.data.loader import Batch, Loader
from edgemae.spec.errors import DataError, InputError, MachineError
from edgemae.spec.plan_schema import ScalePlan
from edgemae.terminal import progress
from edgemae.train import loop, step_context
from edgemae.train.distributed import bf16_is_fast
from edgemae.train.job import Job
from edgemae.train.loop import fit
from edgemae.train.step_context import StepContext
from tests.support.toy_job import PIXEL, Toy, equal, interrupted, weights

# ---------------------------------------------------------------- the loop


def test_each_term_is_logged_by_itself(job_with: Callable[..., Job]) -> None:
    steps: list[dict[str, float]] = []
    job = job_with()
    inner = job.loss

    def loss(batch: Batch, context: StepContext) -> dict[str, Tensor]:
        terms = inner(batch, context)
        steps.append({name: value.item() for name, value in terms.items()})
        return terms

    curve = fit(replace(job, loss=loss))
    assert len(steps) == 12
    assert [row["epoch"] for row in curve] == [1.0, 2.0, 3.0, 4.0]
    for k, row in enumerate(curve):
        part = steps[3 * k : 3 * k + 3]
        for name in ("near", "noise"):
            assert row[name] == pytest.approx(sum(step[name] for step in part) / 3)
        assert row["loss"] == pytest.approx(row["near"] + row["noise"])
    assert curve[-1]["near"] < curve[0]["near"]
    assert not job.module.training


def test_the_rate_follows_batch_schedule_and_group(job_with: Callable[..., Job]) -> None:
    module = Toy()
    groups = [{"params": [module.linear.weight], "scale": 1.0}, {"params": [module.linear.bias], "scale": 0.25}]
    rates: list[list[float]] = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: rates.append([group["lr"] for group in optimizer.param_groups])
    )
    fit(job_with(module=module, groups=groups))
    hook.remove()
    assert [rate for rate, _ in rates[:3]] == pytest.approx(
        [0.1 / 3, 0.1 * 2 / 3, 0.1]
    )  # 3.2 * 8 / 256, 3 of 12 warm up
    assert rates[7][0] == pytest.approx(0.1 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 4 / 9)).item()))
    assert all(slow == pytest.approx(fast / 4) for fast, slow in rates)


def test_validation_runs_every_tenth_and_at_the_end(job_with: Callable[..., Job]) -> None:
    modes: list[bool] = []
    job = job_with(epochs=25)

    def validate() -> float:
        job.module.eval()
        return 0.5

    job.module.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    curve = fit(replace(job, validate=validate))
    assert [row["epoch"] for row in curve if "validation" in row] == [*range(2, 25, 2), 25]
    assert all(modes)  # training goes on in training mode


def test_a_seed_gives_one_result(job_with: Callable[..., Job]) -> None:
    first, second, other = job_with(), job_with(), job_with(seed=1)
    assert fit(first) == fit(second)
    assert equal(weights(first), weights(second))
    assert fit(other) != fit(job_with())


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("asked", [True, False])
def test_bf16_only_where_it_is_asked_for_and_fast(
    job_with: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, asked: bool, fast: bool
) -> None:
    monkeypatch.setattr(loop, "bf16_is_fast", lambda _: fast)
    job = job_with(bf16=asked, epochs=1)
    kinds: list[torch.dtype] = []
    job.module.register_forward_hook(lambda _, args, out: kinds.append(out.dtype))
    curve = fit(job)
    assert set(kinds) == {torch.bfloat16 if asked and fast else torch.float32}
    assert job.module.linear.weight.dtype == torch.float32  # type: ignore[union-attr]
    assert curve[0]["loss"] > 0


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads the flags that Linux gives")
def test_bf16_is_fast_where_the_processor_multiplies_it() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert bf16_is_fast(torch.device("cpu")) == bool(flags & {"avx512_bf16", "amx_tile"})


def test_waiting_for_data_is_shown(
    job_with: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lines() -> list[dict[str, float]]:
        caplog.clear()
        fit(job_with(epochs=1))
        shown = [
            r.message.split("  ") for r in caplog.records if r.message.startswith("toy") and " s left" in r.message
        ]
        return [{k: float(v) for k, v in (part.split(" ") for part in row[1:-1])} for row in shown]

    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False, raising=False)
    caplog.set_level(logging.INFO, "edgemae")
    assert [set(row) for row in lines()] == [{"near", "noise", "loss", "images_s", "data_wait_pct"}] * 3
    decode = sys.modules["edgemae.data.loader"].decode
    monkeypatch.setattr("edgemae.data.loader.decode", lambda request: (time.sleep(1.0), decode(request))[1])
    assert all(row["data_wait_pct"] > 80 for row in lines())


# ---------------------------------------------------------------- stops


def test_fewer_images_than_a_batch_are_refused(job_with: Callable[..., Job], pictures: ImageSet) -> None:
    with pytest.raises(DataError, match="5 images are fewer than one batch of 8"):
        fit(job_with(loader=Loader(pictures.pick(range(5)), PIXEL, 8)))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops(job_with: Callable[..., Job], tmp_path: Path, poison: float) -> None:
    path = tmp_path / "train.ckpt"
    job = job_with(checkpoint=path)
    seen: list[list[int]] = []

    def loss(batch: Batch, context: StepContext) -> dict[str, Tensor]:
        seen.append(batch.indices.tolist())
        terms = job.loss(batch, context)
        return terms | {"noise": terms["noise"] * (poison if len(seen) == 5 else 1.0)}

    with pytest.raises(InputError, match=r"toy: the loss became (nan|inf) at step 4") as caught:
        fit(replace(job, loss=loss))
    assert job.loader.images.paths[seen[4][0]] in caught.value.what
    assert "'near': " in caught.value.what
    assert f"the last good checkpoint, of step 3, is kept at {path}" in caught.value.fix
    assert torch.load(path, weights_only=True)["done"] == 3  # the epoch before
    assert f"all 8 in {tmp_path / 'train.events.jsonl'}" in caught.value.what
    last = json.loads((tmp_path / "train.events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["step"], last["why"][:15]) == ("stop", 4, "toy: the loss b")
    assert last["files"] == [job.loader.images.paths[i] for i in seen[4]]
    assert all(torch.isfinite(value).all() for value in job.module.state_dict().values())


def test_a_gradient_that_is_not_finite_stops_before_the_weights_take_it_in(job_with: Callable[..., Job]) -> None:
    job = job_with()
    before = weights(job)

    def loss(batch: Batch, _: StepContext) -> dict[str, Tensor]:
        return {"root": (0 * job.module(batch.pixels)).sum().abs().sqrt()}  # 0, but its slope is not finite

    with pytest.raises(InputError, match="the gradient's norm became nan at step 0") as caught:
        fit(replace(job, loss=loss))
    assert caught.value.fix.startswith(f"lower the lr of this stage in the plan, {job.lr:g}")
    assert "checkpoint" not in caught.value.fix  # none is promised
    assert equal(before, weights(job))


def test_parts_of_a_batch_share_their_draws(job_with: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks are drawn for a whole step: once, however many parts it is computed in."""
    made: list[int] = []
    draw = step_context.make_keep
    monkeypatch.setattr(step_context, "make_keep", lambda *args: (made.append(1), draw(*args))[1])
    seen: dict[int, list[Tensor]] = {1: [], 4: []}
    for parts, rows in seen.items():
        job = job_with(scale=ScalePlan(accumulate=parts), epochs=1)

        def loss(batch: Batch, at: StepContext, job: Job = job, rows: list[Tensor] = rows) -> dict[str, Tensor]:
            rows.append(torch.cat([at.keep(4, 0.5, "block"), at.keep(4, 0.5, "random")], 1))
            return {"near": job.module(batch.pixels).square().mean() + at.flip()}

        made.clear()
        fit(replace(job, loss=loss))
        assert len(made) == 2 * 3  # two masks, three steps
    assert torch.equal(torch.cat(seen[1]), torch.cat(seen[4]))


# ---------------------------------------------------------------- checkpoints


def test_a_finished_training_is_not_repeated(job_with: Callable[..., Job], tmp_path: Path) -> None:
    first = job_with(checkpoint=tmp_path / "train.ckpt")
    curve = fit(first)
    again = job_with(checkpoint=tmp_path / "train.ckpt", loss=lambda *_: pytest.fail("a step was taken"))
    assert fit(again) == curve
    assert equal(weights(first), weights(again))


@pytest.mark.parametrize("every_s", [0.0, 60.0])
@pytest.mark.parametrize("after", [1, 3, 5, 11])
def test_a_stopped_training_goes_on(
    job_with: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, every_s: float
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", every_s)
    whole = job_with()
    curve = fit(whole)
    interrupted(job_with(checkpoint=tmp_path / "train.ckpt"), after)
    job = job_with(checkpoint=tmp_path / "train.ckpt")
    assert fit(job) == curve  # also the means of the epoch that was broken off
    assert equal(weights(whole), weights(job))


@pytest.mark.parametrize("asked", [True, False])
def test_where_scoring_fails_the_epoch_is_kept(job_with: Callable[..., Job], tmp_path: Path, asked: bool) -> None:
    """A stop that ends the decoding processes may come while they decode images to judge by."""
    path = tmp_path / "train.ckpt"

    def score() -> float:
        if asked:
            signal.raise_signal(signal.SIGTERM)
        raise MachineError("a worker process died", expected="none that dies", fix="try again")

    with pytest.raises(KeyboardInterrupt if asked else MachineError):
        fit(job_with(checkpoint=path, validate=score))
    assert torch.load(path, weights_only=True)["done"] == 3
    whole, job = job_with(), job_with(checkpoint=path)
    assert fit(job) == fit(whole)
    assert equal(weights(whole), weights(job))


def test_where_another_process_has_no_images_all_end_with_the_step_saved(
    job_with: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter([False, False, True])  # before each of the first three steps
    monkeypatch.setattr(loop.ProcessGroup, "any", lambda *_: next(asked, False))
    with pytest.raises(MachineError, match="another process could not read its images"):
        fit(job_with(checkpoint=tmp_path / "train.ckpt"))
    assert torch.load(tmp_path / "train.ckpt", weights_only=True)["done"] == 2


SCRIPT = '''
"""Fine-tune a tiny ViT with everything on that draws random numbers; every step may be the last one."""

import os, signal, sys
from pathlib import Path

import torch

from edgemae.data.image_set import scan
from edgemae.train import loop
from edgemae.distill.stages import Images, finetune
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT, ViTShape
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_loading import load_plan


def run(folder, checkpoint, workers):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = ViTShape.uniform(image_px=32, patch_px=8, width=32, depth=2, heads=2)
    plan = load_plan(None, (), {
        "workers": workers, "finetune.epochs": 8, "finetune.batch": 8, "finetune.lr": 0.01, "finetune.mixup": 0.4,
        "finetune.drop_path": 0.2, "finetune.token_keep": 0.5,
    })
    images = scan(folder)
    teacher = Teacher(ViT(shape), PixelContract(image_px=32))
    return finetune(teacher, plan, Images(images.unlabelled(), images, images), checkpoint)


if __name__ == "__main__":
    loop.CHECKPOINT_EVERY_S = 0.0
    die_in_write = int(sys.argv[3])
    step, replace, writes = loop._Run._step, os.replace, 0

    def told(training, batch, number):
        print(number, flush=True)
        sys.stdin.readline()
        return step(training, batch, number)

    def dying(source, target):
        global writes
        writes += str(target).endswith(".ckpt")
        if writes and writes == die_in_write:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    loop._Run._step, os.replace = told, dying
    run(sys.argv[1], Path(sys.argv[2]), 1)
'''


def test_kill_9_at_any_moment_changes_nothing(picture_folder: Path, tmp_path: Path) -> None:
    script, checkpoint = tmp_path / "script.py", tmp_path / "train.ckpt"
    script.write_text(SCRIPT)
    spec = importlib.util.spec_from_file_location("script", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    whole, curve = module.run(picture_folder, None, 0)

    def start(die_in_write: int, stdin: int) -> subprocess.Popen[str]:
        command = [sys.executable, script, picture_folder, checkpoint, str(die_in_write)]
        where = os.environ | {"PYTHONPATH": str(Path(edgemae.__file__).parent.parent)}
        return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, text=True, env=where)

    chance = random.SystemRandom()
    with start(0, subprocess.PIPE) as process:  # killed from outside, at some moment of a step or of its checkpoint
        assert process.stdin is not None
        assert process.stdout is not None
        last = chance.randrange(2, 9)
        for number in range(last + 1):
            assert int(process.stdout.readline()) == number
            process.stdin.write("\n")
            process.stdin.flush()
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
    done = torch.load(checkpoint, weights_only=True)["done"]
    assert done in (last, last + 1)
    with start(3, subprocess.DEVNULL) as process:  # killed while the third checkpoint was being put in place
        assert process.stdout is not None
        assert [int(line) for line in process.stdout] == [done, done + 1, done + 2]
    assert process.returncode == -signal.SIGKILL
    assert torch.load(checkpoint, weights_only=True)["done"] == done + 2  # the last good one
    resumed, again = module.run(picture_folder, checkpoint, 0)
    assert again == curve
    assert equal(dict(resumed.vit.state_dict()), dict(whole.vit.state_dict()))
