"""Verbs in two processes, as `torchrun` starts them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import edgemae
from edgemae.model.student import load_student
from edgemae.pipeline import training_stages
from tests.support.tiny_job import Job, meta_pth, stage
from tests.support.tiny_job import edgemae as run

HEADS = ("--teacher-heads", 2, "--teacher-decoder-heads", 2)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return meta_pth(tmp_path_factory.mktemp("teacher") / "mae.pth")


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    command = [sys.executable, *torchrun, "-m", "edgemae", *map(str, arguments)]
    where = os.environ | {"PYTHONPATH": str(Path(edgemae.__file__).parent.parent)}
    return subprocess.run(command, env=where, capture_output=True, text=True, timeout=240)


def test_a_student_of_two_processes_is_that_of_one(job: Job, teacher: Path, tmp_path: Path) -> None:
    # fp32: a processor that multiplies bf16 would round the gradients of each half of a batch before they are added.
    fp32 = [word for part in ("finetune", "distill", "distill.finetune") for word in ("--set", f"{part}.bf16=false")]
    work = (teacher, *HEADS, *job.work, *fp32, "--set", "distill.finetune.ema=0.9", "--json")
    ran = launch("distill", *work, "-o", tmp_path / "two")
    assert ran.returncode == 0, ran.stderr
    said: dict[str, Any] = json.loads(ran.stdout)  # one object: only the first process talks
    alone = run("distill", *work, "-o", tmp_path / "one")
    assert alone.code == 0, alone.err
    assert said.keys() == alone.json.keys()
    one, two = (load_student(stage(tmp_path / name, "student") / "student.safetensors") for name in ("one", "two"))
    apart = [(a - b).abs().max() for a, b in zip(two.vit.parameters(), one.vit.parameters(), strict=True)]
    assert max(apart) < 1e-5
    lines = (stage(tmp_path / "two", "stage-1") / "train-1.events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert events[0]["processes"] == 2
    assert [line["event"] for line in events if line["event"] != "step"] == ["start", "epoch", "end"]


def test_other_verbs_work_alone(job: Job, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a process sees how many there are is shown above; here it is told so, which starts no process."""
    monkeypatch.setattr(training_stages, "ProcessGroup", lambda: SimpleNamespace(world=2))
    ran = run("compile", teacher, *HEADS, *job.work, "--target", job.target, "-o", tmp_path / "out")
    assert ran.code == 2
    assert "2 processes were started, and this verb works alone" in ran.err
    assert not (tmp_path / "out/stages").exists()
