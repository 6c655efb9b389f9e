"""Targets: one TOML of flat facts for each device that edgemae compiles for."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgemae.spec.errors import TargetError, nearest

ENGINE_NAMES = ("tensorrt", "openvino", "onnxruntime")
PRECISIONS = ("int8", "fp16", "fp32")


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
        if not path.is_file():
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
        target = msgspec.toml.decode(path.read_bytes(), type=Target)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TargetError(
            f"target file '{path}' cannot be read: {_with_hint(str(error))}",
            expected=f"the keys {', '.join(Target.__struct_fields__)}",
            fix="compare it with one of the files in targets/",
        ) from error
    for key, values, allowed in (
        ("engines", target.engines, ENGINE_NAMES),
        ("precisions", target.precisions, PRECISIONS),
    ):
        for value in values:
            if value not in allowed:
                raise TargetError(
                    f"target file '{path}': {key} holds '{value}'.{nearest(value, list(allowed))}",
                    expected=f"values among {', '.join(allowed)}",
                    fix=f"correct `{key}` in that file",
                )
    if not target.engines or not target.precisions or target.threads < 1 or target.width_multiple < 1:
        raise TargetError(
            f"target file '{path}' has an empty list or a number below 1",
            expected="at least one engine and one precision, threads >= 1, width_multiple >= 1",
            fix="correct those values in that file",
        )
    return target


def _with_hint(message: str) -> str:
    """Add the nearest known key to msgspec's `unknown field` message."""
    if "unknown field `" in message:
        wrong = message.split("unknown field `")[1].split("`")[0]
        return message + nearest(wrong, list(Target.__struct_fields__))
    return message
