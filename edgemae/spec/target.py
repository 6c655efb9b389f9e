"""Targets: one TOML of flat facts for each device that edgemae compiles for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgemae.spec.errors import TargetError, nearest
from edgemae.spec.names import MOST_LETTERS, require_file_name
from edgemae.spec.toml_file import read_toml

ENGINE_NAMES = ("tensorrt", "openvino", "onnxruntime")
PRECISIONS = ("int8", "fp16", "fp32")
STAGES = "stages"  # the folder of a compile's stages, beside those of its targets
MOST = {"threads": 1024, "width_multiple": 65536, "memory_mib": 1 << 30}  # of the numbers of a target; the least is 1


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """State the facts of one device. Rules live in the engines; only scalars and short lists live here."""

    name: str
    title: str
    engines: tuple[str, ...]  # order of preference
    precisions: tuple[str, ...]  # order of preference
    arch: str  # x86_64 | aarch64
    isa: str  # what int8 relies on: avx2, avx512_vnni, dotprod, sm_87 ...
    threads: int  # inference threads; explicit, never "all"
    width_multiple: int  # MLP units are pruned in multiples of this
    memory_mib: int
    source: str  # where these figures come from
    compute_capability: str = ""  # TensorRT only, "8.7"
    max_isa: str = ""  # value for ONEDNN_MAX_CPU_ISA when emulating this target
    notes: str = ""


def target_folders() -> list[Path]:
    """Return the folders that hold built-in targets: inside the wheel, or beside an editable checkout."""
    package = Path(__file__).resolve().parent.parent
    return [folder for folder in (package / "targets", package.parent / "targets") if folder.is_dir()]


def list_targets() -> list[str]:
    """Return the names of all built-in targets, sorted."""
    return sorted({path.stem for folder in target_folders() for path in folder.glob("*.toml")})


def find_target(name_or_path: str | Path) -> Target:
    """Return a target by built-in name or by path of a TOML file.

    Raises TargetError with the nearest name for a typo, and with the offending key for a malformed file.
    """
    text = str(name_or_path)
    if text.endswith(".toml"):
        path = Path(text)
        if not os.path.exists(text):
            raise TargetError(
                f"target file '{path}' does not exist",
                expected="a TOML file such as those in targets/",
                fix="check the path, or list the built-in targets with `edgemae targets`",
            )
        return _read(path)
    for folder in target_folders():
        if (folder / f"{text}.toml").is_file():
            return _read(folder / f"{text}.toml")
    known = list_targets()
    raise TargetError(
        f"unknown target '{text}'.{nearest(text, known)}",
        expected=f"one of {', '.join(known)}, or the path of a .toml file",
        fix="run `edgemae targets` to see what each one is",
    )


def _read(path: Path) -> Target:
    try:
        target = msgspec.convert(read_toml(path, "target file", TargetError), Target)
    except msgspec.ValidationError as error:
        raise TargetError(
            f"target file '{path}' cannot be read: {_with_hint(str(error))}",
            expected=f"the keys {', '.join(Target.__struct_fields__)}",
            fix="compare it with one of the files in targets/",
        ) from error
    check_target(target, f"target file '{path}'")
    return target


def check_target(target: Target, where: str) -> None:
    """Raise TargetError, which begins with `where`, for values that no device has or that no file can be named by."""
    require_file_name(f"{where}: name", target.name, TargetError)
    for key, values, allowed in (
        ("engines", target.engines, ENGINE_NAMES),
        ("precisions", target.precisions, PRECISIONS),
    ):
        for value in values:
            if value not in allowed:
                raise TargetError(
                    f"{where}: {key} holds '{value}'.{nearest(value, list(allowed))}",
                    expected=f"values among {', '.join(allowed)}",
                    fix=f"correct `{key}` in that file",
                )
        if not values or len(set(values)) < len(values):
            raise TargetError(
                f"{where}: {key} is an empty list, or holds a value twice",
                expected=f"at least one of {', '.join(allowed)}, each once",
                fix=f"correct `{key}` in that file",
            )
    for key, most in MOST.items():
        number = getattr(target, key)
        if not 1 <= number <= most:
            raise TargetError(
                f"{where}: {key} is {number}", expected=f"1 to {most}", fix=f"correct `{key}` in that file"
            )


def check_targets(targets: Sequence[Target]) -> None:
    """Raise TargetError unless every target is sound and has a name of its own: it names a bundle and a folder."""
    taken = {STAGES}
    for target in targets:
        check_target(target, f"target '{target.name[:MOST_LETTERS]}'")
        if target.name.casefold() in taken:
            twice = target.name.casefold() != STAGES
            raise TargetError(
                f"two targets are named '{target.name}'" if twice else f"a target is named '{STAGES}'",
                expected="a name of its own for each, whatever the case: it names the bundle and its folder"
                + ("" if twice else f", in which '{STAGES}' holds the stages"),
                fix="leave one out, or correct `name` in its TOML file",
            )
        taken.add(target.name.casefold())


def _with_hint(message: str) -> str:
    """Add the nearest known key to msgspec's `unknown field` message."""
    if "unknown field `" in message:
        wrong = message.split("unknown field `")[1].split("`")[0]
        return message + nearest(wrong, list(Target.__struct_fields__))
    return message
