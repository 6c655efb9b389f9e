"""edgemae's own model file: safetensors, with shape, pixels, labels and history as JSON in its header.

A sha256 of all of it stands beside them: a flipped bit in a weight is still a finite number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from edgemae.model.file_checks import FLOATS, check_safetensors
from edgemae.spec.atomic_file import write_atomic
from edgemae.spec.errors import CheckpointError

HEADER_KEY = "edgemae"
DIGEST_KEY = "sha256"
FORMAT = 1


def write_model(path: Path, tensors: dict[str, Tensor], header: dict[str, Any], *, half: bool = False) -> None:
    """Write tensors and header atomically; `half` stores floats as fp16 (read back as fp32)."""
    if half:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    tensors, raw = {k: v.contiguous() for k, v in tensors.items()}, json.dumps(header)
    write_atomic(path, *_in_order(save(tensors, metadata={HEADER_KEY: raw, DIGEST_KEY: tensors_digest(tensors, raw)})))


def _in_order(data: bytes) -> tuple[bytes, memoryview]:
    """Return a safetensors file in two parts, its metadata sorted.

    The library writes metadata in a random order: of two equal models, two in five files differed.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text, memoryview(data)[end:]


def read_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return (fp32 tensors, header) of an edgemae model file, or None when the file is another kind of safetensors."""
    try:
        check_safetensors(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            raw = metadata.get(HEADER_KEY)
            if raw is None:
                return None
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    if DIGEST_KEY in metadata and metadata[DIGEST_KEY] != tensors_digest(tensors, raw):  # the first files had none
        raise CheckpointError(
            f"'{path}' is damaged: its contents do not match the sha256 in it",
            expected="the file as edgemae wrote it",
            fix="copy or make it again",
        )
    return {k: v.float() if v.dtype == torch.float16 else v for k, v in tensors.items()}, _header(raw, path)


def read_header(path: Path) -> dict[str, Any] | None:
    """Return the header of an edgemae model file without its tensors, None for another kind of safetensors."""
    try:
        check_safetensors(path)
        with safe_open(path, framework="pt") as file:
            raw = (file.metadata() or {}).get(HEADER_KEY)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    return None if raw is None else _header(raw, path)


def tensors_digest(tensors: Mapping[str, Tensor], header: str = "") -> str:
    """Return the sha256 of a header and of tensors in the order of their names."""
    digest = hashlib.sha256(header.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _header(raw: str, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(raw)
        if header["format"] != FORMAT:
            raise CheckpointError(
                f"'{path}' has model file format {header['format']}",
                expected=f"format {FORMAT}",
                fix="use the version of edgemae that wrote it, or newer",
            )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise corrupt(path, error) from error
    return header


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"'{path}' cannot be read as safetensors: {error}",
        expected="a complete .safetensors file",
        fix="copy or download it again",
    )


def corrupt(path: Path, error: Exception) -> CheckpointError:
    """Return the error for an edgemae model file whose header does not make sense."""
    return CheckpointError(
        f"'{path}' has a damaged header: {type(error).__name__}: {error}",
        expected="a file that edgemae wrote",
        fix="copy or make it again",
    )


def load_exactly(module: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Load tensors whose names and shapes must equal the module's. Raises CheckpointError naming what differs."""
    wanted = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in tensors.items()}
    wrong = [f"{k} is missing" for k in wanted if k not in given]
    wrong += [f"{k} is not expected" for k in given if k not in wanted]
    wrong += [f"{k} is {given[k]}, not {wanted[k]}" for k in wanted if k in given and given[k] != wanted[k]]
    stored = {k: v.dtype for k, v in tensors.items() if v.dtype not in FLOATS}
    wrong += [f"{k} is stored as {dtype}" for k, dtype in stored.items()]
    wrong += [
        f"{k} has NaN or infinite values" for k, v in tensors.items() if k not in stored and not torch.isfinite(v).all()
    ]
    if wrong:
        more = f" and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise CheckpointError(
            f"{what} does not fit: {'; '.join(wrong[:6])}{more}",
            expected="every tensor of the network, finite, in the sizes that the rest of the file implies",
            fix="use the file as it was published; a training that diverged has to be repeated",
        )
    # assign: a network made on the meta device has no memory to copy into.
    module.load_state_dict({k: v.float().contiguous().clone() for k, v in tensors.items()}, assign=True)
