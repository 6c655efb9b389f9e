"""The figures of a report as text."""

from __future__ import annotations

import msgspec
import pytest

from edgemae.evaluation.report.tables import (
    Table,
    calibration_errors,
    class_changes,
    class_note,
    classes_table,
    confidence_text,
    count,
    engines_table,
    headline,
    mib,
    milliseconds,
    number,
    percent,
    signed,
    stages_table,
    verdict,
)
from edgemae.spec.plan_schema import GatePlan
from tests.evaluation.samples import report


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (percent(0.98765), "98.8 %"),
        (percent(None), "–"),
        (count(999), "999"),
        (count(5_510_000), "5.51 M"),
        (count(999_600), "1 M"),
        (mib(1_910_000), "1.82 MiB"),
        (mib(2048), "2.0 KiB"),
        (milliseconds(0.1234), "0.123 ms"),
        (milliseconds(4.916), "4.92 ms"),
        (milliseconds(9.996), "10.0 ms"),
        (milliseconds(123.4), "123 ms"),
        (signed(-0.001, 2), "0.00"),
        (signed(1.5, 1), "+1.5"),
        (number(True), "yes"),
        (number(None), "–"),
        (number(0.123456), "0.1235"),
        (number(7), "7"),
    ],
)
def test_numbers_as_text(text: str, wanted: str) -> None:
    assert text == wanted


def test_verdict_sentence() -> None:
    assert verdict(report())[0] == "missed"
    assert verdict(report(gates=GatePlan(size_mib=50.0))) == ("passed", "The limit was shown to be met.")
    assert verdict(report(gates=GatePlan()))[0] == "none"


def first_marked(table: Table) -> tuple[str, ...]:
    return next(row for row, mark in zip(table.rows, table.marks, strict=True) if mark)


def test_the_headline_repeats_the_tables() -> None:
    lines = {name: (value, basis) for name, value, basis in headline(report())}
    shipped, fastest = (first_marked(table(report())) for table in (stages_table, engines_table))
    top1, interval = lines["Top-1"]
    assert shipped[1] == f"{top1} ({interval.partition(',')[0]})"
    drop, basis = lines["Drop in points"]
    assert shipped[2] == f"{drop} ({basis.removeprefix('paired, ')})"
    assert lines["Latency p50"][0] == fastest[2]
    assert fastest[5].startswith(lines["Speed-up"][0])
    assert lines["Size"][0] == shipped[9]


def test_without_labels_the_headline_is_agreement() -> None:
    names = [name for name, _, _ in headline(report(labelled=False))]
    assert "Agreement" in names
    assert not {"Top-1", "Drop in points"} & set(names)


def test_each_cell_of_the_class_table_has_a_direction_and_a_strength() -> None:
    rows = class_changes(report())
    assert [len(row) + 1 for row in rows] == [len(row) for row in classes_table(report()).rows]
    assert all(way in ("up", "down") and 0 <= strength <= 1 for row in rows for way, strength in row)


def test_notes_on_images_and_confidence() -> None:
    bare = msgspec.structs.replace(report(), stages=())
    assert class_note(bare) == ""
    assert calibration_errors(bare) == []
    images = report().stages[-1].n / len(classes_table(report()).rows)
    assert f"{100 / images:.1f} points" in class_note(report())
    assert confidence_text(report()) == "95 %"
    assert [stage for stage, _ in calibration_errors(report())] == [stage.stage for stage in report().stages]
