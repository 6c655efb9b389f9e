"""One training in two processes over gloo: the weights of one process, also after one of them is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import edgemae
from edgemae.spec.errors import DataError, MachineError, PlanError
from edgemae.train import distributed
from edgemae.train.distributed import ProcessGroup, lost_process

SCRIPT = '''
"""All three trainings of a student with everything on that is random; may be told to die at a step.

A server: torch is imported once, and every process of a run is forked from here. A run comes as a line of JSON on stdin
and its exit codes go back; as torchrun does, the other processes are ended when one dies.
"""

import json, os, signal, sys, traceback
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from edgemae.data.image_set import scan
from edgemae.distill import frozen_teacher
from edgemae.train import loop
from edgemae.train.distributed import ProcessGroup
from edgemae.distill.stages import Images, distill, finetune, pretrain
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_loading import load_plan


def run(folder, out, parts, shard, more, die_rank, die_step):
    torch.set_num_threads(1)
    loop.CHECKPOINT_EVERY_S = 0.0
    step, spread, seen, taken = loop._Run._step, frozen_teacher._shard, [], 0
    frozen_teacher._shard = lambda vit, device: (seen.append(vit), spread(vit, device))

    def counted(run, batch, number):
        nonlocal taken
        if run.processes.rank == die_rank and taken == die_step:
            os.kill(os.getpid(), signal.SIGKILL)
        taken += 1
        return step(run, batch, number)

    loop._Run._step = counted
    small = {"image_px": 32, "patch_px": 8, "width": 32, "depth": 2, "heads": 2, "head_dim": 16}
    sizes = {f"{who}.{name}": value for who in ("teacher", "student") for name, value in small.items()}
    epochs = {f"{part}.{name}": value for part in ("pretrain", "finetune", "distill", "distill.finetune")
              for name, value in {"epochs": 3, "batch": 8, "lr": 0.01}.items()}
    light = {f"{part}.{name}": value for part in ("pretrain", "distill")
             for name, value in {"decoder_width": 16, "decoder_heads": 2}.items()}
    noisy = {f"{part}.{name}": value for part in ("finetune", "distill.finetune")
             for name, value in {"mixup": 0.4, "cutmix": 0.5, "drop_path": 0.2, "token_keep": 0.5, "ema": 0.9}.items()}
    scale = {"scale.accumulate": parts, "scale.shard_teacher": shard}
    # Where a processor multiplies bf16, a part's gradient is rounded to 8 bits before the parts are added up.
    exact = {f"{part}.bf16": False for part in ("pretrain", "finetune", "distill", "distill.finetune")}
    plan = load_plan(None, (), {"workers": 0, **scale, **sizes, **epochs, **light, **noisy, **exact, **more})
    scanned = []
    found = ProcessGroup().from_first(lambda: scanned.append(1) or scan(folder))
    assert len(scanned) == (os.environ.get("RANK", "0") == "0")
    images = Images(found.unlabelled(), found, found)
    teacher, _ = pretrain(plan, images.unlabelled, PixelContract(image_px=32), checkpoint=out / "teacher.ckpt")
    finetuned, _ = finetune(teacher, plan, images, out / "tuned.ckpt")
    student, curves = distill(teacher, plan, images, out / "student.ckpt", finetuned)
    rank = os.environ.get("RANK", "0")
    local = lambda p: p.to_local() if isinstance(p, DTensor) else p
    held = [sum(local(p).numel() for p in vit.blocks.parameters()) for vit in seen]
    (out / f"held-{rank}.json").write_text(json.dumps(held))
    models = {"teacher": teacher.vit, "tuned": finetuned.vit, "student": student.vit}
    torch.save({name: vit.state_dict() for name, vit in models.items()}, out / f"weights-{rank}.pt")


def fork(rank, world, port, order):
    child = os.fork()
    if child:
        return child
    try:
        if world > 1:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1",
                              MASTER_PORT=str(port))
        run(order["folder"], Path(order["out"]), order["parts"], order["shard"], order["more"], *order["die"])
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


for line in sys.stdin:
    order = json.loads(line)
    world = order["processes"]
    left, codes = {fork(rank, world, order["port"], order) for rank in range(world)}, []
    while left:
        child, status = os.wait()
        left.discard(child)
        codes.append(os.waitstatus_to_exitcode(status))
        if codes[-1]:
            for other in left:
                os.kill(other, signal.SIGTERM)
    print(json.dumps(codes), flush=True)
'''


@dataclass(frozen=True)
class Trainer:
    """Runs trainings in their own processes; `errors` is what they wrote on stderr."""

    server: subprocess.Popen[str]
    errors: Path

    def start(
        self, folder: Path, out: Path, *, processes: int = 1, parts: int = 1, shard: bool = False,
        die: tuple[int, int] = (-1, 0), more: Mapping[str, Any] | None = None,
    ) -> list[int]:  # fmt: skip
        """Run it once and return the exit codes in the order in which the processes ended."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        out.mkdir(exist_ok=True)
        order = {"folder": str(folder), "out": str(out), "processes": processes, "parts": parts, "shard": shard,
                 "die": die, "port": port, "more": dict(more or {})}  # fmt: skip
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        line = self.server.stdout.readline()
        assert line, self.errors.read_text()
        codes: list[int] = json.loads(line)
        return codes


