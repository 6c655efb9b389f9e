"""Targets: the built-in files are complete and honest, and a user's own file is checked key by key."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgemae.spec.errors import TargetError
from edgemae.spec.target import ENGINE_NAMES, PRECISIONS, Target, find_target, list_targets, target_folders

FIRST_SET = [
    "cpu-onnxruntime",
    "intel-openvino",
    "jetson-agx-orin",
    "jetson-orin-nano",
    "laptop-x86-avx2",
    "laptop-x86-vnni",
    "raspberry-pi-5",
    "rtx-laptop",
]
OWN = """
name = "own"
title = "my box"
engines = ["onnxruntime"]
precisions = ["fp32"]
arch = "x86_64"
isa = "avx2"
threads = 1
width_multiple = 8
memory_mib = 512
source = "my desk"
"""


def test_the_first_set_is_there() -> None:
    assert list_targets() == FIRST_SET


@pytest.mark.parametrize("name", FIRST_SET)
def test_a_built_in_target_is_flat_complete_and_says_where_it_comes_from(name: str) -> None:
    target = find_target(name)
    assert target.name == name
    assert set(target.engines) <= set(ENGINE_NAMES)
    assert set(target.precisions) <= set(PRECISIONS)
    assert "fp32" in target.precisions, "int8 has to have something to fall back to"
    assert target.arch in ("x86_64", "aarch64")
    assert ("tensorrt" in target.engines) == bool(target.compute_capability)
    assert len(target.source) > 60
    assert "measured" in target.source, "say what was measured, or that nothing was"
    raw = next(folder / f"{name}.toml" for folder in target_folders() if (folder / f"{name}.toml").is_file())
    facts = msgspec.toml.decode(raw.read_bytes())
    assert len(facts) <= 15
    assert not any(isinstance(value, dict) for value in facts.values())


def test_int8_comes_first_only_where_the_processor_has_dot_products() -> None:
    for name in FIRST_SET:
        target = find_target(name)
        if target.isa == "avx2" and target.engines[0] == "openvino":
            assert target.precisions[0] == "fp32", "int8 was 0.82x of float on plain AVX2"
    assert "vnni" in find_target("laptop-x86-vnni").isa


def test_a_typo_gets_the_nearest_name() -> None:
    with pytest.raises(TargetError, match="Did you mean 'laptop-x86-vnni'") as error:
        find_target("laptop-x86-vni")
    assert "jetson-orin-nano" in error.value.expected


def test_a_path_works_wherever_a_name_does(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    assert find_target(path) == find_target(str(path))
    assert find_target(path).threads == 1
    with pytest.raises(TargetError, match="does not exist"):
        find_target(tmp_path / "other.toml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("threads = 1", 'threads = "many"'), "threads"),
        (("threads = 1", "thread = 1"), "Did you mean 'threads'"),
        (("threads = 1", "zzz = 1"), "unknown field `zzz`"),
        (("threads = 1", "threads = 0"), "threads is 0"),
        (("width_multiple = 8", "width_multiple = -8"), "width_multiple is -8"),
        (('"onnxruntime"', '"onnxrun"'), "Did you mean 'onnxruntime'"),
        (('"fp32"', '"fp23"'), "precisions holds 'fp23'"),
        (('engines = ["onnxruntime"]', "engines = []"), "empty list"),
        (('source = "my desk"', ""), "source"),
        (("name =", "name"), "not valid TOML"),
        (("my desk", "\udcff"), "not valid TOML"),
        (("threads = 1", "threads = 1000000"), "threads is 1000000"),
        (("memory_mib = 512", "memory_mib = -1"), "memory_mib is -1"),
        (('["fp32"]', '["fp32", "fp32"]'), "a value twice"),
    ],
)
def test_a_malformed_file_names_the_key(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes(OWN.replace(*change).encode("utf-8", "surrogateescape"))
    with pytest.raises(TargetError, match=message) as error:
        find_target(path)
    assert str(path) in error.value.what


def test_targets_are_immutable() -> None:
    target = find_target("cpu-onnxruntime")
    with pytest.raises(AttributeError):
        target.threads = 8  # type: ignore[misc]
    assert msgspec.convert(msgspec.to_builtins(target), Target) == target
