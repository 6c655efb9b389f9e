"""Names that become files: nothing in a target or a plan leads out of the folder that it is written to."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgemae.pipeline.plan_rules import check_plan
from edgemae.spec.errors import PlanError, TargetError
from edgemae.spec.names import is_file_name
from edgemae.spec.plan_loading import plan_from
from edgemae.spec.target import Target, check_targets, find_target

# Siblings: absolute, upwards, a path, Windows' drive and separator, hidden, a flag, empty, white space, line break,
# terminal escape, NUL, letters of other scripts, a Windows device, a dot at the end, too long.
BAD = ["/tmp/x", "../../x", "..", ".", "a/b", "C:x", "a\\b", ".x", "-o", "", " ", "a b", "x\n", "x\x1b[2J", "x\0", "ä",
       "nul", "COM1.txt", "x.", "x" * 101]  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_name_is_refused_everywhere(name: str, tmp_path: Path) -> None:
    assert not is_file_name(name)
    built_in = find_target("cpu-onnxruntime")
    with pytest.raises(TargetError):  # as the pipeline gets it from Python
        check_targets([built_in, msgspec.structs.replace(built_in, name=name)])
    with pytest.raises(PlanError):
        check_plan(plan_from({"name": name}))
    facts = msgspec.to_builtins(msgspec.structs.replace(built_in, name=name))
    lines = [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in facts.items()]
    (tmp_path / "own.toml").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(TargetError, match=r"name is|NUL"):
        find_target(tmp_path / "own.toml")


@pytest.mark.parametrize("name", ["model", "jetson-orin-nano", "a.b_c-9", "x" * 100, "connector"])
def test_a_good_name_passes(name: str) -> None:
    assert is_file_name(name)


@pytest.mark.parametrize("names", [("box", "box"), ("box", "Box"), ("stages",), ("box", "STAGES")])
def test_targets_share_no_folder(names: tuple[str, ...]) -> None:
    built_in = find_target("cpu-onnxruntime")
    targets: list[Target] = [msgspec.structs.replace(built_in, name=name) for name in names]
    with pytest.raises(TargetError, match=f"(?i){names[-1]}"):
        check_targets(targets)
