"""Checks of a model file before a library opens it: what it is, in our words, and that it is of a sensible size."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from edgemae.spec.errors import CheckpointError

MAX_HEADER_BYTES = 16 << 20  # of a safetensors file; one of 1,000 tensors with 20,000 labels takes 1 MiB
MAX_TENSORS = 50_000  # a ViT of 48 blocks has 600, and an optimizer beside it three times as many
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
READABLE = ("F64", "F32", "F16", "BF16", "BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
PLAIN_WEIGHTS = "where it was made, save the weights as fp32, fp16 or bf16, their scales multiplied in"
SAVE_WEIGHTS = "where it was made, save only the weights: torch.save({'model': model.state_dict()}, path)"


def require_regular(path: Path) -> None:
    """Raise CheckpointError for a FIFO, a device or a socket: reading it would wait, or never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise CheckpointError(
            f"'{path}' is no regular file", expected="a model file or a folder", fix="copy its contents to a file"
        )


def check_safetensors(path: Path) -> None:
    """Raise CheckpointError for a header that is too large, is no JSON, or names a type that cannot be read."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        raw = file.read(min(size, MAX_HEADER_BYTES + 1))
    if size > MAX_HEADER_BYTES:
        raise _error(path, f"has a safetensors header of {size} bytes", f"at most {MAX_HEADER_BYTES}",
                     "use the weights of one plain ViT")  # fmt: skip
    try:
        header = json.loads(raw)
        entries = {name: entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise _error(
            path, f"cannot be read as safetensors: its header is damaged ({type(error).__name__})",
            "a complete .safetensors file", "copy or download it again",
        ) from error  # fmt: skip
    _check_count(path, len(entries))
    _check_types(path, {name: str(kind) for name, kind in entries.items()}, READABLE)


def check_archive(path: Path) -> None:
    """Raise CheckpointError for a zip archive that torch.save did not write: another kind, cut, compressed, too large.

    A compressed entry could grow to any size when it is read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _error(path, "is a zip archive that ends early or is damaged", "a complete file written by torch.save",
                     "copy or download it again") from error  # fmt: skip
    names = [entry.filename for entry in entries]
    _check_count(path, len(names))
    pickled = any(name.rpartition("/")[2] == "data.pkl" for name in names)
    if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
        raise _error(path, "is a TorchScript archive: it holds code", "tensors only", SAVE_WEIGHTS)
    if not pickled or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        kind = "a zip archive"
        if names and all(name.endswith(".npy") for name in names):
            kind = "an archive of NumPy arrays (.npz)"
        elif "manifest.json" in names:
            kind = "a bundle of compiled graphs"
        elif pickled:
            kind = "a compressed zip archive"
        elif inside := next((n for n in names if n.endswith((".pth", ".pt", ".bin", ".safetensors"))), ""):
            kind = f"a zip archive with '{inside[:100]}' in it"
        raise _error(path, f"is {kind}, not a weight file", "safetensors, or a checkpoint that torch.save wrote",
                     "unpack it and pass the weight file in it, or save the weights as safetensors")  # fmt: skip


def check_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Raise CheckpointError for tensors in a form that no ViT is computed in: fp8, fp4, complex, quantized, sparse."""
    _check_count(path, len(tensors))
    kinds = {}
    for name, value in tensors.items():
        plain = value.layout == torch.strided and not value.is_quantized and not value.is_complex()
        odd_float = value.is_floating_point() and value.dtype not in FLOATS
        packed = "float" in str(value.dtype) and value.dtype not in FLOATS  # fp4 does not count as floating point
        kinds[name] = "" if plain and not odd_float and not packed else f"{value.dtype} ({value.layout})"
    _check_types(path, kinds, ("",))


def _check_types(path: Path, kinds: dict[str, str], known: Iterable[str]) -> None:
    odd = {name: kind for name, kind in kinds.items() if kind not in known}
    if odd:
        name, kind = next(iter(odd.items()))
        raise _error(
            path, f"stores {len(odd)} tensors in a type that cannot be read, such as '{name[:100]}' in {kind[:60]}",
            "float32, float16, bfloat16 or float64", PLAIN_WEIGHTS,
        )  # fmt: skip


def _check_count(path: Path, count: int) -> None:
    if count > MAX_TENSORS:
        raise _error(path, f"holds {count} tensors", f"at most {MAX_TENSORS}", "use the weights of one plain ViT")


def _error(path: Path, what: str, expected: str, fix: str) -> CheckpointError:
    return CheckpointError(f"'{path}' {what}", expected=expected, fix=fix)
