"""The cache of compiled blobs: used when nothing changed, never trusted, never in the way."""

from __future__ import annotations

import logging
import os
import pwd
import random
import stat
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgemae.device import engine_cache
from edgemae.device.engine_cache import cache_folder, cache_key, compiled
from edgemae.device.engines import ENGINES, open_session
from edgemae.device.session import Engine, Instrumented, Session
from edgemae.spec.errors import EngineMissingError, EngineRuntimeError
from edgemae.spec.target import Target

FILES = {"a.onnx": b"graph"}
BLOB = bytes(range(256)) * 2


class Counting:
    """A compiler that counts; only the cache is under test here."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, files: Any, target: Target) -> bytes:
        self.runs += 1
        return BLOB


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEMAE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(engine_cache, "_warned", set())
    return tmp_path / "cache" / "engines"


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
def engine(counting: Counting) -> Engine:
    def load(blob: bytes, target: Target) -> Session:
        raise AssertionError("the cache loads nothing")

    def watch(files: object, target: Target) -> Instrumented:
        raise AssertionError("the cache watches nothing")

    return Engine(name="x", needs="", version=lambda: "1", compile=counting, load=load, instrument=watch, facts=dict)


def test_the_second_time_nothing_is_compiled(folder: Path, engine: Engine, counting: Counting, box: Target) -> None:
    assert compiled(engine, FILES, box) == compiled(engine, FILES, box) == BLOB
    assert counting.runs == 1
    blob, side = sorted(folder.iterdir())
    assert (blob.suffix, side.suffix) == (".blob", ".sha256")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (blob, side)} == {0o600}


def test_the_key_holds_what_a_blob_depends_on_and_nothing_else(
    engine: Engine, box: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(**facts: Any) -> Target:
        return msgspec.structs.replace(box, **facts)

    key = cache_key(engine, FILES, box)
    others = {
        "bytes": cache_key(engine, {"a.onnx": b"graph2"}, box),
        "name": cache_key(engine, {"b.onnx": b"graph"}, box),
        "engine": cache_key(replace(engine, name="y"), FILES, box),
        "version": cache_key(replace(engine, version=lambda: "2"), FILES, box),
        "gpu": cache_key(replace(engine, facts=lambda: {"gpu": "Orin"}), FILES, box),
        "threads": cache_key(engine, FILES, change(threads=7)),
        "capability": cache_key(engine, FILES, change(compute_capability="8.9")),
    }
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    others["emulated"] = cache_key(engine, FILES, box)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(engine_cache, "machine_facts", lambda: {"flags": "sse"})
    others["processor"] = cache_key(engine, FILES, box)
    monkeypatch.undo()
    assert len({key, *others.values()}) == len(others) + 1
    assert cache_key(engine, FILES, change(title="other words", notes="x", source="y", name="z")) == key


def test_every_flipped_bit_is_found_and_compiled_anew(
    folder: Path,
    engine: Engine,
    counting: Counting,
    box: Target,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All bits of the digest line, 300 of the blob."""
    monkeypatch.setattr(engine_cache.os, "fsync", lambda _: None)  # a thousand of them take half a minute
    compiled(engine, FILES, box)
    blob, side = sorted(folder.iterdir())
    flips = [(side, bit) for bit in range(8 * side.stat().st_size)]
    flips += [(blob, bit) for bit in random.Random(0).sample(range(8 * len(BLOB)), 300)]
    assert len(flips) > 1000
    for path, bit in flips:
        data = bytearray(path.read_bytes())
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        before = counting.runs
        assert compiled(engine, FILES, box) == BLOB
        assert counting.runs == before + 1, f"bit {bit} of {path.suffix} was believed"
    assert caplog.text.count("does not match its digest") == len(flips)


@pytest.mark.parametrize("change", ["cut", "empty", "no side file", "side file of another", "no blob"])
def test_a_damaged_entry_is_compiled_anew(
    change: str, folder: Path, engine: Engine, counting: Counting, box: Target
) -> None:
    compiled(engine, FILES, box)
    blob, side = sorted(folder.iterdir())
    if change == "cut":
        blob.write_bytes(BLOB[:-1])
    elif change == "empty":
        blob.write_bytes(b"")
    elif change == "no blob":
        blob.unlink()
    elif change == "no side file":
        side.unlink()
    else:
        compiled(engine, {"b.onnx": b""}, box)
        other = next(path for path in folder.glob("*.sha256") if path != side)
        side.write_bytes(other.read_bytes())  # the same blob under another key: the digest is right, the name is not
        counting.runs -= 1
    assert compiled(engine, FILES, box) == BLOB
    assert counting.runs == 2
    assert compiled(engine, FILES, box) == BLOB
    assert counting.runs == 2


def test_a_link_is_not_followed(folder: Path, engine: Engine, counting: Counting, box: Target, tmp_path: Path) -> None:
    compiled(engine, FILES, box)
    blob = next(folder.glob("*.blob"))
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    assert compiled(engine, FILES, box) == BLOB
    assert counting.runs == 2


