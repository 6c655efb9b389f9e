"""What is no weight file is named in our words, quickly, and nobody is advised to open it without a guard."""

from __future__ import annotations

import io
import json
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgemae.model.file_checks import MAX_HEADER_BYTES, MAX_TENSORS
from edgemae.model.import_teacher import load_teacher
from edgemae.model.student import load_student
from edgemae.pipeline.stage_files import ModelFile
from edgemae.spec.errors import CheckpointError
from edgemae.spec.plan_schema import Plan

STATE = {"a": torch.ones(3, 3)}


def zipped(*names: str, compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name in names:
            archive.writestr(name, b"x" * 100)
    return out.getvalue()


def numpy_archive() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.zeros(3), b=np.zeros(3))
    return out.getvalue()


def saved(content: object, *, old: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=not old)
    return out.getvalue()


def bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + bytes(10**6))
    return out.getvalue()


def header(entries: object, data: bytes = b"") -> bytes:
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(kind: str, size: int = 16) -> dict[str, object]:
    return {"dtype": kind, "shape": [size], "data_offsets": [0, size]}


# What the file holds, and a word of the refusal. Siblings: archives of other kinds, cut files of both formats at every
# part, pickles of code and of nothing, every type of safetensors without exact values, headers that are too large.
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "npz": (numpy_archive, "NumPy"),
    "zip": (lambda: zipped("readme.txt"), "zip archive"),
    "zip of weights": (lambda: zipped("best.pth"), r"best\.pth"),
    "empty zip": (lambda: zipped(), "zip archive"),
    "bundle": (lambda: zipped("manifest.json", "manifest.sha256"), "bundle"),
    "compressed": (bomb, "compressed"),
    "not torch's": (lambda: zipped("archive/data.pkl"), "damaged"),
    "a thousandth": (lambda: saved(STATE)[:10], "ends early"),
    "a half": (lambda: saved(STATE)[:600], "ends early"),
    "all but the end": (lambda: saved(STATE)[:-10], "ends early"),
    "old, short": (lambda: saved(STATE, old=True)[:5], "ends early"),
    "old, a half": (lambda: saved(STATE, old=True)[:200], "ends early"),
    "an empty pickle": (lambda: b"\x80\x02.", "torch checkpoint"),
    "a pickle of numbers": (lambda: pickle.dumps({"a": [1.0, 2.0]}), "torch checkpoint"),
    "a pickle of an array": (lambda: pickle.dumps({"a": np.zeros(3)}), "Python objects|torch checkpoint"),
    "code": (lambda: pickle.dumps(os.system), "Python objects|torch checkpoint"),
    "fp8": (lambda: header({"a": entry("F8_E4M3")}, bytes(16)), "F8_E4M3"),
    "fp8, wide": (lambda: header({"a": entry("F8_E5M2")}, bytes(16)), "F8_E5M2"),
    "fp8, exponents": (lambda: header({"a": entry("F8_E8M0")}, bytes(16)), "F8_E8M0"),
    "fp6": (lambda: header({"a": entry("F6_E2M3")}, bytes(16)), "F6_E2M3"),
    "fp4": (lambda: header({"a": entry("F4", 32)}, bytes(16)), "F4"),
    "complex": (lambda: header({"a": entry("C64")}, bytes(128)), "C64"),
    "unknown": (lambda: header({"a": entry("X9")}, bytes(16)), "X9"),
    "many tensors": (lambda: header({f"{i}": entry("F32", 0) for i in range(MAX_TENSORS + 1)}), str(MAX_TENSORS)),
    "a long header": (lambda: (2**40).to_bytes(8, "little") + b"{" + bytes(99), str(MAX_HEADER_BYTES)),
    "deep": (lambda: header(b"{" + b'"a":{' * 200_000), "damaged"),
    "no table": (lambda: header(b'{"a": 3}'), "damaged"),
    "no names": (lambda: header(b"{" + b" " * 9), "damaged"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_what_is_no_weight_file_is_named(kind: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{ending}"
    path.write_bytes(FILES[kind][0]())
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=FILES[kind][1]) as error:
        load_teacher(path)
    said = str(error.value).lower()
    assert not [advice for advice in ("weights_only", "trust", "torch.load") if advice in said]
    assert len(said) < 600
    with pytest.raises(CheckpointError):
        load_student(path)
    assert time.monotonic() - began < 5


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization")
@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "complex64", "sparse", "quantized", "int8"])
def test_types_in_a_torch_file_are_refused(hf: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    state = hf.meta(hf.classifier())
    for name, value in list(state.items()):
        if value.dim() == 2:
            if kind == "sparse":
                state[name] = value.detach().to_sparse()
            elif kind == "quantized":
                state[name] = torch.quantize_per_tensor(value.detach(), 0.1, 0, torch.qint8)
            else:
                state[name] = value.detach().to(getattr(torch, kind))
    torch.save({"model": state}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"head\.weight|blocks") as error:
        load_teacher(tmp_path / "x.pth", heads=4)
    assert kind in str(error.value) or kind == "quantized"


@pytest.mark.parametrize("kind", ["float64", "float16", "bfloat16"])
def test_types_with_exact_values_are_read(hf: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    state = {k: v.detach().to(getattr(torch, kind)).contiguous() for k, v in hf.meta(hf.classifier()).items()}
    save_file(state, tmp_path / "x.safetensors")
    assert load_teacher(tmp_path / "x.safetensors", heads=4).vit.head is not None


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="regular"):
        load_teacher(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="regular"):
        load_student(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="regular"):
        _ = ModelFile.of(tmp_path / "x.safetensors", Plan()).teacher
