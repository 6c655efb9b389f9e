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
    "edgemae/data/decode_worker.py": ("tests/data/test_loader.py", "decoding is what the loader's workers do"),
    "edgemae/data/image_bytes.py": (
        "tests/data/test_shards.py",
        "the ways of a shard: its tar, its index and the bytes of its images",
    ),
    "edgemae/data/image_check.py": ("tests/data/test_image_set.py", "a folder is read and checked in one pass"),
    "edgemae/data/shard_index.py": (
        "tests/data/test_shards.py",
        "the ways of a shard: its tar, its index and the bytes of its images",
    ),
    "edgemae/data/tar_reader.py": (
        "tests/data/test_shards.py",
        "the ways of a shard: its tar, its index and the bytes of its images",
    ),
    "edgemae/data/validation.py": ("tests/data/test_image_set.py", "a folder is read and checked in one pass"),
    "edgemae/deploy/remote_agent.py": ("tests/deploy/test_ssh.py", "both ends of one connection"),
    "edgemae/deploy/ssh_errors.py": ("tests/deploy/test_ssh.py", "both ends of one connection"),
    "edgemae/device/camera/frame_source.py": (
        "tests/device/camera/test_camera.py",
        "the parts of a camera, behind its one class",
    ),
    "edgemae/device/camera/isolated_worker.py": (
        "tests/device/camera/test_camera.py",
        "the parts of a camera, behind its one class",
    ),
    "edgemae/device/camera/mailbox.py": (
        "tests/device/camera/test_camera.py",
        "the parts of a camera, behind its one class",
    ),
    "edgemae/device/camera/multi_camera.py": ("tests/device/test_stream.py", "a stream of more than one camera"),
    "edgemae/device/camera/reader.py": (
        "tests/device/camera/test_camera.py",
        "the parts of a camera, behind its one class",
    ),
    "edgemae/device/camera/sources.py": (
        "tests/device/camera/test_camera.py",
        "the parts of a camera, behind its one class",
    ),
    "edgemae/device/camera/supervisor.py": (
        "tests/device/camera/test_camera.py",
        "the parts of a camera, behind its one class",
    ),
    "edgemae/device/engines/__init__.py": ("tests/device/test_engines.py", "one contract for all engines"),
    "edgemae/device/engines/_cuda.py": ("tests/device/test_engines.py", "one contract for all engines"),
    "edgemae/device/engines/_external_data.py": ("tests/device/test_engines.py", "one contract for all engines"),
    "edgemae/device/engines/_tensorrt_layers.py": ("tests/device/test_engines.py", "one contract for all engines"),
    "edgemae/device/engines/onnxruntime.py": ("tests/device/test_engines.py", "one contract for all engines"),
    "edgemae/device/engines/openvino.py": ("tests/device/test_engines.py", "one contract for all engines"),
    "edgemae/device/engines/tensorrt.py": ("tests/device/test_engines.py", "one contract for all engines"),
    "edgemae/device/hardware/fingerprint.py": (
        "tests/profiling/timing/test_timer.py",
        "a measurement and what disturbs it",
    ),
    "edgemae/device/hardware/sensors.py": (
        "tests/profiling/test_power.py",
        "sensors of power, on files that stand for sysfs",
    ),
    "edgemae/device/session.py": ("tests/device/test_engine_cache.py", "a session is opened through its cache"),
    "edgemae/distill/elastic_training.py": ("tests/distill/test_elastic.py", "an elastic training whole"),
    "edgemae/distill/recipe.py": ("tests/distill/test_recipes.py", "one contract for all recipes"),
    "edgemae/distill/recipes/feature.py": ("tests/distill/test_recipes.py", "one contract for all recipes"),
    "edgemae/distill/recipes/relation.py": ("tests/distill/test_recipes.py", "one contract for all recipes"),
    "edgemae/distill/recipes/relation_full.py": ("tests/distill/test_recipes.py", "one contract for all recipes"),
    "edgemae/doctor/software.py": ("tests/doctor/test_doctor.py", "the lines of one doctor's page"),
    "edgemae/evaluation/report/plot_style.py": (
        "tests/evaluation/report/test_plots.py",
        "how a plot looks shows in the plots",
    ),
    "edgemae/export/lint_qdq.py": (
        "tests/export/test_lint.py",
        "one table of planted mistakes for both groups of rules",
    ),
    "edgemae/pipeline/candidate_graphs.py": (
        "tests/pipeline/test_selection.py",
        "candidates are what is selected from",
    ),
    "edgemae/pipeline/demo.py": ("tests/end_to_end/test_demo.py", "the demo runs whole"),
    "edgemae/pipeline/packaging.py": ("tests/pipeline/test_compile.py", "a step of a whole compile"),
    "edgemae/pipeline/plan_rules.py": ("tests/pipeline/test_compile.py", "a step of a whole compile"),
    "edgemae/pipeline/preflight.py": ("tests/pipeline/test_compile.py", "a step of a whole compile"),
    "edgemae/pipeline/single_stage.py": ("tests/pipeline/test_compile.py", "a step of a whole compile"),
    "edgemae/profiling/cold_start.py": (
        "tests/profiling/test_profiler.py",
        "a profile whole, from its start to its page",
    ),
    "edgemae/profiling/compare/ab_worker.py": ("tests/profiling/compare/test_ab_test.py", "both sides of a comparison"),
    "edgemae/profiling/compare/baseline.py": ("tests/profiling/compare/test_ab_test.py", "both sides of a comparison"),
    "edgemae/profiling/compare/graph_benchmark.py": (
        "tests/pipeline/test_benchmark.py",
        "the benchmark of a compile measures graphs",
    ),
    "edgemae/profiling/layers/matmul_onnx.py": (
        "tests/profiling/layers/test_layer_profile.py",
        "a profile by layers whole",
    ),
    "edgemae/profiling/layers/module_names.py": (
        "tests/profiling/layers/test_layer_profile.py",
        "a profile by layers whole",
    ),
    "edgemae/profiling/layers/roofline.py": (
        "tests/profiling/layers/test_layer_profile.py",
        "a profile by layers whole",
    ),
    "edgemae/profiling/output/charts.py": ("tests/profiling/output/test_html_report.py", "charts are read in the page"),
    "edgemae/profiling/output/svg.py": ("tests/profiling/output/test_html_report.py", "charts are read in the page"),
    "edgemae/profiling/output/text_report.py": (
        "tests/profiling/test_profiler.py",
        "a profile whole, from its start to its page",
    ),
    "edgemae/profiling/records.py": ("tests/profiling/test_profiler.py", "a profile whole, from its start to its page"),
    "edgemae/profiling/soak.py": ("tests/profiling/test_scenarios.py", "a soak is a long scenario"),
    "edgemae/profiling/timing/interference.py": (
        "tests/profiling/timing/test_timer.py",
        "a measurement and what disturbs it",
    ),
    "edgemae/profiling/timing/system_monitor.py": (
        "tests/profiling/timing/test_timer.py",
        "a measurement and what disturbs it",
    ),
    "edgemae/retrieval/feature_file.py": ("tests/retrieval/test_gallery.py", "the file of a gallery"),
    "edgemae/spec/container.py": ("tests/spec/test_bundle.py", "a container holds a bundle"),
    "edgemae/spec/graph.py": (
        "tests/device/test_preprocess.py",
        "records: the pixel contract is what preprocessing follows",
    ),
    "edgemae/spec/plan_schema.py": ("tests/spec/test_plan_loading.py", "records: what is checked is how they are read"),
    "edgemae/spec/report.py": ("tests/evaluation/report/test_report.py", "records: written and read back there"),
    "edgemae/train/job.py": ("tests/train/test_loop.py", "a job is what the loop runs"),
    "edgemae/viewer/terminal.py": ("tests/viewer/test_live_stats.py", "one display of live statistics"),
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
