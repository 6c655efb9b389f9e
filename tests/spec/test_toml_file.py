"""TOML that users write or are sent: read with a byte order mark, refused quickly where no field could hold it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edgemae.spec.errors import InputError, PlanError, TargetError
from edgemae.spec.plan_loading import load_plan
from edgemae.spec.target import find_target, target_folders
from edgemae.spec.toml_file import MAX_BYTES, read_toml


def test_a_byte_order_mark_is_no_part_of_a_plan_or_a_target(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_bytes(b"\xef\xbb\xbfseed = 7\r\n")
    assert load_plan(tmp_path / "plan.toml").seed == 7
    built_in = next(folder for folder in target_folders()) / "cpu-onnxruntime.toml"
    (tmp_path / "own.toml").write_bytes(b"\xef\xbb\xbf" + built_in.read_bytes())
    assert find_target(tmp_path / "own.toml") == find_target("cpu-onnxruntime")


# Siblings: lists, inline tables, dotted keys and table headers nest; numbers are infinite, none, or long.
CONTENTS = [
    b"name = " + b"[" * 100_000, b"name = " + b"{a = " * 50_000, b"a" + b".a" * 100_000 + b" = 1",
    b"[a" + b".a" * 100_000 + b"]", b"a" + b".a" * 100 + b" = 1", b"x = [{a" + b".a" * 100_000 + b" = 1}]",
    b"seed = inf", b"seed = -inf", b"[distill]\nlr = nan", b"[data]\nmean = [nan]",
    b"seed = 99999999999999999999", b"seed = 0x" + b"f" * 9999, b"seed = " + b"9" * 100_000, b'name = "\\u0000"',
    b"\xff\xfes\x00", b"\0" * 10, b"k" * 200_000 + b" = 1", b'preset = "' + b"x" * 200_000 + b'"',
    b"#" * (MAX_BYTES + 1),
]  # fmt: skip


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
def test_contents_that_no_plan_holds_are_refused_quickly(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "it.toml").write_bytes(content)
    began = time.monotonic()
    with pytest.raises(PlanError) as error:
        load_plan(tmp_path / "it.toml")
    with pytest.raises(TargetError):
        find_target(tmp_path / "it.toml")
    assert time.monotonic() - began < 5
    assert len(str(error.value)) < 1000


OVERRIDES = ["name=" + "[" * 100_000, "name={a" + ".a" * 60_000 + "=1}", "a" + ".a" * 100_000 + "=1", "seed=inf",
             "seed=" + "9" * 99]  # fmt: skip


@pytest.mark.parametrize("text", OVERRIDES, ids=range(len(OVERRIDES)))
def test_overrides_are_read_by_the_same_rules(text: str) -> None:
    with pytest.raises(PlanError) as error:
        load_plan(overrides=(text,))
    assert len(str(error.value)) < 1000


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.toml")
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    (tmp_path / "folder.toml").mkdir()
    for name in ("fifo.toml", "zero.toml", "folder.toml"):
        with pytest.raises(PlanError, match="no regular file"):
            load_plan(tmp_path / name)
        with pytest.raises(TargetError, match="no regular file"):
            find_target(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        read_toml(tmp_path / ("x" * 300), "plan file", InputError)
