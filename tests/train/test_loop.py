"""The training loop: what it logs, when it stops, and that a killed run ends as one that was not."""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import logging
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import edgemae
from edgemae.data.image_set import ImageSet
from edgemae.data.loader import Batch, Loader
from edgemae.model.vit import ViT, ViTShape
from edgemae.spec.errors import CheckpointError, DataError, InputError, MachineError
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_schema import ScalePlan
from edgemae.terminal import progress
from edgemae.train import divergence, loop, step_context
from edgemae.train.distributed import bf16_is_fast
from edgemae.train.job import Job
from edgemae.train.loop import fit
from edgemae.train.schedule import param_groups
from edgemae.train.step_context import StepContext

PIXEL = PixelContract(image_px=8)


class Toy(nn.Module):
    """A linear map of the mean colour: fast, and different after every step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.linear(pixels.mean(dim=(2, 3)))


@pytest.fixture
def job_with(pictures: ImageSet) -> Callable[..., Job]:
    """Return a maker of jobs of 3 steps an epoch."""

    def make(**changes: Any) -> Job:
        toy = changes.pop("module", None) or Toy()

        def loss(batch: Batch, context: StepContext) -> dict[str, Tensor]:
            out = toy(batch.pixels)
            return {"near": out.square().mean(), "noise": 0.1 * context.flip() + 0 * out.sum()}

        settings: dict[str, Any] = {
            "name": "toy", "module": toy, "groups": [{"params": list(toy.parameters()), "scale": 1.0}], "loss": loss,
            "loader": Loader(pictures, PIXEL, 8), "epochs": 4, "lr": 3.2, "warmup_fraction": 0.25, "seed": 0,
            "bf16": False,
        }  # fmt: skip
        return Job(**(settings | changes))

    return make


def weights(job: Job) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in job.module.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


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


def test_a_loss_that_diverges_stops(
    job_with: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence, "WINDOW", 4)
    job = job_with(epochs=10, checkpoint=tmp_path / "train.ckpt")

    def loss(batch: Batch, context: StepContext) -> dict[str, Tensor]:
        return {"near": 0 * job.module(batch.pixels).sum() + (1.0 if context.step < bad else 9.0)}

    bad = 17
    for _ in range(2):  # the second time it goes on from there, and comes to the same end
        with pytest.raises(InputError, match="the loss has diverged: 7 over the last 4 steps, 1 at its best") as caught:
            fit(replace(job, loss=loss))
        assert "at step 19" in caught.value.what  # of a window of 1 9 9 9
        kept = f"the last good checkpoint, of step 15, is kept at {tmp_path / 'train.ckpt'}"
        assert kept in caught.value.fix
        assert torch.load(tmp_path / "train.ckpt", weights_only=True)["done"] == 15  # and not the epoch's, of step 18
        assert not (tmp_path / "train.older.ckpt").exists()
    bad = 99
    whole = replace(job_with(epochs=10), loss=loss)
    assert fit(replace(job, loss=loss)) == fit(whole)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["train.ckpt", "train.events.jsonl"]


def test_a_term_that_hardly_counts_is_told_once_and_kept(
    job_with: Callable[..., Job], caplog: pytest.LogCaptureFixture
) -> None:
    job = job_with()

    def loss(batch: Batch, context: StepContext) -> dict[str, Tensor]:
        total = job.module(batch.pixels).square().mean() + 1.0
        return {"large": total, "tiny": total * (0.001 if context.step < 6 else 0.1)}

    curve = fit(replace(job, loss=loss))
    assert caplog.text.count("term 'tiny' was 0.1 % of the loss") == 1
    assert [row.get("small tiny") for row in curve] == [pytest.approx(0.001, rel=0.01)] * 2 + [None] * 2


def test_a_term_of_nothing_is_told_unless_it_was_switched_off(
    job_with: Callable[..., Job], caplog: pytest.LogCaptureFixture
) -> None:
    """Terms of sub-networks are not looked at, nor do they make the largest one's own terms a smaller share."""
    job = job_with(off=("silent", "drawn"), epochs=2)

    def loss(batch: Batch, context: StepContext) -> dict[str, Tensor]:
        total = job.module(batch.pixels).square().mean() + 1.0
        terms = {"large": total, "two percent": 0.02 * total, "empty": 0 * total, "silent": 0 * total}
        return terms | {"drawn large": 3 * total, "drawn empty": 0 * total}

    curve = fit(replace(job, loss=loss))
    assert caplog.text.count("term 'empty' was 0 % of the loss") == 1
    assert not any(f"'{name}'" in caplog.text for name in ("silent", "drawn empty", "two percent"))
    assert [row["small empty"] for row in curve] == [0.0, 0.0]


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