def test_a_fifo_is_not_waited_for(folder: Path, engine: Engine, counting: Counting, box: Target) -> None:
    compiled(engine, FILES, box)
    for path in (next(folder.glob("*.blob")), next(folder.glob("*.sha256"))):
        path.unlink()
        os.mkfifo(path)
        assert compiled(engine, FILES, box) == BLOB
    assert counting.runs == 3


def test_a_folder_that_others_can_write_is_not_used(
    folder: Path, engine: Engine, counting: Counting, box: Target, caplog: pytest.LogCaptureFixture
) -> None:
    compiled(engine, FILES, box)
    folder.chmod(0o777)
    for _ in range(3):
        assert compiled(engine, FILES, box) == BLOB
    assert counting.runs == 4
    assert caplog.text.count("is not used") == 1, "logged once, not on every start of a session"
    assert "others can write" in caplog.text


def test_a_read_only_disk_compiles_in_memory(
    tmp_path: Path,
    engine: Engine,
    counting: Counting,
    box: Target,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("no folder can be made below a file")
    monkeypatch.setenv("EDGEMAE_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(engine_cache, "_warned", set())
    with caplog.at_level(logging.WARNING):
        assert compiled(engine, FILES, box) == compiled(engine, FILES, box) == BLOB
    assert counting.runs == 2
    assert caplog.text.count("every start compiles again") == 1


def test_a_full_disk_leaves_no_draft(
    folder: Path, engine: Engine, box: Target, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine_cache.os, "fsync", full)
    assert compiled(engine, FILES, box) == BLOB
    assert "No space left" in caplog.text
    assert list(folder.iterdir()) == []


def test_old_blobs_make_room(folder: Path, engine: Engine, box: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_cache, "KEEP", 3)
    for i in range(6):
        compiled(engine, {f"{i}.onnx": b""}, box)
    assert len(list(folder.glob("*.blob"))) == len(list(folder.glob("*.sha256"))) == 3


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEMAE_CACHE_DIR", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("EDGEMAE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "edgemae"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "edgemae"


def test_errors_of_the_compiler_pass_and_leave_nothing(folder: Path, engine: Engine, box: Target) -> None:
    def fails(files: Any, target: Target) -> bytes:
        raise EngineRuntimeError("no", expected="", fix="")

    with pytest.raises(EngineRuntimeError):
        compiled(replace(engine, compile=fails), FILES, box)
    with pytest.raises(EngineMissingError, match="'x'"):
        compiled(replace(engine, version=lambda: None), FILES, box)
    assert not folder.exists()


def test_openvino_is_cached_and_onnx_runtime_is_not(
    folder: Path, block_onnx: Callable[..., bytes], box: Target
) -> None:
    files = {"x.onnx": block_onnx()}
    for name in ("onnxruntime", "openvino", "openvino"):
        open_session(name, files, box).close()
    assert len(list(folder.glob("*.blob"))) == 1
    assert not ENGINES["onnxruntime"].cached
    blob = next(folder.glob("*.blob"))
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    open_session("openvino", files, box).close()
    assert blob.read_bytes() != data


def test_no_engine_sees_a_blob_with_a_flipped_bit(
    folder: Path, block_onnx: Callable[..., bytes], box: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real blob of OpenVINO, which itself takes flipped bits without a word: 200 of its bits, 50 of its side file."""
    monkeypatch.setattr(engine_cache.os, "fsync", lambda _: None)
    files = {"x.onnx": block_onnx()}
    open_session("openvino", files, box).close()
    blob, side = sorted(folder.iterdir())
    good, rng = blob.read_bytes(), random.Random(0)
    seen: list[bytes] = []
    built: list[object] = []

    def load(data: bytes, target: Target) -> Session:
        seen.append(data)
        return Session("openvino", lambda _: {}, lambda: None)

    def compile_again(*given: object) -> bytes:
        built.append(given)
        return good

    monkeypatch.setitem(ENGINES, "openvino", replace(ENGINES["openvino"], compile=compile_again, load=load))
    open_session("openvino", files, box)
    assert (seen, built) == ([good], []), "a valid blob is used"
    flips = [(blob, bit) for bit in rng.sample(range(8 * len(good)), 200)]
    flips += [(side, bit) for bit in rng.sample(range(8 * side.stat().st_size), 50)]
    for count, (path, bit) in enumerate(flips, start=1):
        data = bytearray(path.read_bytes())
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        open_session("openvino", files, box)
        assert (seen[-1] == good, len(built)) == (True, count), f"bit {bit} of {path.suffix} was believed"


def test_a_user_without_a_home_has_a_cache_all_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container that runs under a number: no HOME, and no entry in passwd."""
    for name in ("HOME", "XDG_CACHE_HOME", "EDGEMAE_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert cache_folder() == tmp_path / f"edgemae-{os.getuid()}"
