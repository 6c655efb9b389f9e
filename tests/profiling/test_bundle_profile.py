"""Profiles that a bundle carries: one a machine, at most eight, and the bundle stays whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgemae.device.model import load
from edgemae.profiling import bundle_profile as module
from edgemae.profiling.bundle_profile import keep
from edgemae.profiling.records import Profile
from edgemae.spec.bundle import open_bundle, write_bundle
from edgemae.spec.errors import StorageError
from tests.support.profiles import full_profile


def taken_on(cpu: str, p50: float = 5.0) -> Profile:
    record = full_profile(100)
    steady = msgspec.structs.replace(record.steady, p50_ms=p50)
    return msgspec.structs.replace(record, machine={"cpu": cpu, "threads": 2}, steady=steady)


@pytest.mark.parametrize("as_zip", [False, True])
def test_a_bundle_carries_its_profile(make_bundle: Callable[..., Path], tmp_path: Path, as_zip: bool) -> None:
    made = open_bundle(make_bundle())
    files = {name: made.read(name) for name in made.manifest.files}
    path = write_bundle(tmp_path / "b.edgemae", made.manifest, files, as_zip=as_zip)
    before = open_bundle(path)
    record = taken_on("a board")
    page = keep(path, record)
    after = open_bundle(path)  # every hash is checked again
    (row,) = after.manifest.profiles
    assert (row.device, row.p50_ms, row.verdict) == ("a board", 5.0, "NOISY")
    assert msgspec.json.decode(after.read(row.file), type=Profile) == record
    assert b"a board" in after.read(page)
    assert after.manifest.previous == before.sha256
    assert after.manifest.variants == before.manifest.variants
    with load(path) as model:
        assert model.check.frames == len(after.manifest.golden.frames)


def test_the_newest_of_a_machine_and_eight_machines(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    path = make_bundle()
    for number in range(10):
        keep(path, taken_on(f"board {number}"))
    keep(path, taken_on("board 5", p50=4.0))
    after = open_bundle(path)
    assert [row.device for row in after.manifest.profiles] == [f"board {n}" for n in (2, 3, 4, 6, 7, 8, 9, 5)]
    assert after.manifest.profiles[-1].p50_ms == 4.0
    assert len([name for name in after.manifest.files if name.startswith("profiles/")]) == 16


def test_an_invalid_profile_replaces_no_better_one(
    make_bundle: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = make_bundle()
    invalid = msgspec.structs.replace(taken_on("a board"), verdict="INVALID", reasons=("a clock jumped",))
    first = keep(path, invalid)  # none is there yet: this one says at least why
    assert keep(path, taken_on("a board", p50=4.0)) == first
    assert keep(path, invalid) == first
    (row,) = open_bundle(path).manifest.profiles
    assert (row.verdict, row.p50_ms) == ("NOISY", 4.0)
    assert "the NOISY profile" in caplog.text
    assert "INVALID (a clock jumped)" in caplog.text


def test_each_scenario_of_a_machine_has_its_own(make_bundle: Callable[..., Path]) -> None:
    path = make_bundle()
    camera = taken_on("a board")
    single = msgspec.structs.replace(camera, scenario="single")
    assert keep(path, camera) == keep(path, single).replace(".html", "-camera.html")
    assert [row.scenario for row in open_bundle(path).manifest.profiles] == ["camera", "single"]


def test_the_report_links_every_profile(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    made = open_bundle(make_bundle())
    files = {name: made.read(name) for name in made.manifest.files} | {"report.html": b"<h1>a</h1>%s%s<p>b</p>" % tuple(
        mark.encode() for mark in module.PLACE)}  # fmt: skip
    path = write_bundle(tmp_path / "b.edgemae", made.manifest, files, as_zip=True)
    for board in ("one <b>", "two", "one <b>"):
        page = keep(path, taken_on(board))
    report = open_bundle(path).read("report.html").decode()
    assert report.startswith("<h1>a</h1>")
    assert report.endswith("<p>b</p>")
    assert report.count("<a href=") == 2
    assert f'<a href="{page}">one &lt;b&gt;</a>' in report
    assert report.index("one &lt;b&gt;") < report.index(">two<")  # the newest first


def test_the_page_of_a_compile_has_a_place_for_profiles() -> None:
    template = Path(module.__file__).parents[1] / "evaluation/report/report.html.j2"
    assert "".join(module.PLACE) in template.read_text()


def test_a_bundle_that_cannot_be_written_stays_as_it_is(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_bundle()
    before = path.read_bytes()
    monkeypatch.setenv("EDGEMAE_CACHE_DIR", str(tmp_path / "cache"))

    def full(*_: object, **__: object) -> None:
        raise StorageError("no room", expected="room", fix="make some")

    monkeypatch.setattr(module, "amend_bundle", full)
    page = Path(keep(path, taken_on("a board")))
    assert path.read_bytes() == before
    assert page.is_relative_to(tmp_path / "cache")
    assert "a board" in page.read_text()
    assert page.with_suffix(".json").is_file()
    assert "could not be put into" in caplog.text
