"""Plans: every field has a default, overrides come in order, and a wrong field is named by its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgemae.spec.errors import PlanError
from edgemae.spec.graph import Graph, IoContract, PixelContract, Step
from edgemae.spec.plan_loading import PATHS, load_plan, plan_from, plan_tree
from edgemae.spec.plan_schema import DistillPlan, Plan
from edgemae.spec.report import Report, StageScore


def test_the_defaults_are_a_valid_plan() -> None:
    assert load_plan() == Plan() == plan_from({})
    assert plan_from(plan_tree(Plan())) == Plan()


def test_the_command_line_beats_the_file_which_beats_the_default(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('name = "shirts"\nseed = 3\n[distill]\nepochs = 7\n[distill.finetune]\nepochs = 2\n')
    plan = load_plan(path, ("distill.epochs=9", "distill.epochs=11", "gates.p90-ms=4.5", "data.train=photos"))
    assert (plan.name, plan.seed, plan.distill.epochs, plan.distill.finetune.epochs) == ("shirts", 3, 11, 2)
    assert (plan.gates.p90_ms, plan.data.train) == (4.5, "photos")
    assert plan.distill.lr == DistillPlan().lr


def test_the_home_folder_is_found_in_every_path_of_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    texts = tuple(f"{table}.{field}=~/x" for table, field in PATHS)
    plan = load_plan(overrides=texts)
    assert {getattr(getattr(plan, table), field) for table, field in PATHS} == {"/home/me/x"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("quantize.smooth_alphas=[-1.0, 0.8]", (-1.0, 0.8)),
        ('quantize.schemes=["static"]', ("static",)),
        ("pretrain.flip=false", False),
        ("pretrain.lr=1e-3", 1e-3),
        ("name=two words", "two words"),
        ("data.train=a=b", "a=b"),
    ],
)
def test_an_override_is_a_toml_value_or_a_bare_word(text: str, value: Any) -> None:
    found: Any = load_plan(overrides=(text,))
    for part in text.split("=")[0].split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distill.epochs", "has no '='"),
        ("=3", "has no '='"),
        ("name.first=x", "unknown|str|object"),
        ("distil.epochs=3", "Did you mean 'distill'"),
        ("distill.epoch=3", "Did you mean 'epochs'"),
        ("distill.finetune.warmup=3", "Did you mean 'warmup_fraction'"),
        ("distill.epochs=many", r"distill\.epochs"),
        ("distill.zzzz=3", "unknown field `zzzz`"),
    ],
)
def test_a_wrong_override_is_named(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message) as error:
        load_plan(overrides=(text,))
    assert error.value.fix


@pytest.mark.parametrize("key", ["quantize.aware_when", "quantize.aware.epochs"])
def test_a_field_of_an_earlier_version_names_its_successor(key: str) -> None:
    with pytest.raises(PlanError) as error:
        load_plan(overrides=(f"{key}=3",))
    old = "quantize.aware_when" if key.endswith("when") else "quantize.aware"
    assert f"'{old}'" in error.value.what
    assert "before 0.1.0" in error.value.what
    assert old.replace("aware", "qat") in error.value.fix


def test_an_override_below_a_value_is_refused() -> None:
    with pytest.raises(PlanError, match="'name' is a value, not a table"):
        load_plan(overrides=("name=x", "name.first=y"))


def test_files_that_are_no_plan(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"none\.toml"):
        load_plan(tmp_path / "none.toml")
    for data in (b"[distill", b"\xff\xfe"):
        (tmp_path / "bad.toml").write_bytes(data)
        with pytest.raises(PlanError, match="not valid TOML"):
            load_plan(tmp_path / "bad.toml")


def test_values_are_immutable_and_records_are_json_ready() -> None:
    with pytest.raises(AttributeError):
        Plan().seed = 1  # type: ignore[misc]
    score = StageScore(stage="int8", top1=0.9, n=10, params=1, macs=2, size_bytes=3)
    report = Report(name="x", target="y", created="now", stages=(score,), engines=(), gates=())
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


def test_a_graph_knows_its_size_and_its_onnx() -> None:
    graph = Graph(files={"model.onnx": b"abc"}, io=IoContract(inputs=(), outputs=()), history=(Step(stage="x"),))
    assert (graph.onnx, graph.size_bytes, graph.precision) == (b"abc", 3, "fp32")
    pair = Graph(files={"model.xml": b"ab", "model.bin": b"c"}, io=graph.io)
    assert pair.size_bytes == 3
    assert PixelContract(image_px=8).channels == 3
