"""The processes of one training: alone, or many under `torchrun` or `accelerate launch`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from edgemae.spec.errors import EdgemaeError, MachineError, PlanError

log = logging.getLogger("edgemae")
T = TypeVar("T")


class ProcessGroup:
    """Know which of how many processes this is, and exchange what they must agree on.

    Every process goes through the same code with the same seed; the first one writes files and talks.
    """

    def __init__(self, *, all_used: bool = True) -> None:
        threads = torch.get_num_threads()
        # Otherwise parameters that a step does not touch are looked for in every step, which costs a walk of the graph.
        unused = DistributedDataParallelKwargs(find_unused_parameters=not all_used)
        # The others wait while the first scores a model or indexes shards; one that is lost is noticed at once anyhow.
        patient = InitProcessGroupKwargs(timeout=timedelta(hours=12))
        self._accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=[unused, patient]
        )  # precision is the plan's and not that of `accelerate config`
        _refuse_wrapping(self._accelerator.distributed_type.name)
        torch.set_num_threads(threads)  # accelerate sets its own guess on processors
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world: int = self._accelerator.num_processes
        if self.world == 1 and asked_for_more(os.environ):
            _log_alone()

    @property
    def first(self) -> bool:
        return self.rank == 0

    def prepare(self, module: nn.Module) -> nn.Module:
        """Return the module on this process's device, its gradients averaged over all processes."""
        prepared: nn.Module = self._accelerator.prepare_model(module)
        return prepared

    def alone(self, module: nn.Module) -> Any:
        """Return a context in which `backward` keeps its gradients to this process."""
        return self._accelerator.no_sync(module)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        if self.world == 1:
            return values
        reduced: Tensor = self._accelerator.reduce(values, "mean")
        return reduced

    def any(self, flag: bool) -> bool:
        """Tell whether a flag is set in any process."""
        return flag if self.world == 1 else float(self.mean(torch.tensor(float(flag), device=self.device))) > 0

    def gather(self, values: list[Any]) -> list[Any]:
        """Return the lists of all processes as one."""
        return list(gather_object(values)) if self.world > 1 else values

    def agree(self, value: Any) -> Any:
        """Return the first process's value in all of them."""
        if self.world == 1:
            return value
        (agreed,) = broadcast_object_list([value], from_process=0)
        return agreed

    def from_first(self, make: Callable[[], T]) -> T:
        """Return in all processes what the first one makes; what it refuses is raised in all."""
        if self.world == 1:
            return make()
        result: T | None = None
        refused: EdgemaeError | None = None
        if self.first:
            try:
                result = make()
            except EdgemaeError as error:
                refused = error
        result, refused = self.agree((result, refused))
        if refused is not None:
            raise refused
        return cast(T, result)

    def wait(self) -> None:
        """Wait until all processes are here."""
        self._accelerator.wait_for_everyone()

    def fitting(self, batch: int, images: int, parts: int) -> int:
        """Return the batch, or as many of the images as divide among all processes and parts where they are fewer."""
        pieces = self.world * parts
        return batch if batch <= images else images // (2 * pieces) * 2 * pieces if pieces > 1 else images

    def rows(self, batch: int, parts: int, name: str = "a batch") -> list[slice]:
        """Return the rows of a batch that this process sees, one slice for each of `parts`.

        Raises PlanError when the batch does not divide evenly. A part holds an even number of images, because mixing
        pairs each image with its neighbour.
        """
        pieces = self.world * parts
        if pieces > 1 and (batch % (2 * pieces) or not batch):
            raise PlanError(
                f"{name} of {batch} images does not divide among {self.world} process(es) with "
                f"scale.accumulate={parts} parts each",
                expected=f"a multiple of {2 * pieces}",
                fix=f"set the batch to {max(1, round(batch / (2 * pieces))) * 2 * pieces} (as many images are needed), "
                "or change --set scale.accumulate or the number of processes",
            )
        size = batch // pieces
        starts = range(self.rank * size * parts, (self.rank + 1) * size * parts, size)
        return [slice(start, start + size) for start in starts]


def asked_for_more(environment: Mapping[str, str]) -> bool:
    """Tell whether a launcher was asked for several processes.

    `accelerate launch --cpu --num_processes 2` says where they are to meet, and starts one.
    """
    alone = "MASTER_ADDR" in environment and "RANK" not in environment and "ACCELERATE_USE_CPU" in environment
    return alone or environment.get("WORLD_SIZE", "1") not in ("", "0", "1")


@cache
def _log_alone() -> None:
    log.warning("the launcher was asked for several processes, and this one is alone: on CPUs start them with "
                "torchrun --nproc_per_node N -m edgemae ...")  # fmt: skip


def _refuse_wrapping(kind: str) -> None:
    """Refuse ways of `accelerate config` that take the student's parameters apart."""
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP"):
        raise MachineError(
            f"accelerate is configured for {kind}",
            expected="plain data parallel processes: a student fits every device",
            fix="start with torchrun, or with another `accelerate config`; a large teacher is spread by --set "
            "scale.shard_teacher=true",
        )


def bf16_is_fast(device: torch.device) -> bool:
    """Tell whether a device multiplies bf16 natively; on plain AVX2 autocast is 5 to 8 times slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@contextmanager
def lost_process(name: str) -> Iterator[None]:
    """Turn the error of a collective whose other side is gone into a message for the user."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not any(sign in text for sign in ("Connection", "connection", "gloo", "NCCL", "Socket", "timed out")):
            raise
        raise MachineError(
            f"{name}: another process of this training is gone ({text.splitlines()[0][:120]})",
            expected="all processes alive until the end",
            fix="see that process's own message; run the same command again and the training goes on from its "
            "last checkpoint",
        ) from error
