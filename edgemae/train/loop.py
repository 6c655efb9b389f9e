"""The one training loop: deterministic, resumable to the exact step, and honest about waiting for data.

Everything random in a step derives from (seed, step): the order of images and their views in `edgemae.data.loader`, and
the generator of a `StepContext`. So a run that was killed and resumed ends with the weights of one that was not, and a
step that is divided among processes or parts is the same step.

What `fit` does, without processes, clean-up and what goes wrong::

    go on from the newest valid checkpoint, or begin at step 0
    for step in range(done, epochs * steps an epoch):
        batch = next batch of this process             # the order and the views of (seed, step)
        set the learning rate                          # linear warm-up, then half a cosine
        random = StepRandom(seed, step)                # every part of the step reads the same numbers
        for rows in parts:                             # scale.accumulate parts of the batch
            terms = job.loss(batch[rows], StepContext(rows, random, step))
            backward(sum(terms) / number of parts)     # the last part averages gradients over all processes
        stop unless loss and gradient are finite       # InputError, naming the images of the batch
        clip the gradient, take an AdamW step, update the moving average of the weights
        stop if the mean loss of 50 steps has grown    # InputError; a checkpoint from before that is kept
        write the figures of the step into the event log
        if an epoch ends:
            add a row of mean losses to the curve      # every tenth with `job.validate()`
        if an epoch ends, a minute is over, or somebody asked to end:
            save a checkpoint                          # the step that is under way is always saved
        if somebody asked to end (Ctrl-C, SIGTERM):
            raise KeyboardInterrupt
    put the moving average into the module; remove the older checkpoint
    return the curve
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgemae.data.loader import Batch
from edgemae.spec.errors import DataError, InputError, MachineError, StorageError
from edgemae.terminal.progress import Progress, progress
from edgemae.train.checkpoints import Checkpoints
from edgemae.train.distributed import ProcessGroup, bf16_is_fast, lost_process
from edgemae.train.divergence import Divergence, log_small_terms, small_terms
from edgemae.train.ema import ExponentialMovingAverage
from edgemae.train.event_log import Events
from edgemae.train.interrupt import asked_to_end
from edgemae.train.job import Curve, Job
from edgemae.train.schedule import hold_key_biases, rate_at
from edgemae.train.step_context import StepContext, StepRandom

log = logging.getLogger("edgemae")
CHECKPOINT_EVERY_S = 60.0


def fit(job: Job) -> Curve:
    """Train `job.module` in place and return one row of mean losses an epoch.

    Resumes from `job.checkpoint` when that exists and writes it at every epoch and at least once a minute, with events
    beside it. Under `torchrun` every process calls this with the same job and ends with the same weights.

    Ctrl-C and SIGTERM end it after the step that is under way, with that step saved, as a KeyboardInterrupt.
    Raises InputError on a loss or gradient that is not finite, or a loss that has diverged, naming the step, the images
    of the batch and the last good checkpoint; DataError for an image that cannot be read any more; CheckpointError for
    another training's checkpoint; MachineError when another process is lost.
    """
    if len(job.loader.images) < job.loader.batch:
        raise DataError(
            f"{len(job.loader.images)} images are fewer than one batch of {job.loader.batch}",
            expected="at least one full batch",
            fix="add images or lower the batch size in the plan",
        )
    run = _Run(job)
    with progress(job.name, job.steps, run.done, shown=run.processes.first) as shown:
        try:
            with lost_process(job.name), asked_to_end(job.name) as asked:
                run.train(shown, asked)
        except BaseException as error:
            run.events.write("stop", step=run.done, why=str(error) or type(error).__name__, **run.about_stop)
            raise
        finally:
            run.events.close()
    return run.curve


class _Step(nn.Module):
    """The loss as a module's forward, which is what averages gradients over processes."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.trained, self.loss = job.module, job.loss

    def forward(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        return self.loss(batch, context)


class _Run:
    """A training under way: what changes from step to step, and how one step is taken."""

    def __init__(self, job: Job) -> None:
        self.job, self.processes = job, ProcessGroup(all_used=job.all_used)
        self.parts = self.processes.rows(job.loader.batch, job.scale.accumulate)
        self.loader = replace(job.loader, rank=self.processes.rank, world=self.processes.world)
        self.module = self.processes.prepare(_Step(job))
        self.held = hold_key_biases(job.module)
        # Fused: 5.4 instead of 17.2 ms a step for ViT-Tiny on one core.
        self.optimizer = torch.optim.AdamW(job.groups, lr=0.0, betas=job.betas, fused=True)
        self.average = ExponentialMovingAverage(job.module, job.ema) if job.ema > 0 else None
        self.divergence = Divergence(job.steps)
        self.done, self.curve, self.sums = 0, Curve(), dict[str, float]()
        self.asked: Callable[[], bool] = lambda: False  # whether this process was asked to end
        self.ending = False  # whether any of them was, by the last step
        self.about_stop: dict[str, Any] = {}
        self.checkpoints = Checkpoints(job.checkpoint, job.identity)
        self._resume()
        self.events = Events(
            job.checkpoint if self.processes.first else None, self.done, job.scale.tensorboard, job=job.name,
            steps=job.steps, processes=self.processes.world,
        )  # fmt: skip

    def train(self, shown: Progress, asked: Callable[[], bool]) -> None:
        """Take all steps that are left. Raises KeyboardInterrupt, with the step saved, once `asked` to end."""
        job, self.asked = self.job, asked
        waited, saved, started = 0.0, time.monotonic(), time.monotonic()
        if job.scale.compile and self.processes.first:
            log.info("%s: compiling; the first steps may take minutes", job.name)
        job.switch(train=True)
        with closing(self.loader.batches(self.done, job.steps)) as batches:
            for step in range(self.done, job.steps):
                before = time.monotonic()
                batch = self._next(batches)
                waited += time.monotonic() - before
                terms, norm = self._step(batch, step)
                self.sums = {name: self.sums.get(name, 0.0) + value for name, value in terms.items()}
                self.done = step + 1
                shown.advance(
                    **terms, images_s=shown.rate * job.loader.batch,
                    data_wait_pct=100 * waited / (time.monotonic() - started),
                )  # fmt: skip
                self.events.step(
                    step=self.done, rate=self.optimizer.param_groups[0]["lr"], gradient_norm=norm, **shown.figures
                )
                ended = self.done % job.loader.steps == 0
                if ended:
                    self._end_if(self._epoch())
                    # No later step may come to tell the others.
                    self.ending = self.processes.any(self.ending or asked())
                if ended or self.ending or time.monotonic() - saved > CHECKPOINT_EVERY_S:
                    self._save()
                    saved = time.monotonic()
                if self.ending:
                    self.processes.wait()  # a launcher ends all when one has ended, and the first may be writing still
                    raise KeyboardInterrupt
        self._end()

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """Return the next batch; where one process gets none, all end."""
        batch, failed = None, None
        try:
            batch = next(batches)
        except (DataError, MachineError) as error:
            failed = error
        self._end_if(failed)
        assert batch is not None
        return batch

    def _end_if(self, failed: Exception | None) -> None:
        """End all processes where the images of one have failed, with what was learnt saved first.

        A stop that is sent to all processes of a group or a service ends those that decode, and is no error then.
        """
        if not self.processes.any(failed is not None):
            return
        try:
            if self.done:
                self._save()
        except StorageError as error:
            log.error("%s: the last step is not saved: %s", self.job.name, error)
        asked = self.processes.any(self.asked())  # they wait for the first here, which may be writing still
        if asked:
            raise KeyboardInterrupt from failed
        raise failed or MachineError(
            f"{self.job.name}: another process could not read its images",
            expected="images that all processes can read",
            fix="its own message says what is wrong; the last step is saved, and the same command goes on there",
        )

    def _step(self, batch: Batch, step: int) -> tuple[dict[str, float], float]:
        """Take one optimiser step; return every term with their sum, and the gradient's norm."""
        job, values = self.job, dict[str, Tensor]()
        rate = rate_at(step, job.steps, job.lr * job.loader.batch / 256, job.warmup_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.zero_grad(set_to_none=True)
        share, random = 1 / len(self.parts), StepRandom(torch.Generator().manual_seed(job.seed * 1_000_003 + step))
        for number, rows in enumerate(self.parts):
            last = number == len(self.parts) - 1
            with nullcontext() if last else self.processes.alone(self.module):
                terms = self._terms(batch, rows, step, random)
                (torch.stack([t.float() for t in terms.values()]).sum() * share).backward()
            for name, term in terms.items():
                values[name] = values.get(name, 0.0) + term.detach().float() * share
        # The flag goes along, so that all processes end at one step.
        flag = torch.tensor(float(self.asked()), device=self.processes.device)
        *means, ending = self.processes.mean(torch.stack([*values.values(), flag])).tolist()
        self.ending = ending > 0
        found = dict(zip(values, means, strict=True))
        found["loss"] = sum(means)
        self._refuse(batch, step, "loss", found["loss"], found)
        norm = float(nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], job.clip))
        # Before the weights take it in: else a checkpoint of them would be the last one.
        self._refuse(batch, step, "gradient's norm", norm, found)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(step)
        if wrong := self.divergence.check(found["loss"]):
            self._stop(batch, step, wrong, found, self.divergence.state["proved"])
        if self.processes.first and (back := self.divergence.forgotten()):
            log.warning("%s: %s by step %d: lower the lr of this stage in the plan, %g", job.name, back, step, job.lr)
        return found, norm

    def _terms(self, batch: Batch, rows: slice, step: int, random: StepRandom) -> dict[str, Tensor]:
        """Return the loss terms of some rows of the step's batch, of which this process holds `batch`."""
        job, device = self.job, self.processes.device
        first = rows.start - self.parts[0].start
        mine = batch.part(slice(first, first + rows.stop - rows.start), device)
        context = StepContext(job.loader.batch, rows, random.again(), step, job.steps, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=job.bf16 and bf16_is_fast(device)):
            terms: dict[str, Tensor] = self.module(mine, context)
        return terms

    # ------------------------------------------------------------ stops

    def _refuse(self, batch: Batch, step: int, what: str, value: float, terms: dict[str, float]) -> None:
        if not math.isfinite(value):
            self._stop(batch, step, f"the {what} became {value}", terms, self.divergence.proved(self.done))

    def _stop(self, batch: Batch, step: int, why: str, terms: dict[str, float], proved: int) -> None:
        """Raise InputError on every process, each naming the images of all; every process must come here.

        The first `proved` steps are in order: a checkpoint from behind them is replaced by the older one.
        """
        job = self.job
        files = self.processes.gather([job.loader.images.paths[i] for i in batch.indices.tolist()])
        kept = self.processes.agree(self.checkpoints.fall_back(proved) if self.processes.first else "")
        self.about_stop = {"files": files}
        where = f", all {len(files)} in {self.events.place}" if self.events.place else ""
        raise InputError(
            f"{job.name}: {why} at step {step} (terms {terms}; batch begins with {files[:4]}{where})",
            expected="finite numbers that do not grow",
            fix=f"lower the lr of this stage in the plan, {job.lr:g}, with which it begins anew{kept}",
        )

    # ------------------------------------------------------------ epochs and checkpoints

    def _epoch(self) -> Exception | None:
        """Close an epoch: mean losses, terms that hardly count, a score after every tenth; return why it has none."""
        job, epoch, failed = self.job, self.done // self.job.loader.steps, None
        row = {"epoch": float(epoch)} | {name: value / job.loader.steps for name, value in self.sums.items()}
        small = small_terms(row, [name for name in self.sums if name.split()[0] not in ("loss", *job.off)])
        logged = {name for line in self.curve for name in line if name.startswith("small ")}
        if self.processes.first:
            log_small_terms(
                job.name, epoch, {name: share for name, share in small.items() if f"small {name}" not in logged}
            )
        row |= {f"small {name}": share for name, share in small.items()}
        if job.validate is not None and (epoch == job.epochs or epoch % max(1, job.epochs // 10) == 0):
            try:
                with self.average.swapped() if self.average is not None else nullcontext():
                    row["validation"] = job.validate()
            except (DataError, MachineError) as error:
                failed = error
            job.switch(train=True)
        self.curve.append(row)
        self.sums = {}
        self.events.write("epoch", step=self.done, **row)
        return failed

    def _end(self) -> None:
        job = self.job
        if self.average is not None:
            self.average.settle()
        job.switch(train=False)
        for hook in self.held:
            hook.remove()
        job.module.zero_grad()  # a returned model holds no gradients, which are as large as itself
        job.module.to("cpu")
        self.processes.wait()
        if self.processes.first:
            self.checkpoints.finish()
        self.events.write("end", step=self.done)

    def _save(self) -> None:
        if self.processes.first:
            self.checkpoints.save(self.done, self.divergence.state["proved"], {
                "module": self.job.module.state_dict(), "optimizer": self.optimizer.state_dict(),
                "curve": self.curve, "sums": self.sums, "average": self.average.values if self.average else {},
                "divergence": self.divergence.state,
            })  # fmt: skip

    def _resume(self) -> None:
        """Go on from the checkpoint, when there is a valid one."""
        state = self.checkpoints.restore()
        found = self.processes.gather([state["done"] if state else 0])  # and none writes while another still reads
        if len(set(found)) > 1:
            raise MachineError(
                f"{self.job.name}: the processes found different checkpoints at '{self.job.checkpoint}': steps {found}",
                expected="an output folder that all processes share",
                fix="put --output on a disk that every node sees",
            )
        if state is None:
            return
        self.job.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load(state["average"])
        self.done, self.curve, self.sums = state["done"], state["curve"], state["sums"]
        seen = state["divergence"]
        self.divergence.state |= {"start": seen["first"]} | seen
        if self.processes.first:
            log.info("%s: going on after step %d", self.job.name, self.done)
