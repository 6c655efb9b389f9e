"""The error tree: three parts in every message, stable codes, the exit codes that scripts rely on."""

from __future__ import annotations

import pickle

import pytest

from edgemae.spec import errors
from edgemae.spec.errors import EdgemaeError, nearest

EXIT_CODES = {
    "InputError": 2,
    "DataError": 2,
    "CheckpointError": 2,
    "PlanError": 2,
    "TargetError": 2,
    "GalleryError": 2,
    "BundleError": 2,
    "BundleCorruptError": 2,
    "BundleSchemaError": 2,
    "GateError": 3,
    "AccuracyGateError": 3,
    "BudgetGateError": 4,
    "MachineError": 5,
    "EngineMissingError": 5,
    "EngineRuntimeError": 5,
    "SelfCheckError": 5,
    "CameraError": 5,
    "RemoteError": 5,
    "StorageError": 5,
    "InternalError": 1,
}
TREE = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, EdgemaeError) and kind is not EdgemaeError
}


def test_every_error_has_its_exit_code_and_a_line_in_the_tree() -> None:
    assert {name: kind.exit_code for name, kind in TREE.items()} == EXIT_CODES
    for name in TREE:
        assert f" {name} " in (errors.__doc__ or "").replace("\n", " \n"), f"{name} is not drawn in the tree"


def test_codes_are_unique_and_readable() -> None:
    codes = [kind.code for kind in TREE.values()]
    assert len(set(codes)) == len(codes)
    assert all(code == code.lower() and " " not in code for code in codes)


@pytest.mark.parametrize("name", TREE)
def test_a_message_says_what_expected_and_fix_and_survives_a_process_border(name: str) -> None:
    error = TREE[name]("x is 3", expected="2", fix="pass 2")
    assert str(error) == "x is 3\n  expected: 2\n  fix: pass 2"
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - worker processes send errors this way
    assert type(copy) is TREE[name]
    assert (copy.what, copy.expected, copy.fix) == ("x is 3", "2", "pass 2")


def test_all_three_parts_are_asked_for() -> None:
    with pytest.raises(TypeError):
        EdgemaeError("only what")  # type: ignore[call-arg]


def test_nearest_helps_with_typos_and_is_silent_otherwise() -> None:
    assert nearest("laptop-x68", ["laptop-x86", "jetson"]) == " Did you mean 'laptop-x86'?"
    assert nearest("zzz", ["laptop-x86", "jetson"]) == ""
