"""The one error tree of edgemae. Every message says what happened, what was expected and what to do.

EdgemaeError
├── InputError                your input            exit 2
│   ├── DataError             images, labels, calibration sets
│   ├── CheckpointError       model files that cannot be imported
│   ├── PlanError             a plan file, a flag or an override
│   ├── TargetError           an unknown or malformed target
│   ├── GalleryError          a gallery or reference set that is corrupt, foreign or another model's
│   └── BundleError           a bundle that cannot be opened
│       ├── BundleCorruptError    bytes differ from what the manifest promises
│       └── BundleSchemaError     a manifest this version cannot read
├── GateError                 a limit you set was not met
│   ├── AccuracyGateError     exit 3
│   └── BudgetGateError       exit 4 (latency or size)
├── MachineError              your machine          exit 5
│   ├── EngineMissingError    no engine of the bundle is installed
│   ├── EngineRuntimeError    an engine is installed but failed to build or to run
│   ├── SelfCheckError        an engine here does not compute what was measured
│   ├── CameraError           a frame source that cannot be opened
│   ├── RemoteError           another machine that cannot be reached or used
│   └── StorageError          a full or read-only disk
└── InternalError             our bug               exit 1
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgemae.spec.printable import printable_line


class EdgemaeError(Exception):
    """Describe a failure in three parts: what happened, what was expected, what to do.

    `code` is stable and machine-readable; `exit_code` is what the command line returns.
    """

    code = "internal"
    exit_code = 1

    def __init__(self, what: str, *, expected: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.expected, self.fix = what, expected, fix

    def __str__(self) -> str:
        what, expected, fix = map(printable_line, (self.what, self.expected, self.fix))
        return f"{what}\n  expected: {expected}\n  fix: {fix}"

    @property
    def row(self) -> dict[str, str]:
        """Return the error as other programs read it; `error_of` makes it again."""
        return {"code": self.code, "what": self.what, "expected": self.expected, "fix": self.fix}

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default reduction, and errors cross worker processes.
        return (_rebuild, (type(self), self.what, self.expected, self.fix))


def _rebuild(cls: type[EdgemaeError], what: str, expected: str, fix: str) -> EdgemaeError:
    return cls(what, expected=expected, fix=fix)


class InputError(EdgemaeError):
    code, exit_code = "input", 2


class DataError(InputError):
    code = "data"


class CheckpointError(InputError):
    code = "checkpoint"


class PlanError(InputError):
    code = "plan"


class TargetError(InputError):
    code = "target"


class GalleryError(InputError):
    code = "gallery"


class BundleError(InputError):
    code = "bundle"


class BundleCorruptError(BundleError):
    code = "bundle-corrupt"


class BundleSchemaError(BundleError):
    code = "bundle-schema"


class GateError(EdgemaeError):
    code, exit_code = "gate", 3


class AccuracyGateError(GateError):
    code, exit_code = "gate-accuracy", 3


class BudgetGateError(GateError):
    code, exit_code = "gate-budget", 4


class MachineError(EdgemaeError):
    code, exit_code = "machine", 5


class EngineMissingError(MachineError):
    code = "engine-missing"


class EngineRuntimeError(MachineError):
    code = "engine-runtime"


class SelfCheckError(MachineError):
    code = "self-check"


class CameraError(MachineError):
    code = "camera"


class RemoteError(MachineError):
    code = "remote"


class StorageError(MachineError):
    code = "storage"


class InternalError(EdgemaeError):
    code, exit_code = "internal", 1


def error_of(row: Mapping[str, str]) -> EdgemaeError:
    """Return the error that another process wrote down as {code, what, expected, fix}."""
    kinds = [EdgemaeError]
    for kind in kinds:  # grows while it is walked
        kinds += kind.__subclasses__()
    kind = next((k for k in kinds[1:] if k.code == row["code"]), InternalError)
    return kind(row["what"], expected=row["expected"], fix=row["fix"])


def check_named(field: str, value: str, known: Iterable[str]) -> None:
    """Raise PlanError unless a field of the plan holds one of the known names."""
    names = list(known)
    if value not in names:
        raise PlanError(
            f"{field} is '{value[:100]}'.{nearest(value, names)}",
            expected=f"one of {', '.join(names)}",
            fix=f"correct {field} in the plan file or in --set",
        )


def nearest(name: str, known: list[str]) -> str:
    """Return a hint such as ` Did you mean 'x'?`, or an empty string when nothing is close."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
