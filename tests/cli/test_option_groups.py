"""Records of options: resolved into a plan, refused where they contradict each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemae.cli.option_groups import (
    PlanFlags,
    ProfileFlags,
    TeacherFlags,
)
from edgemae.spec.errors import InputError, PlanError, StorageError


def test_flags_go_above_the_file_and_set_above_flags(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text("seed = 1\nworkers = 3\n[data]\ntrain = 'a'\neval = 'b'\n")
    flags = TeacherFlags(
        plan=tmp_path / "plan.toml", data="c", seed=2, set_=["seed=9"], teacher_heads=4, teacher_decoder_heads=2
    )
    plan = flags.resolve(data__calib="d", gates__p90_ms=None)
    assert (plan.data.train, plan.data.eval, plan.data.calib) == ("c", "b", "d")
    assert (plan.seed, plan.workers, plan.teacher_heads, plan.teacher_decoder_heads) == (9, 3, 4, 2)
    with pytest.raises(PlanError, match="Did you mean 'epochs'"):
        PlanFlags(set_=["distill.epoch=1"]).resolve()


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        (ProfileFlags(remote_python="python3"), "no machine is named"),
        (ProfileFlags(remote="me@device", trace=Path("t.json")), "--trace writes a file where the runs are"),
    ],
)
def test_what_cannot_be_done_elsewhere_is_refused(flags: ProfileFlags, value: str) -> None:
    with pytest.raises(InputError, match=value):
        flags.elsewhere(Path("b.edgemae"), None)  # type: ignore[arg-type]


def test_a_page_without_a_place_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        ProfileFlags(html=tmp_path / "file" / "page.html").check()
    ProfileFlags(html=tmp_path / "page.html").check()
    assert not (tmp_path / "page.html").exists()
