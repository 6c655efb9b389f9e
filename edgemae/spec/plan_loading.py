"""Plan: every number of a compile, each with a default. Command line > file > default."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgemae.spec.errors import PlanError, check_named, nearest
from edgemae.spec.plan_schema import Plan
from edgemae.spec.presets import NAMES, preset, preset_for
from edgemae.spec.toml_file import check_tree, decode_toml, read_toml
from edgemae.spec.user_paths import expand_home

PATHS = (("data", "train"), ("data", "unlabelled"), ("data", "eval"), ("data", "calib"), ("scale", "views_folder"))
log = logging.getLogger("edgemae")
RENAMED = {"quantize.aware_when": "quantize.qat_when", "quantize.aware": "quantize.qat"}  # before 0.1.0: today


def load_plan(
    path: str | Path | None = None,
    overrides: tuple[str, ...] = (),
    flags: Mapping[str, Any] | None = None,
    count: Callable[[str], int] | None = None,
) -> Plan:
    """Return the plan of a TOML file (or the defaults), then flags {"a.b": value}, then `a.b=value` texts.

    Flags that are None were not given. Under all of them lies a preset; `count` tells how many images a place holds,
    and without it the preset `auto` is none. Raises PlanError with the path of the wrong field.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        tree = read_toml(Path(path), "plan file", PlanError)
    for key, value in (flags or {}).items():
        if value is not None:
            _put(tree, key, value)
    for text in overrides:
        key, sign, raw = text.partition("=")
        if not sign or not key.strip():
            raise PlanError(
                f"override '{text}' has no '='", expected="--set table.field=value", fix="e.g. --set distill.epochs=50"
            )
        _put(tree, key.strip().replace("-", "_"), _value(raw))
    for table, field in PATHS:
        node = tree.get(table)
        if isinstance(node, dict) and isinstance(path := node.get(field), str):
            node[field] = expand_home(path)
    return plan_from(_with_preset(tree, count))


def _with_preset(tree: dict[str, Any], count: Callable[[str], int] | None) -> dict[str, Any]:
    """Return the tree over its preset, which is chosen by the student's size and the number of images for `auto`."""
    plan = plan_from(tree)  # a wrong field is refused before images are counted
    name, labelled, shape = plan.preset, "", plan.student
    check_named("preset", name, ("auto", "none", *NAMES))
    if name == "none" or (name == "auto" and (count is None or not plan.data.train)):
        return tree
    if name == "auto":
        assert count is not None
        block = shape.width * (4 * shape.heads * shape.head_dim + 2 * round(shape.width * shape.mlp_ratio))
        images = count(plan.data.train)
        labelled = preset_for(shape.depth * block, images)
        name = preset_for(shape.depth * block, images + (count(plan.data.unlabelled) if plan.data.unlabelled else 0))
        log.info("preset %s%s: epochs, rates and augmentation; any field of the plan goes above it",
                 name, f", {labelled} with labels" if labelled != name else "")  # fmt: skip
    whole: dict[str, Any] = {"preset": name}
    for field, value in preset(name, labelled).items():
        _put(whole, field, value)
    return _merged(whole, {key: value for key, value in tree.items() if key != "preset"})


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def plan_from(tree: dict[str, Any]) -> Plan:
    """Return a plan from nested dictionaries, its fields and types checked. Raises PlanError."""
    check_tree(tree, "the plan", PlanError)
    _refuse_renamed(tree)
    try:
        plan = msgspec.convert(tree, Plan)
    except msgspec.ValidationError as error:
        raise PlanError(
            f"the plan is not valid: {_explain(str(error))}",
            expected="fields and types as in examples/plan.toml",
            fix="correct that field in the plan file, the flag or --set",
        ) from error
    return plan


def plan_tree(value: msgspec.Struct) -> dict[str, Any]:
    """Return a plan or one of its sections as plain dictionaries (TOML- and JSON-ready)."""
    tree: dict[str, Any] = msgspec.to_builtins(value)
    return tree


def _value(raw: str) -> Any:
    """Return a TOML value; a bare word is a string."""
    try:
        return decode_toml(f"value = {raw}")["value"]
    except ValueError:
        return raw


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise PlanError(
                f"override '{key}': '{parent}' is a value, not a table",
                expected="--set table.field=value",
                fix="see examples/plan.toml for the tables",
            )
    node[leaf] = value


def _explain(message: str) -> str:
    """Add the nearest known field to msgspec's `unknown field` message."""
    if "unknown field `" not in message:
        return message
    wrong = message.split("unknown field `")[1].split("`")[0]
    struct: type[msgspec.Struct] = Plan
    if "`$." in message:
        for part in message.split("`$.")[1].rstrip("`").split("."):
            struct = next(f.type for f in msgspec.structs.fields(struct) if f.name == part)
    return message + nearest(wrong, list(struct.__struct_fields__))


def _refuse_renamed(tree: dict[str, Any]) -> None:
    """Raise PlanError for a field of an earlier version, with its name today."""
    for old, new in RENAMED.items():
        table, _, field = old.rpartition(".")
        node = tree.get(table)
        if isinstance(node, dict) and field in node:
            raise PlanError(
                f"the plan has '{old}', a field of development versions of edgemae before 0.1.0",
                expected=f"'{new}'",
                fix=f"rename it to {new} in the plan file or in --set",
            )
