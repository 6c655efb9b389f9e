"""The leaderboard: one table a device, what cannot be believed refused, equals sharing a rank."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from edgemae.profiling.records import Profile
from edgemae.spec.errors import InputError
from tests.support.profiles import full_profile

TOOL = Path(__file__).resolve().parents[2] / "tools" / "leaderboard.py"
BOX = {"cpu": "A processor", "cores_usable": 2, "flags": ["avx2"], "governor": None, "threads": 2}


@pytest.fixture
def tool(bench_tool: Callable[[str], ModuleType]) -> ModuleType:
    return bench_tool("leaderboard")


def written(folder: Path, name: str, p50: float = 5.0, **change: Any) -> Path:
    record: Profile = full_profile()
    steady = msgspec.structs.replace(record.steady, p50_ms=p50, p50_low_ms=p50 - 0.1, p50_high_ms=p50 + 0.1)
    single = {"scenario": "single", "camera": None}
    record = msgspec.structs.replace(record, **{"name": name, "steady": steady, "machine": BOX, **single, **change})
    path = folder / f"{name}.json"
    path.write_bytes(msgspec.json.encode(record))
    return path


def test_the_fastest_first_and_equals_share_a_rank(tool: ModuleType, tmp_path: Path) -> None:
    files = [written(tmp_path, n, p) for n, p in (("slow", 7.0), ("fast", 5.0), ("equal", 5.15), ("next", 5.4))]
    ((board,), refused) = tool.collect(files)
    assert [(row["rank"], row["name"]) for row in board["rows"]] == [
        (1, "fast"),
        (1, "equal"),
        (3, "next"),
        (4, "slow"),
    ]
    assert refused == []


def test_a_row_for_each_device_state_and_scenario(tool: ModuleType, tmp_path: Path) -> None:
    files = [
        written(tmp_path, "a"),
        written(tmp_path, "b", machine=BOX | {"governor": "powersave"}),
        written(tmp_path, "c", scenario="offline"),
        written(tmp_path, "d", machine=BOX | {"threads": 4, "libraries": {"openvino": "2099"}}),  # the same device
    ]
    boards, _ = tool.collect(files)
    assert sorted([row["name"] for row in board["rows"]] for board in boards) == [["a", "d"], ["b"], ["c"]]


@pytest.mark.parametrize(
    "other",
    [
        {"boost": "0"},
        {"cpuset": "0-1"},
        {"pinning": "0"},
        {"memory_max_mib": 512},
        {"numa_nodes": "0-1"},
        {"python": "3"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_state_of_the_machine_is_another_table(tool: ModuleType, tmp_path: Path, other: dict[str, Any]) -> None:
    boards, _ = tool.collect([written(tmp_path, "a"), written(tmp_path, "b", machine=BOX | other)])
    assert len(boards) == 2


def test_behind_a_camera_the_age_is_ranked_and_another_rate_is_another_table(tool: ModuleType, tmp_path: Path) -> None:
    seen = full_profile().camera
    assert seen is not None

    def behind(name: str, call: float, age: float, source_fps: float) -> Path:
        summary = msgspec.structs.replace(seen.age, p50_ms=age, p50_low_ms=age - 0.1, p50_high_ms=age + 0.1)
        camera = msgspec.structs.replace(seen, age=summary, source_fps=source_fps)
        return written(tmp_path, name, call, scenario="camera", camera=camera)

    files = [behind("fast", 3.0, 40.0, 25.0), behind("young", 5.0, 20.0, 25.02), behind("other", 4.0, 10.0, 60.0)]
    boards, _ = tool.collect(files)
    assert {board["scenario"]: [row["name"] for row in board["rows"]] for board in boards} == {
        "camera at 25 frames/s": ["young", "fast"], "camera at 60 frames/s": ["other"],
    }  # fmt: skip


def test_what_cannot_be_believed_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    good, bad = written(tmp_path, "good"), written(tmp_path, "bad", verdict="INVALID", reasons=("a clock jumped",))
    ((board,), refused) = tool.collect([good, bad])
    assert [row["name"] for row in board["rows"]] == ["good"]
    assert refused == [(str(bad), "INVALID: a clock jumped")]
    with pytest.raises(InputError, match=r"nothing is left of 1 profiles: .*INVALID: a clock jumped"):
        tool.collect([bad])


def test_by_energy_needs_energy(tool: ModuleType, tmp_path: Path) -> None:
    files = [written(tmp_path, "a"), written(tmp_path, "b", power=None)]
    ((board,), refused) = tool.collect(files, "energy")
    assert [row["value"] for row in board["rows"]] == [61.5]
    assert refused == [(str(files[1]), "it has no energy of a call")]


def test_as_a_command(tmp_path: Path) -> None:
    files = [written(tmp_path, "one"), written(tmp_path, "two", verdict="INVALID")]
    other = tmp_path / "other.json"
    other.write_text('{"schema": "edgemae.profile/1"}')

    def run(*args: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, TOOL, *args], capture_output=True, text=True, env={"PYTHONPATH": str(TOOL.parent.parent)}
        )

    done = run(*files, "--json", tmp_path / "out.json")
    assert done.returncode == 0
    assert "### A processor (2 cores, avx2), scenario single" in done.stdout
    assert f"refused: {files[1]}: INVALID" in done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["boards"][0]["rows"][0]["name"] == "one"
    mixed = run(*files, other)
    assert (mixed.returncode, mixed.stdout) == (0, done.stdout)
    assert f"refused: {other}: " in mixed.stderr
    assert run(other).returncode == 2
    assert "schema 'edgemae.profile/1'" in run(other).stderr