# ---------------------------------------------------------------- averaged weights


def test_the_average_is_scored_and_returned(job_with: Callable[..., Job]) -> None:
    seen: list[Tensor] = []
    steps: list[Tensor] = []
    job = job_with(ema=0.5, epochs=1)
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(job.module.linear.weight.detach().clone()))  # type: ignore[union-attr]
    first = weights(job)["linear.weight"]
    fit(replace(job, validate=lambda: (seen.append(weights(job)["linear.weight"]), 0.5)[1]))
    hook.remove()
    expected = first
    for step, weight in enumerate(steps):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(weights(job)["linear.weight"], expected)
    torch.testing.assert_close(seen[-1], expected)
    assert not torch.equal(steps[-1], expected)


@pytest.mark.parametrize("after", [2, 7])
def test_a_stopped_training_goes_on_with_its_average(
    job_with: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    whole = job_with(ema=0.9)
    fit(whole)
    interrupted(job_with(checkpoint=tmp_path / "train.ckpt", ema=0.9), after)
    job = job_with(checkpoint=tmp_path / "train.ckpt", ema=0.9)
    fit(job)
    assert equal(weights(whole), weights(job))


# ---------------------------------------------------------------- events


def test_events_lie_beside_the_checkpoint(job_with: Callable[..., Job], tmp_path: Path) -> None:
    fit(job_with(checkpoint=tmp_path / "train.ckpt", validate=lambda: 0.25))
    lines = [json.loads(line) for line in (tmp_path / "train.events.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines if line["event"] != "step"] == ["start", *["epoch"] * 4, "end"]
    step = next(line for line in lines if line["event"] == "step")
    assert {"near", "noise", "loss", "rate", "gradient_norm", "images_s", "data_wait_pct"} <= set(step)
    assert [line["validation"] for line in lines if line["event"] == "epoch"] == [0.25] * 4


def test_a_lost_process_is_an_event_in_words(job_with: Callable[..., Job], tmp_path: Path) -> None:
    def loss(batch: Batch, now: StepContext) -> dict[str, Tensor]:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:7")

    with pytest.raises(MachineError):
        fit(job_with(checkpoint=tmp_path / "train.ckpt", loss=loss))
    last = json.loads((tmp_path / "train.events.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "stop"
    assert last["why"].startswith("toy: another process of this training is gone")


# ---------------------------------------------------------------- checkpoints


def test_a_finished_training_is_not_repeated(job_with: Callable[..., Job], tmp_path: Path) -> None:
    first = job_with(checkpoint=tmp_path / "train.ckpt")
    curve = fit(first)
    again = job_with(checkpoint=tmp_path / "train.ckpt", loss=lambda *_: pytest.fail("a step was taken"))
    assert fit(again) == curve
    assert equal(weights(first), weights(again))


def interrupted(job: Job, after: int) -> None:
    """Run a job that is stopped after some steps."""
    steps: list[int] = []

    def loss(batch: Batch, context: StepContext) -> dict[str, Tensor]:
        if len(steps) == after:
            raise KeyboardInterrupt
        steps.append(1)
        return job.loss(batch, context)

    with pytest.raises(KeyboardInterrupt):
        fit(replace(job, loss=loss))


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_saves_the_step_first(
    job_with: Callable[..., Job], tmp_path: Path, caplog: pytest.LogCaptureFixture, number: signal.Signals
) -> None:
    whole, path = job_with(), tmp_path / "train.ckpt"
    curve = fit(whole)
    before = signal.getsignal(number)
    job = job_with(checkpoint=path)

    def loss(batch: Batch, context: StepContext) -> dict[str, Tensor]:
        if context.step == 1:  # in the middle of the first epoch, whose end would be the first checkpoint
            signal.raise_signal(number)
        return job.loss(batch, context)

    with pytest.raises(KeyboardInterrupt):
        fit(replace(job, loss=loss))
    assert f"toy: {number.name}; stopping after this step" in caplog.text
    assert signal.getsignal(number) is before
    assert torch.load(path, weights_only=True)["done"] == 2
    last = json.loads((tmp_path / "train.events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["step"], last["why"]) == ("stop", 2, "KeyboardInterrupt")
    again = job_with(checkpoint=path)
    assert fit(again) == curve
    assert equal(weights(whole), weights(again))


@pytest.mark.parametrize("at", [1, 2, 11])  # in an epoch, at its end, and after the last step
def test_it_ends_with_another_process_that_was_asked(
    job_with: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The other one's word comes along with the losses, so that both leave at the same step."""
    job, mean, steps = job_with(checkpoint=tmp_path / "train.ckpt"), loop.ProcessGroup.mean, [0]

    def shared(processes: loop.ProcessGroup, values: Tensor) -> Tensor:
        if values.dim():  # the losses of a step
            steps[0] += 1
            return mean(processes, values) + (torch.arange(len(values)) == len(values) - 1) * 0.5 * (steps[0] > at)
        return mean(processes, values)

    monkeypatch.setattr(loop.ProcessGroup, "mean", shared)
    with pytest.raises(KeyboardInterrupt):
        fit(job)
    assert torch.load(tmp_path / "train.ckpt", weights_only=True)["done"] == at + 1


def test_asked_in_the_very_last_step_it_does_not_go_on_to_the_next_training(
    job_with: Callable[..., Job], tmp_path: Path
) -> None:
    job = job_with(checkpoint=tmp_path / "train.ckpt")
    hook = register_optimizer_step_post_hook(
        lambda optimizer, *_: signal.raise_signal(signal.SIGTERM) if rates.append(1) or len(rates) == 12 else None
    )
    rates: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        fit(job)
    hook.remove()
    assert torch.load(tmp_path / "train.ckpt", weights_only=True)["done"] == 12


@pytest.mark.parametrize("asked", [True, False])
def test_a_stop_that_ends_the_decoding_processes_too_loses_no_step(
    job_with: Callable[..., Job], pictures: ImageSet, tmp_path: Path, asked: bool
) -> None:
    """A service manager, a scheduler or a launcher signals all of them; memory running out takes one of them."""
    path, rates = tmp_path / "train.ckpt", list[int]()

    def end(*_: Any) -> None:
        rates.append(1)
        if len(rates) == 2:  # in an epoch, and after the step has looked whether it was asked
            if asked:
                signal.raise_signal(signal.SIGTERM)
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, signal.SIGTERM)
                worker.join()

    hook = register_optimizer_step_post_hook(end)
    with pytest.raises(KeyboardInterrupt if asked else MachineError):
        fit(job_with(checkpoint=path, loader=Loader(pictures, PIXEL, 8, workers=1), epochs=20))
    hook.remove()
    assert 2 <= torch.load(path, weights_only=True)["done"] == len(rates)


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


def test_asked_twice_it_ends_at_once(job_with: Callable[..., Job], tmp_path: Path) -> None:
    job = job_with(checkpoint=tmp_path / "train.ckpt")

    def loss(batch: Batch, context: StepContext) -> dict[str, Tensor]:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("it went on")

    with pytest.raises(KeyboardInterrupt):
        fit(replace(job, loss=loss))
    assert not (tmp_path / "train.ckpt").exists()


def spoilt(data: bytes, how: str) -> bytes:
    if how == "flipped":
        weight = torch.load(io.BytesIO(data), weights_only=True)["module"]["linear.weight"]
        at = data.index(weight.numpy().tobytes())
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    return {"truncated": data[: len(data) // 2], "empty": b"", "text": b"epoch 3\n", "other pickle": other_pickle()}[
        how
    ]


def other_pickle() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weights": random.Random(0)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "text", "other pickle"])
def test_a_damaged_checkpoint_is_ignored_aloud(
    job_with: Callable[..., Job], tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    path = tmp_path / "train.ckpt"
    interrupted(job_with(checkpoint=path), 5)
    path.write_bytes(spoilt(path.read_bytes(), how))
    job, whole = job_with(checkpoint=path), job_with()
    assert fit(job) == fit(whole)
    assert equal(weights(whole), weights(job))
    assert f"checkpoint '{path}' is damaged" in caplog.text
    assert "starts anew" in caplog.text


def test_behind_a_damaged_checkpoint_the_older_one_is_taken(
    job_with: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(divergence, "WINDOW", 1)  # a step is known to be in order at once
    caplog.set_level(logging.INFO)
    path, whole = tmp_path / "train.ckpt", job_with()
    interrupted(job_with(checkpoint=path), 7)
    path.write_bytes(spoilt(path.read_bytes(), "truncated"))
    interrupted(job_with(checkpoint=path), 0)  # killed once more, before there is another
    job = job_with(checkpoint=path)
    assert fit(job) == fit(whole)
    assert equal(weights(whole), weights(job))
    assert f"checkpoint '{path}' is damaged" in caplog.text
    assert caplog.text.count("going on after step 6") == 2
    assert "starts anew" not in caplog.text
    assert sorted(file.name for file in tmp_path.glob("*.ckpt")) == ["train.ckpt"]


def test_a_loss_that_goes_wrong_behind_a_damaged_checkpoint_leaves_the_older_one(
    job_with: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(divergence, "WINDOW", 1)
    path = tmp_path / "train.ckpt"
    interrupted(job_with(checkpoint=path), 7)
    path.write_bytes(b"")
    nothing = job_with(checkpoint=path)
    with pytest.raises(InputError, match="became nan") as caught:
        fit(replace(nothing, loss=lambda batch, context: {"near": math.nan * nothing.module(batch.pixels).sum()}))
    assert f"the last good checkpoint, of step 6, is kept at {path}" in caught.value.fix
    assert torch.load(path, weights_only=True)["done"] == 6


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epochs": 5}, "epochs 4, not 5"),
        ({"seed": 3}, "seed 0, not 3"),
        ({"name": "other"}, "name 'toy', not 'other'"),
        ({"checkpoint_identity": {"mixup": 0.8}}, "mixup None, not 0.8"),
    ],
)
def test_the_checkpoint_of_another_training_is_refused(
    job_with: Callable[..., Job], tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    path = tmp_path / "train.ckpt"
    fit(job_with(checkpoint=path))
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="another training") as caught:
        fit(job_with(checkpoint=path, **changes))
    assert named in caught.value.what
    assert path.read_bytes() == before


def test_a_checkpoint_that_does_not_say_whose_it_is_is_refused(job_with: Callable[..., Job], tmp_path: Path) -> None:
    path = tmp_path / "train.ckpt"
    fit(job_with(checkpoint=path))
    state = torch.load(path, weights_only=True)
    del state["job"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="another training"):
        fit(job_with(checkpoint=path))


def test_a_checkpoint_for_other_images_is_refused(
    job_with: Callable[..., Job], tmp_path: Path, pictures: ImageSet
) -> None:
    fit(job_with(checkpoint=tmp_path / "train.ckpt"))
    fewer = Loader(pictures.pick(range(23)), PIXEL, 8)
    with pytest.raises(CheckpointError, match="images '"):
        fit(job_with(checkpoint=tmp_path / "train.ckpt", loader=fewer))


def test_files_that_were_renamed_are_other_images_to_go_on_with(
    job_with: Callable[..., Job], tmp_path: Path, pictures: ImageSet
) -> None:
    """Which image a step sees goes by its place in the folder."""
    interrupted(job_with(checkpoint=tmp_path / "train.ckpt"), after=3)
    renamed = pictures.pick([*range(12, 24), *range(12)])
    assert renamed.fingerprint == pictures.fingerprint
    with pytest.raises(CheckpointError, match="order of images '"):
        fit(job_with(checkpoint=tmp_path / "train.ckpt", loader=Loader(renamed, PIXEL, 8)))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch looks, and hides its own warning where it can
def test_compiled_blocks_train_as_others(pictures: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as the compiler has traced them: to make machine code of them would take minutes."""
    traced = []

    def backend(graph: Any, inputs: list[Tensor]) -> Any:
        traced.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    found = []
    for on in (False, True):
        torch.manual_seed(0)
        vit = ViT(ViTShape.uniform(image_px=16, patch_px=8, width=16, depth=2, heads=2))

        def loss(batch: Batch, context: StepContext, vit: ViT = vit) -> dict[str, Tensor]:
            return {"near": vit(batch.pixels, drop=context.drop_path(2, 0.1))[1].square().mean()}

        fit(Job(
            name="compiled", module=vit, groups=param_groups(vit, 0.05), loss=loss, epochs=2, lr=0.01, seed=0,
            loader=Loader(pictures, PixelContract(image_px=16), 8), warmup_fraction=0.1, bf16=False,
            scale=ScalePlan(compile=on),
        ))  # fmt: skip
        assert bool(traced) is on
        found.append(vit.state_dict())
        assert all(block._compiled_call_impl is None for block in vit.blocks)  # what is returned is plain again
    assert all((found[0][name] - value).abs().max() < 1e-6 for name, value in found[1].items())


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