def weights(out: Path, rank: int = 0) -> dict[str, Tensor]:
    """Return all weights of all models that a run left."""
    saved = torch.load(out / f"weights-{rank}.pt", weights_only=True)
    return {f"{model}.{name}": value for model, state in saved.items() for name, value in state.items()}


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    folder = tmp_path_factory.mktemp("script")
    (folder / "script.py").write_text(SCRIPT)
    where = os.environ | {"PYTHONPATH": str(Path(edgemae.__file__).parent.parent)}
    with (folder / "errors").open("w") as errors:
        command = [sys.executable, folder / "script.py"]
        with subprocess.Popen(
            command, env=where, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as server:
            yield Trainer(server, folder / "errors")  # leaving closes its stdin, which ends it


@pytest.fixture(scope="module")
def two(trainer: Trainer, picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what an undisturbed run in two processes left."""
    out = tmp_path_factory.mktemp("two")
    assert trainer.start(picture_folder, out, processes=2) == [0, 0], trainer.errors.read_text()
    return out


def test_two_processes_and_two_parts_end_as_one(
    trainer: Trainer, picture_folder: Path, two: Path, tmp_path: Path
) -> None:
    for processes, parts in ((1, 1), (1, 2), (2, 2)):
        codes = trainer.start(picture_folder, tmp_path / f"{processes}-{parts}", processes=processes, parts=parts)
        assert codes == [0] * processes, trainer.errors.read_text()
    one = weights(tmp_path / "1-1")
    for other in (two, tmp_path / "1-2", tmp_path / "2-2"):
        assert apart(one, weights(other)) < 1e-5
    assert apart(weights(two), weights(two, rank=1)) == 0
    moved = torch.cat([value.flatten() for name, value in one.items() if name.endswith("mlp.fc1.bias")])
    assert moved.abs().mean() > 1e-4  # biases began at 0: the difference is small beside what was learnt


def test_in_bf16_they_end_apart_by_its_own_rounding(trainer: Trainer, picture_folder: Path, tmp_path: Path) -> None:
    """Where no processor is fast in it, both train in fp32 and this proves little."""
    rough = {f"{part}.bf16": True for part in ("pretrain", "finetune", "distill", "distill.finetune")}
    for processes in (1, 2):
        codes = trainer.start(picture_folder, tmp_path / str(processes), processes=processes, more=rough)
        assert codes == [0] * processes, trainer.errors.read_text()
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    learnt, other = (
        torch.cat([value.flatten() for name, value in run.items() if name.endswith("mlp.fc1.bias")])
        for run in (one, two)
    )
    assert (learnt - other).norm() < 0.1 * learnt.norm()  # biases began at 0
    assert apart(two, weights(tmp_path / "2", rank=1)) == 0


PLAIN = {f"distill.finetune.{name}": 0.0 for name in ("mixup", "cutmix")}


@pytest.mark.parametrize("more", [
    {"distill.recipe": "feature", "distill.views": 2, "distill.finetune.views": 2, "elastic.on": True, **PLAIN},
    {"distill.recipe": "relation-full", **PLAIN},
    {"distill.mask": "attention", "elastic.on": True, "elastic.depths": [1, 2], "elastic.heads": [1, 2], **PLAIN},
])  # fmt: skip
def test_so_do_other_recipes(trainer: Trainer, picture_folder: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    for processes in (1, 2):
        codes = trainer.start(picture_folder, tmp_path / str(processes), processes=processes, more=more)
        assert codes == [0] * processes, trainer.errors.read_text()
    assert apart(weights(tmp_path / "1"), weights(tmp_path / "2")) < 1e-5


def test_a_killed_process_loses_nothing(trainer: Trainer, picture_folder: Path, two: Path, tmp_path: Path) -> None:
    chance = random.SystemRandom()
    die = (chance.randrange(2), chance.randrange(1, 35))  # of 4 trainings with 9 steps each
    codes = trainer.start(picture_folder, tmp_path, processes=2, die=die)
    assert codes[0] == -signal.SIGKILL, die
    assert codes[1] != 0, die
    assert not (tmp_path / "weights-0.pt").exists()
    newest = max(tmp_path.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    assert torch.load(newest, weights_only=True)["done"] == (die[1] - 1) % 9 + 1, die
    assert trainer.start(picture_folder, tmp_path, processes=2) == [0, 0], trainer.errors.read_text()
    assert apart(weights(tmp_path), weights(two)) == 0, die


def test_a_teacher_spread_over_processes_says_the_same(
    trainer: Trainer, picture_folder: Path, two: Path, tmp_path: Path
) -> None:
    assert trainer.start(picture_folder, tmp_path, processes=2, shard=True) == [0, 0], trainer.errors.read_text()
    assert apart(weights(tmp_path), weights(two)) < 1e-6
    block = 32 * (4 * 32 + 8 * 32) + 4 * 32 + 32 + 4 * 32 + 32 + 4 * 32  # weights, biases, two norms
    for rank in (0, 1):
        stage_one, stage_two = json.loads((tmp_path / f"held-{rank}.json").read_text())
        assert stage_one == stage_two == pytest.approx(1.5 * block, rel=0.01)  # half of the first, the last one whole


# ---------------------------------------------------------------- alone


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, False),
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, True),  # accelerate launch --cpu --num_processes 2
        ({"ACCELERATE_USE_CPU": "True"}, False),
        ({"MASTER_ADDR": "127.0.0.1", "RANK": "0", "WORLD_SIZE": "1", "ACCELERATE_USE_CPU": "True"}, False),
        ({"WORLD_SIZE": "2"}, True),
    ],
)
def test_a_launcher_that_starts_fewer_than_it_was_asked_for_is_told_of(
    environment: dict[str, str], told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert distributed.asked_for_more(environment) is told
    monkeypatch.setattr(distributed, "asked_for_more", lambda _: told)
    distributed._log_alone.cache_clear()
    for _ in range(2):
        ProcessGroup()
    assert caplog.text.count("this one is alone") == told


@pytest.mark.parametrize(("batch", "parts", "rows"), [(8, 1, [(0, 8)]), (8, 2, [(0, 4), (4, 8)]), (7, 1, [(0, 7)])])
def test_rows_of_one_process(batch: int, parts: int, rows: list[tuple[int, int]]) -> None:
    assert [(part.start, part.stop) for part in ProcessGroup().rows(batch, parts)] == rows


@pytest.mark.parametrize(("rank", "rows"), [(0, [(0, 4), (4, 8)]), (1, [(8, 12), (12, 16)])])
def test_rows_of_two_processes(rank: int, rows: list[tuple[int, int]]) -> None:
    processes = ProcessGroup()
    processes.rank, processes.world = rank, 2
    assert [(part.start, part.stop) for part in processes.rows(16, 2)] == rows


def test_a_batch_that_does_not_divide_is_refused() -> None:
    processes = ProcessGroup()
    processes.world = 3
    said = r"a batch of 64 images does not divide among 3 process\(es\) with scale.accumulate=2"
    with pytest.raises(PlanError, match=said) as caught:
        processes.rows(64, 2)
    assert caught.value.expected == "a multiple of 12"
    assert "set the batch to 60" in caught.value.fix


@pytest.mark.parametrize(
    ("images", "parts", "batch"),
    [(100, 2, 64), (64, 2, 64), (14, 1, 14), (15, 1, 15), (14, 2, 12), (15, 3, 12), (3, 2, 0)],
)
def test_a_batch_of_all_images_divides_too(images: int, parts: int, batch: int) -> None:
    processes = ProcessGroup()
    assert processes.fitting(64, images, parts) == batch
    if batch:
        assert processes.rows(batch, parts)
    else:
        with pytest.raises(PlanError, match="a batch of 0 images"):
            processes.rows(batch, parts)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_the_first_process_refuses_is_refused_by_all(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise DataError("no images", expected="some", fix="add some")

    def agree(value: tuple[object, DataError | None]) -> tuple[object, DataError | None]:
        assert (value[1] is not None) == (rank == 0)
        return None, value[1] or DataError("no images", expected="some", fix="add some")

    processes = ProcessGroup()
    processes.rank, processes.world = rank, 2
    monkeypatch.setattr(processes, "agree", agree)
    with pytest.raises(DataError, match="no images"):
        processes.from_first(refuse)


def test_a_lost_process_is_said_in_words() -> None:
    with (
        pytest.raises(MachineError, match="toy: another process of this training is gone") as caught,
        lost_process("toy"),
    ):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:7")
    assert "goes on from its last checkpoint" in caught.value.fix
    with pytest.raises(RuntimeError, match="shapes"), lost_process("toy"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
