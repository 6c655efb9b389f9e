"""Open weight files of other projects without running any code that may be inside them."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edgemae.model.file_checks import SAVE_WEIGHTS, check_archive, check_tensors, require_regular
from edgemae.model.model_file import read_model
from edgemae.model.name_mapping import listing, strip_prefixes
from edgemae.spec.errors import CheckpointError

# Where training scripts put the state dict, in the order in which they are looked for.
CONTAINERS = ("model", "state_dict", "model_state_dict", "module")
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class WeightFile:
    """Hold what a file or folder says. `header` is set for edgemae's own files only.

    `config` is config.json, `processor` preprocessor_config.json, `args` the options of the training script.
    """

    tensors: dict[str, Tensor]
    files: tuple[Path, ...]
    header: dict[str, Any] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)
    card_licence: str = ""
    ignored: tuple[str, ...] = ()
    hashes: Mapping[Path, str] = field(default_factory=dict)

    def sha256(self) -> str:
        """Return the hash of the weight files, one after the other."""
        if len(self.files) == 1 and self.files[0] in self.hashes:
            return self.hashes[self.files[0]]
        digest = hashlib.sha256()
        for path in self.files:
            with open(path, "rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
        return digest.hexdigest()


def read_weights(path: Path, hashes: Mapping[Path, str] | None = None) -> WeightFile:
    """Open a weight file or a model folder. Raises CheckpointError for anything that is not one.

    `hashes` are the sha256 of files that were hashed already: large ones are not read again for it.
    """
    if not path.exists():
        raise CheckpointError(
            f"checkpoint '{path}' does not exist",
            expected="a .pth, .safetensors or .bin file, or a Hugging Face folder",
            fix="check the path",
        )
    require_regular(path)
    if path.is_dir():
        found = _read_folder(path, next((n for n in WEIGHT_FILES if (path / n).is_file()), None))
    elif path.name in WEIGHT_FILES and (path.parent / "config.json").is_file():  # what it says counts for the file too
        found = _read_folder(path.parent, path.name)
    else:
        found = _read_file(path)
    check_tensors(path, found.tensors)
    return replace(found, hashes=hashes or {})


def _read_file(path: Path) -> WeightFile:
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(
            f"'{path}' cannot be opened: {error.strerror}", expected="a readable file", fix="check its permissions"
        ) from error
    if start[8:9] == b"{":
        own = read_model(path)
        if own is not None:
            return WeightFile(own[0], (path,), header=own[1])
        return WeightFile(strip_prefixes(_safetensors(path)), (path,))
    if start[:2] == b"PK":
        check_archive(path)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return _unwrap(_torch(path), path)
    raise CheckpointError(
        f"'{path}' is no weight file" if start else f"'{path}' is empty",
        expected="safetensors, or a checkpoint that torch.save wrote",
        fix="run `git lfs pull`: this is a pointer" if start == b"version h" else "copy or download it again",
    )


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"'{path}' cannot be read as safetensors: {error}",
            expected="a complete .safetensors file",
            fix="copy or download it again",
        ) from error


def _torch(path: Path) -> Any:
    """Return the contents of a torch.save file, restricted to tensors, containers and argparse.Namespace."""
    zipped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            # Mapped, because optimizer states are twice the weights and stay unread; the old format cannot be.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a garbled pickle raises anything: KeyError, EOFError, RuntimeError, ...
        raise _refusal(path, error) from error


def _refusal(path: Path, error: Exception) -> CheckpointError:
    """Return the refusal in our words: torch's own text advises to load without its guard."""
    code = re.search(r"Unsupported (?:global|class|operand)[^:]*: (?:GLOBAL )?(\S+)", str(error))
    if code is not None:
        return CheckpointError(
            f"'{path}' holds Python objects besides weights ({code[1][:100]}): a whole pickled module or settings",
            expected="tensors only; opening anything else would run code from the file",
            fix=SAVE_WEIGHTS,
        )
    return CheckpointError(
        f"'{path}' cannot be read as a torch checkpoint: it is damaged, ends early or holds other things than weights "
        f"({type(error).__name__})",
        expected="a complete file written by torch.save, with tensors in it",
        fix="copy or download it again, or save the weights again as safetensors",
    )


