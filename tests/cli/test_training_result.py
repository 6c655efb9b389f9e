"""What a training verb says of what it made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgemae.cli.training_result import print_training_result

CURVES = {
    "distill": [{"epoch": 1.0, "loss": 2.0}],
    "elastic": [{"epoch": 1.0, "validation": 0.5}, {"epoch": 2.0, "validation": 0.75}, {"epoch": 3.0}],
}
ROWS = [{"depth": 2, "heads": 3, "mlp": 96, "image_px": 24, "macs": 4_600_000, "params": 9, "top1": 0.5}]


def test_a_model_comes_with_its_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "stage" / "student.safetensors"
    made.parent.mkdir()
    made.write_bytes(b"weights")
    (made.parent / "curves.json").write_text(json.dumps(CURVES))
    (made.parent / "curve.json").write_text(json.dumps(ROWS))
    print_training_result("student", made, tmp_path, "edgemae compile {0} --data 'train-{000..146}.tar'", json=False)
    final = tmp_path / "student.safetensors"
    assert final.read_bytes() == b"weights"
    assert capsys.readouterr().out.splitlines() == [
        f"student: {final}",
        "top-1: 75.0 % of the evaluation images",
        "  depth 2  heads 3  MLP 96  24 px  4.6 M MACs  top-1 50.0 %",
        f"next: edgemae compile {final} --data 'train-{{000..146}}.tar'",
    ]
    print_training_result("student", made, tmp_path, "", json=True)
    assert json.loads(capsys.readouterr().out) == {"student": str(final), "top1": 0.75, "sub_networks": ROWS}


def test_a_made_model_lies_at_the_top_and_the_next_command_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = tmp_path / "stages" / "student-1" / "student.safetensors"
    stage.parent.mkdir(parents=True)
    stage.write_bytes(b"weights")
    print_training_result("student", stage, tmp_path, "edgemae compile {0} --data d", json=False)
    final = tmp_path / "student.safetensors"
    assert final.read_bytes() == b"weights"
    assert capsys.readouterr().out == f"student: {final}\nnext: edgemae compile {final} --data d\n"
    print_training_result("student", stage, tmp_path, "", json=True)
    assert json.loads(capsys.readouterr().out) == {"student": str(final)}
