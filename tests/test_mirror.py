"""A module has its tests at the mirrored path: `edgemae/a/b.py` in `tests/a/test_b.py`, or in the file named here.

    python tests/test_mirror.py

prints the entries that TESTED_ELSEWHERE lacks.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHORT = 60  # lines; a module up to that length is tested through those that use it
# module: (file with its tests, why they stand there)
TESTED_ELSEWHERE: dict[str, tuple[str, str]] = {
    "edgemae/__init__.py": ("tests/test_door.py", "the package itself is the door"),
    "edgemae/cli/build_commands.py": ("tests/cli/test_commands.py", "one test of every command and of its options"),
    "edgemae/cli/bundle_commands.py": ("tests/cli/test_commands.py", "one test of every command and of its options"),
    "edgemae/cli/gallery_commands.py": ("tests/retrieval/test_folders.py", "the commands run whole, over folders"),
    "edgemae/data/image_check.py": ("tests/data/test_image_set.py", "a folder is read and checked in one pass"),
    "edgemae/device/camera/frame_source.py": (
        "tests/device/camera/test_supervisor.py",
        "a record, a protocol and an error, seen through sources",
    ),
    "edgemae/device/camera/isolated_worker.py": ("tests/device/camera/test_isolated.py", "the child half of one pair"),
    "edgemae/device/hardware/sensors.py": (
        "tests/profiling/test_power.py",
        "planted sysfs trees serve sensors and what is measured with them",
    ),
    "edgemae/distill/elastic_training.py": ("tests/distill/test_elastic.py", "shares its spaces and students"),
    "edgemae/distill/recipe.py": ("tests/distill/test_recipes.py", "one table over all recipes"),
    "edgemae/distill/recipes/feature.py": ("tests/distill/test_recipes.py", "one table over all recipes"),
    "edgemae/distill/recipes/relation.py": ("tests/distill/test_recipes.py", "one table over all recipes"),
    "edgemae/distill/recipes/relation_full.py": ("tests/distill/test_recipes.py", "one table over all recipes"),
    "edgemae/doctor/software.py": ("tests/doctor/test_doctor.py", "the findings of one machine, read as a whole"),
    "edgemae/evaluation/report/plot_style.py": ("tests/evaluation/report/test_plots.py", "the look shows in the plots"),
    "edgemae/export/lint_qdq.py": (
        "tests/export/test_lint.py",
        "one table of planted mistakes serves both groups of rules",
    ),
    "edgemae/pipeline/candidate_graphs.py": ("tests/pipeline/test_compile.py", "real graphs need a compile"),
    "edgemae/pipeline/demo.py": ("tests/end_to_end/test_demo.py", "the demo runs whole"),
    "edgemae/pipeline/packaging.py": ("tests/pipeline/test_compile.py", "a bundle is packed at the end of a compile"),
    "edgemae/pipeline/preflight.py": (
        "tests/pipeline/test_compile.py",
        "one table of what is refused before a compile",
    ),
    "edgemae/pipeline/scoring.py": (
        "tests/pipeline/test_compile.py",
        "real scores need a compile; its cache is counted in test_stage_files",
    ),
    "edgemae/pipeline/single_stage.py": ("tests/cli/test_commands.py", "each verb runs its stage"),
    "edgemae/profiling/cold_start.py": ("tests/profiling/test_profiler.py", "a cold start needs a real bundle"),
    "edgemae/profiling/compare/ab_worker.py": (
        "tests/profiling/compare/test_ab_test.py",
        "runs only as the child of an A/B test",
    ),
    "edgemae/profiling/compare/graph_benchmark.py": (
        "tests/pipeline/test_benchmark.py",
        "the job that a compile sends",
    ),
    "edgemae/profiling/output/charts.py": ("tests/profiling/output/test_html_report.py", "drawn on the page"),
    "edgemae/profiling/output/rows.py": ("tests/profiling/test_profiler.py", "the wording of both renderers"),
    "edgemae/profiling/output/svg.py": ("tests/profiling/output/test_html_report.py", "drawn on the page"),
    "edgemae/profiling/output/text_report.py": ("tests/profiling/test_profiler.py", "printed for a real profile"),
    "edgemae/profiling/records.py": ("tests/profiling/test_profiler.py", "a profile is written, read and refused"),
    "edgemae/profiling/request.py": (
        "tests/profiling/test_profiler.py",
        "one table of what is refused before the runs",
    ),
    "edgemae/spec/manifest.py": ("tests/spec/test_bundle.py", "types alone: they are written and read as a bundle"),
    "edgemae/spec/container.py": ("tests/spec/test_bundle.py", "a container is only ever read as a bundle"),
    "edgemae/spec/graph.py": ("tests/device/test_preprocess.py", "records that preprocessing gives their meaning"),
    "edgemae/spec/plan_schema.py": ("tests/spec/test_plan_loading.py", "records without functions"),
    "edgemae/spec/report.py": ("tests/evaluation/report/test_report.py", "records without functions"),
}


def long_modules(root: Path) -> list[str]:
    """Return the modules of the package with more than SHORT lines, as paths from `root`."""
    paths = sorted((root / "edgemae").rglob("*.py"))
    return [path.relative_to(root).as_posix() for path in paths if len(path.read_text().splitlines()) > SHORT]


def mirrored(module: str) -> str:
    """Return the path of the test file that belongs to a module: that of the room for its `__init__`."""
    path = Path(module)
    name = path.parent.name if path.stem == "__init__" else path.stem.lstrip("_")
    return (Path("tests", *path.parts[1:-1]) / f"test_{name}.py").as_posix()


def missing(root: Path, elsewhere: dict[str, tuple[str, str]]) -> list[str]:
    """Return the long modules without a test file of their name and without an entry."""
    return [name for name in long_modules(root) if not (root / mirrored(name)).is_file() and name not in elsewhere]


def faults(root: Path, elsewhere: dict[str, tuple[str, str]]) -> list[str]:
    """Return a line for each module without tests, and for each entry that is wrong or not needed."""
    lines = [f"{name}: there is no {mirrored(name)}, and no entry" for name in missing(root, elsewhere)]
    known = set(long_modules(root))
    for module, (test, reason) in elsewhere.items():
        if module not in known:
            lines.append(f"{module}: an entry for no module of more than {SHORT} lines")
        elif (root / mirrored(module)).is_file():
            lines.append(f"{module}: an entry, and {mirrored(module)} exists")
        if not (root / test).is_file():
            lines.append(f"{module}: its entry names {test}, which does not exist")
        if not reason:
            lines.append(f"{module}: its entry gives no reason")
    return lines


def test_each_module_has_tests_of_its_name() -> None:
    assert faults(ROOT, TESTED_ELSEWHERE) == []


LONG = "x = 1\n" * (SHORT + 1)
ENTRY = {"edgemae/room/one.py": ("tests/room/test_other.py", "one table for both")}
# name: (files, entries, the fault)
PLANTED = {
    "no tests": ({"edgemae/room/one.py": LONG}, {}, "edgemae/room/one.py: there is no tests/room/test_one.py"),
    "no tests of a room": ({"edgemae/room/__init__.py": LONG}, {}, "there is no tests/room/test_room.py"),
    "tests in the wrong room": ({"edgemae/room/one.py": LONG, "tests/test_one.py": ""}, {}, "and no entry"),
    "no such file": ({"edgemae/room/one.py": LONG}, ENTRY, "names tests/room/test_other.py, which does not exist"),
    "tests have come": (
        {"edgemae/room/one.py": LONG, "tests/room/test_one.py": "", "tests/room/test_other.py": ""},
        ENTRY,
        "an entry, and tests/room/test_one.py exists",
    ),
    "grown short": ({"edgemae/room/one.py": "", "tests/room/test_other.py": ""}, ENTRY, "an entry for no module"),
    "no module": ({"edgemae/room/two.py": "", "tests/room/test_other.py": ""}, ENTRY, "an entry for no module"),
    "no reason": (
        {"edgemae/room/one.py": LONG, "tests/room/test_other.py": ""},
        {"edgemae/room/one.py": ("tests/room/test_other.py", "")},
        "gives no reason",
    ),
}


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name: str, tmp_path: Path) -> None:
    files, entries, fault = PLANTED[name]
    plant(tmp_path, files)
    (line,) = faults(tmp_path, entries)
    assert fault in line


def test_what_is_right_has_no_fault(tmp_path: Path) -> None:
    own = {"edgemae/room/two.py": LONG, "tests/room/test_two.py": "", "edgemae/room/short.py": ""}
    plant(tmp_path, {"edgemae/room/one.py": LONG, "tests/room/test_other.py": ""} | own)
    assert faults(tmp_path, ENTRY) == []


if __name__ == "__main__":
    for name in missing(ROOT, TESTED_ELSEWHERE):
        print(f'    "{name}": ("", ""),')