def _unwrap(content: Any, path: Path) -> WeightFile:
    """Find the state dict in what a training script saved; everything left aside is named in `ignored`."""
    if not isinstance(content, dict):
        raise CheckpointError(
            f"'{path}' holds a {type(content).__name__}", expected="a state dict", fix="save model.state_dict() instead"
        )
    name = "" if _is_state(content) else next((n for n in CONTAINERS if _is_state(content.get(n))), None)
    if name is None:
        raise CheckpointError(
            f"'{path}' has no state dict; its keys are: {listing([str(k) for k in content]) or 'none'}",
            expected=f"tensors, or one of {', '.join(CONTAINERS)} with tensors in it",
            fix="save model.state_dict() instead",
        )
    state = content[name] if name else content
    beside = [str(k) for k in content if name and k not in (name, "args", "arch")]
    beside += [f"{name}.{k}" if name else str(k) for k, v in state.items() if not isinstance(v, Tensor)]
    args = content.get("args", {}) if name else {}
    args = dict(args) if isinstance(args, dict) else dict(vars(args)) if isinstance(args, argparse.Namespace) else {}
    if name and isinstance(content.get("arch"), str):  # how timm notes the model's name
        args["model"] = content["arch"]
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    return WeightFile(strip_prefixes(tensors), (path,), args=args, ignored=tuple(beside))


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(v, Tensor) for v in value.values())


def _read_folder(folder: Path, name: str | None) -> WeightFile:
    """Open a Hugging Face model folder: config.json, weights (perhaps in shards), preprocessor and model card."""
    if not (folder / "config.json").is_file():
        inside = sorted(p.name for p in folder.iterdir() if p.suffix in (".pth", ".pt", ".bin", ".safetensors"))
        raise CheckpointError(
            f"'{folder}' has no config.json",
            expected="a Hugging Face model folder, or a path to one weight file",
            fix=f"pass the file itself, such as '{folder / inside[0]}'" if inside else "check the path of the teacher",
        )
    config = _json(folder / "config.json")
    if name is None:
        raise CheckpointError(
            f"'{folder}' has config.json but no weights",
            expected=" or ".join(WEIGHT_FILES),
            fix="download the folder again",
        )
    files = _shards(folder, name) if name.endswith(".index.json") else (folder / name,)
    parts = [_read_file(f) for f in files]
    tensors = {k: v for part in parts for k, v in part.tensors.items()}
    processor = folder / "preprocessor_config.json"
    return replace(
        parts[0],
        tensors=tensors,
        files=files,
        config=config,
        processor=_json(processor) if processor.is_file() else {},
        card_licence=_card_licence(folder / "README.md"),
    )


def _shards(folder: Path, index: str) -> tuple[Path, ...]:
    weight_map = _json(folder / index).get("weight_map")
    names = sorted({str(n) for n in weight_map.values()}) if isinstance(weight_map, dict) else []
    missing = [n for n in names if Path(n).name != n or not (folder / n).is_file()]
    if missing or not names:
        raise CheckpointError(
            f"'{folder / index}' names weight files that are not in the folder: {listing(missing) or 'none at all'}",
            expected="every shard beside its index",
            fix="download the folder again",
        )
    return tuple(folder / n for n in names)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"'{path}' is not valid JSON: {error}", expected="a JSON object", fix="download the folder again"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"'{path}' holds a {type(value).__name__}", expected="a JSON object", fix="download the folder again"
        )
    return value


def _card_licence(card: Path) -> str:
    """Return the `license:` line of a model card's front matter, or an empty string."""
    if not card.is_file():
        return ""
    front = re.match(r"---\s*\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    line = re.search(r"^license:\s*[\"']?([\w.\-]+)", front[1], re.MULTILINE) if front else None
    return line[1] if line else ""
