"""`compile --remote`: candidates are measured on another machine, over a real ssh server; all else is done here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgemae.pipeline import benchmark
from edgemae.pipeline.benchmark import EAGER, RemoteBenchmark
from edgemae.profiling.compare import graph_benchmark
from edgemae.profiling.compare.graph_benchmark import Machine
from edgemae.spec.bundle import open_bundle
from edgemae.spec.errors import EngineMissingError, InputError, RemoteError
from edgemae.spec.target import find_target
from tests.support.sshd import Server
from tests.support.tiny_job import Job, Ran, edgemae, stage

FAR = ("--remote", "device", "--remote-python", sys.executable)


def compile_there(job: Job, output: Path, *more: object) -> Ran:
    student = stage(job.output, "student") / "student.safetensors"
    return edgemae("compile", student, *job.work, "--target", job.target, "-o", output, "--set", "prune.keep_macs=1",
                   "--json", *FAR, *more)  # fmt: skip


@pytest.fixture
def only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be measured in this process, and call trusted what comes back."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured here")

    def quiet(*given: Any) -> graph_benchmark.Latencies:
        found = real(*given)
        rows = {name: msgspec.structs.replace(row, verdict="TRUSTED") for name, row in found.rows.items()}
        return msgspec.structs.replace(found, rows=rows)

    real = RemoteBenchmark.measure
    monkeypatch.setattr(benchmark, "measure", refuse)
    monkeypatch.setattr(RemoteBenchmark, "measure", quiet)


@pytest.mark.slow
def test_candidates_are_measured_on_the_device(
    job: Job, compiled: Ran, server: Server, tmp_path: Path, only_there: None
) -> None:
    ran = compile_there(job, tmp_path / "out")
    assert ran.code == 0, ran.err
    rows = ran.json["engines"]
    assert {(row["engine"], row["precision"]) for row in rows} == {
        (engine, precision) for engine in ("onnxruntime", "openvino") for precision in ("fp32", "int8")
    }
    assert all(row["ratio_to_torch_eager"] is None and row["p50_ms"] > 0 and row["n"] >= 24 for row in rows)
    assert sum(row["chosen"] for row in rows) == 2
    assert "Latencies were measured on device, where there is no torch." in ran.json["notes"]
    manifest = open_bundle(ran.json["bundle"]).manifest
    assert manifest.machine == ran.json["machine"]
    assert [row.p50_ms for row in manifest.latency] == [row["p50_ms"] for row in rows]
    assert "device: " not in (tmp_path / "out/report.md").read_text()
    assert len(server.copies()) == 1
    assert server.jobs() == []

    again = compile_there(job, tmp_path / "out")  # nothing is measured twice, but the machine is asked which it is
    assert again.json["engines"] == rows
    assert len(server.copies()) == 1


def test_a_device_without_the_targets_engine_is_refused_before_the_first_step(
    job: Job, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Machine(arch="x86_64", isa="avx2", engines={"tensorrt": "10"}, fingerprint={})
    monkeypatch.setattr(RemoteBenchmark, "machine", bare)
    student = tmp_path / "teacher.safetensors"
    ran = edgemae("compile", *job.work, "--target", job.target, "-o", tmp_path / "out", *FAR)
    assert ran.code == EngineMissingError.exit_code, ran.err
    assert "device runs no engine of target 'box'" in ran.err
    assert not (tmp_path / "out/stages").exists()
    assert not student.exists()


def test_a_python_of_no_machine_and_a_machine_that_is_not_there(job: Job, server: Server, tmp_path: Path) -> None:
    ran = edgemae("compile", *job.work, "-o", tmp_path / "out", "--remote-python", "python3")
    assert ran.code == InputError.exit_code
    assert "no machine is named" in ran.err
    ran = edgemae("compile", *job.work, "-o", tmp_path / "out", "--remote", "nobody@127.0.0.1:9")
    assert ran.code == RemoteError.exit_code
    assert "cannot connect to 127.0.0.1" in ran.err
    assert not (tmp_path / "out/stages").exists()


def test_the_command_tells_what_the_machine_is_and_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from edgemae.profiling.compare.graph_benchmark import main; "
        "main([]); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert msgspec.json.decode(done.stdout, type=Machine) == graph_benchmark.this_machine()


def test_a_job_that_fails_there_is_an_error_with_its_three_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = graph_benchmark.Entry(name="a", engine="onnxruntime", precision="fp32", scheme="", files=("model.onnx",))
    job = graph_benchmark.Job(target=find_target("cpu-onnxruntime"), shape=(1, 3, 8, 8), graphs=(entry,))
    graph_benchmark.write_job(tmp_path / "job.zip", job, [{"model.onnx": b"no graph"}])
    graph_benchmark.main([str(tmp_path / "job.zip")])
    error = json.loads(capsys.readouterr().out)["error"]
    assert set(error) == {"code", "what", "expected", "fix"}
    assert "not an ONNX file" in error["what"]


@pytest.mark.slow
def test_invalid_figures_pass_no_limit_and_are_taken_again(
    job: Job, compiled: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = (stage(job.output, "student") / "student.safetensors", *job.work, "--target", job.target, "-o", tmp_path,
            "--precision", "fp32", "--set", "prune.keep_macs=1", "--max-latency-ms", 1e6, "--json")  # fmt: skip
    real, counted = benchmark.measure, []

    def busy(*given: Any) -> graph_benchmark.Latencies:
        counted.append(1)
        found = real(*given)
        rows = {name: msgspec.structs.replace(row, verdict="INVALID") for name, row in found.rows.items()}
        return msgspec.structs.replace(found, rows=rows)

    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "measure", busy)
        ran = edgemae("compile", *work)
    assert ran.code == 4
    assert "this machine was too busy while candidates were measured" in ran.err
    assert "too busy to measure" in ran.json["gates"][0]["note"]
    assert all("invalid machine" in row["reason"] for row in ran.json["engines"])
    assert edgemae("compile", *work).code == 0  # the same command, on a machine at rest
    assert len(counted) == 1


def test_gains_are_paired_within_an_engine(job: Job, compiled: Ran) -> None:
    file = stage(job.output, "latency-box") / "latency.json"
    found = msgspec.json.decode(file.read_bytes(), type=graph_benchmark.Latencies)
    assert set(found.gains) == set(found.rows) - {EAGER}
    for name, others in found.gains.items():
        assert others[name] == 1.0
        assert {other.split("-")[0] for other in others} == {name.split("-")[0]}
        assert all(found.gains[other][name] == pytest.approx(1 / gain) for other, gain in others.items())


def test_a_job_is_the_same_file_every_time(tmp_path: Path) -> None:
    job = graph_benchmark.Job(target=find_target("cpu-onnxruntime"), shape=(1, 3, 8, 8), graphs=())
    for name in ("a.zip", "b.zip"):
        graph_benchmark.write_job(tmp_path / name, job, [])
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("laptop-x86-vnni", "the machine has avx2 arithmetic, the target has"),
        ("laptop-x86-avx2", ""),
        ("raspberry-pi-5", "the machine is x86_64, the target is aarch64"),
    ],
)
def test_latencies_speak_for_processors_of_one_kind(target: str, said: str) -> None:
    machine = Machine(arch="x86_64", isa="avx2", engines={}, fingerprint={})
    found = machine.mismatch(find_target(target))
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_here_torch_is_measured_in_the_same_turns(compiled: Ran) -> None:
    rows = compiled.json["engines"]
    (eager,) = [row for row in rows if row["engine"] == EAGER]
    assert eager["ratio_to_torch_eager"] == pytest.approx(1.0)
    assert all(row["ratio_low"] <= row["ratio_to_torch_eager"] <= row["ratio_high"] for row in rows)
