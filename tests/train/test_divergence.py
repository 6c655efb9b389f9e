"""Losses that grow, and terms that do not count."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgemae.data.loader import Batch
from edgemae.spec.errors import InputError
from edgemae.train import divergence
from edgemae.train.divergence import Divergence, log_small_terms, small_terms
from edgemae.train.job import Job
from edgemae.train.loop import fit
from edgemae.train.step_context import StepContext


def verdicts(losses: list[float]) -> list[str]:
    watch = Divergence(len(losses))
    return [messages for messages in map(watch.check, losses) if messages]


def test_a_loss_that_leaves_is_message() -> None:
    falling = [2.3 - 0.01 * i for i in range(200)]
    assert not verdicts(falling)
    (messages,) = verdicts([*falling, *[9.0] * 50])
    assert "diverged: 9 over the last 50 steps, 0.555 at its best, 2.055 in the beginning" in messages


def test_what_is_known_goes_into_a_checkpoint() -> None:
    losses = [*[2.0] * 230, *[0.1] * 70, *[0.5] * 100, *[9.0] * 60]
    whole, first = Divergence(460), Divergence(460)
    messages = [whole.check(loss) for loss in losses]
    for loss in losses[:260]:
        first.check(loss)
    again = Divergence(460)
    again.state = first.state
    assert [again.check(loss) for loss in losses[260:]] == messages[260:]
    assert "diverged" in messages[449]


def test_steps_are_in_order_until_the_last_ones_have_grown() -> None:
    watch = Divergence(1000)  # the first 200 only say where it began
    for loss in [2.0] * 320:
        assert not watch.check(loss)
    assert watch.state["proved"] == 300
    assert watch.proved(320) == 320
    for loss in [30.0] * 20:
        assert not watch.check(loss)
    assert watch.proved(340) == 300


@pytest.mark.parametrize(
    "losses",
    [
        [2.3 * math.exp(-i / 50) + 0.3 * (i % 7 == 0) for i in range(1000)],  # far below its start, and uneven
        [1.0] * 200 + [0.1] * 100 + [1.2] * 100,  # regained
        [1.0] * 260 + [40.0] + [1.0] * 100,  # one hard batch
        [0.0] * 400,
        [*[3e-4] * 50, *[1.6e-3] * 50, *[1.9e-3] * 100, *[1.8e-3] * 200],  # healing begins next to nothing
    ],
    ids=["noisy", "back to its start", "one batch", "nothing", "healing"],
)
def test_what_is_no_divergence(losses: list[float]) -> None:
    assert not verdicts(losses)


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([*[2.3] * 50, *[0.3] * 450, *[2.3] * 500], [749]),  # dead: it gives the same answer to everything
        ([*[2.3] * 50, *([0.3] * 450 + [2.3] * 300) * 2], [749]),  # and a second time
        ([*[2.3] * 50, *[0.3] * 450, *[2.3] * 200, *[0.3] * 300], []),  # regained
        ([*[2.3] * 50, *[1.3] * 450, *[2.3] * 500], []),  # it had not learnt much
        ([*[3e-4] * 50, *[1.6e-3] * 950], []),  # healing begins next to nothing
    ],
    ids=["dead", "twice", "regained", "little", "healing"],
)
def test_a_loss_that_is_back_where_it_began_is_told_of_once(losses: list[float], told: list[int]) -> None:
    watch, found = Divergence(len(losses)), []
    for step, loss in enumerate(losses):
        assert not watch.check(loss)
        if messages := watch.forgotten():
            found.append(step)
            assert "has not been below 0.9 times where it began, 2.3, after 0.3 at its best" in messages
    assert found == told


def test_terms_under_one_percent() -> None:
    row = {"pixel": 0.9, "relation": 0.005, "negative": -0.2, "loss": 0.705}
    assert small_terms(row, ["pixel", "relation", "negative"]) == {"relation": pytest.approx(0.005 / 1.105)}
    assert small_terms({"a": 0.0, "b": 0.0}, ["a", "b"]) == {"a": 0.0, "b": 0.0}  # nothing is learnt at all
    assert small_terms({"a": 1.0, "b": 0.0}, ["a", "b"]) == {"b": 0.0}
    assert small_terms({"a": 0.99, "b": 0.0101}, ["a", "b"]) == {}


def test_a_term_that_hardly_counts_is_named(caplog: pytest.LogCaptureFixture) -> None:
    log_small_terms("distill (relation)", 3, {"relation": 0.0042})
    assert "term 'relation' was 0.42 % of the loss in epoch 3" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


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
