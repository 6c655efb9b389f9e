"""The command line as people and scripts use it: every verb, every usual mistake, and what lands on which stream."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import edgemae as package
from tests.support.tiny_job import Job, Ran, edgemae, meta_pth, parts, stage, write_shapes

BUILD_ONLY = ("torch", "torch_pruning", "onnx", "onnxscript", "nncf", "pandas", "scipy", "sklearn", "matplotlib")


def refused(ran: Ran, code: int, *said: str) -> None:
    """Assert that a command ended with one three-part message, this exit code, and nothing on stdout."""
    assert ran.code == code, ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    lines = ran.err.splitlines()
    (start,) = (i for i, line in enumerate(lines) if line.startswith("error: "))
    message = "\n".join(lines[start:])
    assert all(parts(message))
    for text in said:
        assert text in message


@pytest.fixture
def broken_bundle(job: Job, compiled: Ran, tmp_path: Path) -> Callable[[Callable[[bytes], bytes]], Path]:
    def make(spoil: Callable[[bytes], bytes]) -> Path:
        path = tmp_path / "broken.edgemae"
        path.write_bytes(spoil(job.bundle.read_bytes()))
        return path

    return make


# ------------------------------------------------------------------------------------------------ twelve mistakes


def test_mistake_1_a_missing_folder(job: Job, tmp_path: Path) -> None:
    work = ("compile", "--data", tmp_path / "nowhere", "--output", tmp_path / "out", "--target", job.target)
    refused(edgemae(*work), 2, f"image folder '{tmp_path / 'nowhere'}' does not exist")
    assert not (tmp_path / "out").exists()


def test_mistake_2_one_class_only(job: Job, tmp_path: Path) -> None:
    write_shapes(tmp_path / "one", 40, seed=1, classes=("circle",))
    work = ("compile", "--data", tmp_path / "one", "--output", tmp_path / "out", "--plan", job.plan)
    refused(edgemae(*work, "--target", job.target), 2, "has one class only (circle)")


@pytest.mark.parametrize(
    ("content", "why"), [(b"", "empty file"), (b"I am no image", "it is no JPEG, PNG, WebP or BMP")]
)
def test_mistakes_3_and_4_files_that_are_no_images(content: bytes, why: str, job: Job, tmp_path: Path) -> None:
    """Beside good images they are skipped, named and counted; alone they are an error."""
    (tmp_path / "alone").mkdir()
    shutil.copytree(job.train, tmp_path / "train")
    for folder in (tmp_path / "alone", tmp_path / "train" / "circle"):
        (folder / "broken.jpg").write_bytes(content)
    work = ("compile", "--plan", job.plan, "--target", job.target, "--output", tmp_path / "out", "--dry-run")
    refused(edgemae(*work, "--data", tmp_path / "alone"), 2, "no readable image", "1 corrupt file")
    ran = edgemae(*work, "--data", tmp_path / "train", "--json")
    assert ran.code == 0
    assert f"broken.jpg: {why}" in ran.err
    assert "1 of 49 files" in ran.err
    assert ran.json["data"]["skipped"]["count"] == 1


def test_mistake_5_a_teacher_that_does_not_tell_its_heads(job: Job, tmp_path: Path) -> None:
    source = meta_pth(tmp_path / "mae.pth")
    for verb in ("compile", "distill", "finetune"):
        ran = edgemae(verb, source, *job.work, "--output", tmp_path / "out")
        refused(ran, 2, "does not say how many attention heads it has", "--teacher-heads")
    refused(edgemae("inspect", source), 2, "--teacher-heads")


@pytest.mark.parametrize(
    ("name", "hint"), [("toaster", "run `edgemae targets`"), ("laptop-x86-vni", "laptop-x86-vnni")]
)
def test_mistakes_6_and_7_unknown_and_mistyped_targets(name: str, hint: str, job: Job, tmp_path: Path) -> None:
    refused(edgemae("compile", *job.work, "--output", tmp_path, "--target", name), 2, f"'{name}'", hint)
    if name != "toaster":
        assert "Did you mean 'laptop-x86-vnni'" in edgemae("demo", "--output", tmp_path, "--target", name).err


@pytest.mark.parametrize("how", ["the folder itself", "a copy under other names"])
def test_mistake_8_calibration_on_the_evaluation_images(how: str, job: Job, tmp_path: Path) -> None:
    calibration = job.val
    if how != "the folder itself":
        calibration = tmp_path / "calibration"
        calibration.mkdir()
        for i, path in enumerate(sorted(job.val.rglob("*.png"))):
            shutil.copy(path, calibration / f"renamed-{i}.png")
    work = ("compile", *job.work, "--calib-data", calibration, "--target", job.target, "--output", tmp_path / "out")
    refused(edgemae(*work), 2, "24 images", "also in the evaluation set")


def test_mistake_9_a_truncated_bundle(broken_bundle: Callable[[Callable[[bytes], bytes]], Path]) -> None:
    path = broken_bundle(lambda data: data[: len(data) * 2 // 3])
    for verb in (("verify",), ("inspect",), ("profile", "--runs", 44), ("finalize",)):
        refused(edgemae(verb[0], path, *verb[1:]), 2)
    assert edgemae("verify", path, "--json").json["error"]["code"] == "bundle-corrupt"


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.97])
def test_mistake_10_one_flipped_bit(place: float, broken_bundle: Callable[[Callable[[bytes], bytes]], Path]) -> None:
    def flip(data: bytes) -> bytes:
        at = int(len(data) * place)
        return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]

    refused(edgemae("run", broken_bundle(flip), "nowhere"), 2)


def uninstall(module: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a module be missing, in this process and in its children."""
    (folder / "gone").mkdir(exist_ok=True)
    (folder / "gone" / f"{module}.py").write_text(f"raise ModuleNotFoundError('No module', name='{module}')\n")
    monkeypatch.setenv("PYTHONPATH", str(folder / "gone"))
    monkeypatch.setitem(sys.modules, module, None)


def test_mistake_11_an_engine_that_is_not_installed(
    job: Job, compiled: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninstall("openvino", tmp_path, monkeypatch)
    fix = "pip install 'edgemae[openvino]'"
    refused(edgemae("verify", job.bundle, "--engine", "openvino"), 5, "'openvino' is not installed", fix)
    assert edgemae("verify", job.bundle).code == 0, "auto takes the next variant"
    work = ("compile", *job.work, "--target", job.target, "--output", tmp_path / "out")
    refused(edgemae(*work), 5, "'openvino' is not installed, and compiling needs it")
    assert not (tmp_path / "out").exists(), "found out before the first step"
    refused(edgemae("verify", job.bundle, "--engine", "opnvino"), 2, "Did you mean 'openvino'")
    refused(edgemae("verify", job.bundle, "--engine", "tensorrt"), 2, "has nothing for engine 'tensorrt'")


@contextlib.contextmanager
def small_disk(kind: str, folder: Path) -> Iterator[None]:
    """Make files in `folder` hit the end of the disk: a real one of 300 KiB, or a limit on the size of every file."""
    folder.mkdir()
    if kind == "limit":
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 10, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here; the limit on file sizes stands in for it")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kind", ["tmpfs", "limit"])
def test_mistake_12_a_full_disk(kind: str, job: Job, tmp_path: Path) -> None:
    with small_disk(kind, tmp_path / "disk"):
        ran = edgemae("compile", *job.work, "--target", job.target, "--output", tmp_path / "disk" / "out")
        refused(ran, 5, "cannot be written", "free some space")
        assert not list((tmp_path / "disk").rglob("*.tmp")), "no half-written file is left"


# ------------------------------------------------------------------------------------------------ usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("complie",), "Did you mean 'compile'"),
        (("compile", "--dta", "x"), "No such option: --dta"),
        (("compile", "--set", "distill.epoch=3"), "Did you mean 'epochs'"),
        (("compile", "--set", "distil.epochs=3"), "Did you mean 'distill'"),
        (("compile", "--set", "distill.epochs"), "has no '='"),
        (("compile", "--set", "distill.epochs=many"), "distill.epochs"),
        (("compile", "--seed", "x"), "--seed"),
        (("compile", "--plan", "{tmp}/missing.toml"), "missing.toml"),
        (("compile", "--plan", "{tmp}/bad.toml"), "is not valid TOML"),
        (("compile", "--plan", "{tmp}/unknown.toml"), "Did you mean 'student'"),
        (("compile", "--target", "{tmp}/extra.toml"), "Did you mean 'threads'"),
        (("compile", "--data", "{data}", "--output", "{tmp}"), "was not made by edgemae"),
        (("compile", "--data", "{data}", "--output", "{tmp}/new", "--resume"), "no run to resume"),
        (("compile", "{tmp}/missing.pth", "--data", "{data}"), "missing.pth"),
        (("compile", "--data", "{data}", "--precision", "int4"), "no precision 'int4'"),
        (("eval",), "Missing"),
        (("eval", "{tmp}/missing.edgemae", "--eval-data", "{data}"), "missing.edgemae"),
        (("inspect", "{tmp}/missing.pth"), "does not exist"),
        (("prune", "{tmp}/bad.toml", "--data", "{data}"), "bad.toml"),
        (("profile", "{tmp}/missing.edgemae"), "missing.edgemae"),
    ],
)
def test_usage_errors_name_the_mistake_and_write_nothing(
    arguments: tuple[str, ...], said: str, job: Job, tmp_path: Path
) -> None:
    (tmp_path / "bad.toml").write_text("[distill\nepochs = 3")
    (tmp_path / "unknown.toml").write_text("[studnt]\nwidth = 3")
    (tmp_path / "extra.toml").write_text(job.target.read_text() + "thread = 3\n")
    before = sorted(tmp_path.iterdir())
    words = [text.format(tmp=tmp_path, data=job.train) for text in arguments]
    refused(edgemae(*words), 2, said)
    found = edgemae(*words, "--json")
    assert found.code == 2
    if words[0] != "complie":
        assert set(found.json["error"]) == {"code", "what", "expected", "fix"}
    assert sorted(tmp_path.iterdir()) == before


def test_help_and_version_go_to_stdout() -> None:
    ran = edgemae("--help")
    assert (ran.code, ran.err) == (0, "")
    verbs = "pretrain finetune distill extract prune quantize compile finalize profile eval run inspect verify doctor"
    for verb in (*verbs.split(), "targets", "demo"):
        assert f"  {verb} " in ran.out
        assert edgemae(verb, "-h").code == 0
    assert edgemae("--version").out == f"edgemae {package.__version__}\n"
    assert edgemae("compile", "--help").out.count("--max-drop") == 1


def test_targets() -> None:
    assert "jetson-orin-nano" in edgemae("targets").out
    rows = edgemae("targets", "--json").json["targets"]
    assert all(row["name"] and row["engines"] and row["threads"] for row in rows)


# ------------------------------------------------------------------------------------------------ single arrows


def test_every_arrow_on_its_own(job: Job, tmp_path: Path) -> None:
    """Pretrain, go on, fine-tune, distill, prune, quantize: each takes what the one before printed."""

    def made(*arguments: object) -> Path:
        ran = edgemae(*arguments, *job.work, "--json")
        assert ran.code == 0, ran.err
        path = next(value for name, value in ran.json.items() if name in ("teacher", "student"))
        assert ("top1" in ran.json) == (arguments[0] != "pretrain")  # how right it is, where labels tell
        return Path(path)

    mae = made("pretrain", "-o", tmp_path / "mae")
    further = made("pretrain", "--from", mae, "-o", tmp_path / "further", "--unlabelled", job.flat)
    tuned = made("finetune", further, "-o", tmp_path / "tuned")
    student = made("distill", mae, "--finetuned-teacher", tuned, "-o", tmp_path / "student", "--recipe", "logit")
    small = made("prune", student, "--finetuned-teacher", tuned, "--keep-macs", 0.9, "-o", tmp_path / "small",
                 "--target", job.target)  # fmt: skip
    for path, decoder, stages in (
        (mae, True, ["pretrain"]),
        (further, True, ["pretrain", "pretrain"]),
        (tuned, False, ["pretrain", "pretrain", "finetune"]),
        (student, False, ["pretrain", "distill", "finetune-student"]),
        (small, False, ["pretrain", "distill", "finetune-student", "prune", "heal"]),
    ):
        about = edgemae("inspect", path, "--json").json
        assert about["kind"] == "model"
        assert about["decoder"] == decoder
        stages_found = [row["stage"] for row in about["history"]]
        assert stages_found[: len(stages) - 1] == stages[:-1] or path is student
        assert stages_found[-1] == stages[-1]
    rows = edgemae("quantize", small, *job.work, "-o", tmp_path / "int8", "--target", "cpu-onnxruntime", "--scheme",
                   "ort-dynamic", "--json").json  # fmt: skip
    assert list(rows) == ["ort-dynamic"]
    assert (tmp_path / "int8" / rows["ort-dynamic"]["files"][0]).stat().st_size == rows["ort-dynamic"]["size_bytes"]
    assert 0 <= rows["ort-dynamic"]["top1"] <= 1
    assert edgemae("eval", small, "--eval-data", job.val, "--json").json["engine"] == "torch"


def test_the_next_command_is_printed_ready_to_use(job: Job, compiled: Ran, tmp_path: Path) -> None:
    teacher = stage(job.output, "pretrain") / "teacher.safetensors"
    ran = edgemae("pretrain", *job.work, "--output", tmp_path / "mae")
    final = tmp_path / "mae" / "teacher.safetensors"
    assert ran.out == f"teacher: {final}\nnext: edgemae distill {final} --data {job.train}\n"
    assert final.read_bytes() == teacher.read_bytes(), "the same plan makes the same bytes wherever it runs"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("distill", "{pretrained}", "--finetuned-teacher", "{pretrained}"), 2, "has no classification head"),
        (("finetune", "{pretrained}", "--data", "{flat}"), 2, "needs labels"),
        (("distill", "{pretrained}", "--data", "{flat}", "--recipe", "logit"), 2, "learns from a teacher with a"),
        (("prune", "{pretrained}"), 2, "is not an edgemae student"),
        (("distill", "{pretrained}", "--finetuned-teacher", "{tuned}", "--data", "{flat}"), 2, "serves stage 2"),
        (("prune", "{student}", "--finetuned-teacher", "{tuned}", "--data", "{flat}"), 2, "serves prune.heal"),
        (("finetune", "{above}/teacher.safetensors"), 2, "is read here"),
        (("pretrain", "--from", "{above}/teacher.safetensors"), 2, "is read here"),
        (("quantize", "{student}", "--scheme", "tensorrt-qdq"), 2, "no engine of target 'box'"),
        (("prune", "{student}", "--keep-macs", "0.3"), 2, "prune.keep_macs"),
    ],
)
def test_stages_refuse_what_does_not_fit(
    words: tuple[str, ...], code: int, said: str, job: Job, compiled: Ran, tmp_path: Path
) -> None:
    names = {"pretrained": stage(job.output, "pretrain") / "teacher.safetensors", "flat": job.flat,
             "student": stage(job.output, "student") / "student.safetensors", "above": tmp_path / "out",
             "tuned": stage(job.output, "finetune") / "teacher.safetensors"}  # fmt: skip
    rest = () if "--data" in words else ("--data", job.train)
    rest = (*rest, "--target", job.target) if words[0] in ("prune", "quantize") else rest
    ran = edgemae(*(w.format(**names) for w in words), *rest, "--plan", job.plan, "--output", tmp_path / "out")
    refused(ran, code, said)


def test_a_sub_network_does_not_take_the_place_of_what_it_is_taken_from(job: Job, compiled: Ran) -> None:
    student = stage(job.output, "student") / "student.safetensors"
    before = student.read_bytes()
    refused(edgemae("extract", student, "-o", student), 2, "is read here")
    assert student.read_bytes() == before


# ------------------------------------------------------------------------------------------------ questions


def test_eval_of_a_bundle_is_one_object(job: Job, compiled: Ran) -> None:
    ran = edgemae("eval", job.bundle, "--eval-data", job.val, "--json")
    assert ran.code == 0
    found = ran.json
    assert found["n"] == 24
    assert found["engine"] == "onnxruntime"
    assert 0 <= found["top1_low"] <= found["top1"] <= found["top1_high"] <= 1
    assert 0 <= found["ece"] <= 1
    assert set(found["per_class"]) == {"circle", "square"}
    shipped = open_variants(job)[0]
    stages = {row["stage"]: row for row in compiled.json["stages"]}
    wanted = stages["int8" if shipped == "int8" else "pruned"]
    if found["precision"] == shipped != "int8":
        assert found["top1"] == wanted["top1"], "the same pictures through the same engine"
    assert "top1" in edgemae("eval", job.bundle, "--eval-data", job.val).out


def open_variants(job: Job) -> list[str]:
    return [variant.precision for variant in package.open_bundle(job.bundle).manifest.variants]


def test_profile_is_one_object(job: Job, compiled: Ran) -> None:
    ran = edgemae("profile", job.bundle, "--runs", 44, "--json")
    found = ran.json
    assert found["verdict"] in ("TRUSTED", "NOISY", "INVALID")
    assert ran.code == (5 if found["verdict"] == "INVALID" else 0)
    assert found["steady"]["n"] == 44
    assert found["steady"]["p50_ms"] > 0
    assert set(found["stages"]) == {"pre", "infer", "post"}
    assert (found["verdict"] == "TRUSTED") == (ran.err == "")
    refused(edgemae("profile", job.bundle, "--runs", 1), 2)
    refused(edgemae("profile", job.bundle, "--slo", "p99<33ms", "--runs", 44), 2, "459 runs")
    refused(edgemae("profile", job.bundle, "--slo", "p50<1h"), 2, "us or ms or s")
    missed = edgemae("profile", job.bundle, "--slo", "p50<1us", "--slo", "p50<60s", "--runs", 44, "--json")
    assert [limit["passed"] for limit in missed.json["slo"]] == [False, True]
    assert missed.code == (5 if missed.json["verdict"] == "INVALID" else 4)
    assert "not shown to be met: p50<1us\n" in missed.err


def test_profile_against_another_bundle(job: Job, compiled: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemae.profiling import profiler

    ab_test = profiler.ab_test
    monkeypatch.setattr(profiler, "ab_test", lambda this, other: ab_test(this, other, rounds=8))
    ran = edgemae("profile", job.bundle, "--baseline", job.bundle, "--runs", 44, "--engine", "onnxruntime")
    assert ran.code == (5 if "INVALID" in ran.err else 0)
    assert "baseline    shapes (onnxruntime" in ran.out
    assert "interleaved, 8 rounds" in ran.out
    assert "needs 459 runs" in ran.out
    refused(edgemae("profile", job.bundle, "--baseline", "tflite:x"), 2, "unknown prefix 'tflite:'")


def test_profile_as_files(job: Job, compiled: Ran, tmp_path: Path) -> None:
    page, trace = tmp_path / "new" / "page.html", tmp_path / "trace.json"
    ran = edgemae("profile", job.bundle, "--runs", 44, "--per-layer", "--html", page, "--trace", trace, "--json")
    layers = ran.json["layers"]
    assert sum(row["ms"] for row in layers["rows"]) == pytest.approx(layers["infer_ms"])
    assert layers["unmapped_share"] < 0.05
    assert "Layer by layer" in page.read_text()
    events = json.loads(trace.read_text())["traceEvents"]
    assert len([e for e in events if e.get("cat") == "stage"]) == 3 * 44
    assert {e["name"] for e in events if e.get("cat") == "stage"} == {"pre", "infer", "post"}


def video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    assert writer.isOpened()
    for i in range(frames):
        writer.write(np.full((48, 64, 3), 20 * i, np.uint8))
    writer.release()
    return path


def test_run_on_a_folder_and_on_a_video(job: Job, compiled: Ran, tmp_path: Path) -> None:
    ran = edgemae("run", job.bundle, job.val / "circle", "--json")
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert [row["seq"] for row in rows] == list(range(12))
    assert rows[0]["name"].endswith("0-000.png")
    assert all(row["label"] in ("circle", "square") and row["infer_ms"] > 0 for row in rows)
    assert "12 of 12 frames seen, 0 dropped" in ran.err
    seen = edgemae("run", job.bundle, video(tmp_path / "clip.avi", 7))
    assert seen.code == 0
    assert len(seen.out.splitlines()) == 7
    assert "7 of 7 frames seen" in seen.err
    assert len(edgemae("run", job.bundle, tmp_path / "clip.avi", "--limit", 2).out.splitlines()) == 2
    refused(edgemae("run", job.bundle, tmp_path / "clip.avi", "--policy", "newest"), 2, "latest")
    assert edgemae("run", job.bundle, tmp_path / "missing.avi").code == 5


def test_an_interrupted_run_stops_the_camera_and_tells_its_counts(
    job: Job, compiled: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgemae.viewer import run

    def interrupt(seen: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "as_text", interrupt)
    ran = edgemae("run", job.bundle, job.val / "circle")
    assert ran.code == 130
    assert "frames seen" in ran.err
    assert "stages" not in ran.err


def test_inspect_verify_and_finalize(job: Job, compiled: Ran, tmp_path: Path) -> None:
    about = edgemae("inspect", job.bundle, "--json").json
    assert about["kind"] == "bundle"
    assert about["status"] == "untested"
    assert [row["stage"] for row in about["history"]][-1] == "heal"
    assert len(about["variants"]) >= 2
    proof = edgemae("verify", job.bundle, "--json").json
    assert proof["sha256"] == about["sha256"]
    assert proof["check"]["frames"] == 8
    assert edgemae("verify", job.bundle, "--engine", "openvino", "--json").json["engine"] == "openvino"
    bundle = copied(job.bundle, tmp_path)
    ready = edgemae("finalize", bundle, "--json").json
    assert [row["engine"] for row in ready["engines"]] == ["onnxruntime", "openvino"]
    assert all(row["ready"] for row in ready["engines"])
    assert ready["steady"]["n"] >= 44
    after = edgemae("inspect", bundle, "--json").json  # every hash of the bundle with its profile is right
    (row,) = after["profiles"]
    assert row["verdict"] == ready["verdict"]
    assert ready["page"] == row["file"].replace(".json", ".html")
    assert b"Layer by layer" in package.open_bundle(bundle).read(ready["page"])
    assert "onnxruntime" in edgemae("inspect", job.bundle).out


def copied(bundle: Path, folder: Path) -> Path:
    """Return a copy, for verbs that put something into the bundle."""
    return Path(shutil.copy(bundle, folder / bundle.name))


def test_finalize_goes_on_without_an_engine_and_not_without_all(
    job: Job, compiled: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copied(job.bundle, tmp_path)
    uninstall("onnxruntime", tmp_path, monkeypatch)
    ready = edgemae("finalize", bundle, "--json").json
    assert ready["engine"] == "openvino"
    assert [row["ready"] for row in ready["engines"]] == [False, True]
    uninstall("openvino", tmp_path, monkeypatch)
    refused(edgemae("finalize", bundle), 5, "is not installed")


# ------------------------------------------------------------------------------------------------ as a process


def test_a_bundle_is_asked_everything_without_the_build_libraries(job: Job, compiled: Ran, tmp_path: Path) -> None:
    """One process in which importing any of them raises, as on a device; stdout holds JSON and nothing else."""
    code = f"""
import contextlib, io, json, sys
for name in {BUILD_ONLY!r}:
    sys.modules[name] = None
from edgemae.cli import app
from edgemae.cli.exit_codes import (
    run_app,
)
answers = {{}}
for words in {[
        ["verify", str(job.bundle)], ["inspect", str(job.bundle)], ["finalize", str(copied(job.bundle, tmp_path))],
        ["eval", str(job.bundle), "--eval-data", str(job.val)], ["profile", str(job.bundle), "--runs", "44"],
        ["run", str(job.bundle), str(job.val / "circle"), "--limit", "1"], ["targets"], ["doctor"],
    ]!r}:
    sys.argv = ["edgemae", *words, "--json"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run_app(app)
    answers[words[0]] = [code, len(json.loads(out.getvalue())) > 0]
sys.argv = ["edgemae", "compile", "--data", "x"]
answers["compile"] = run_app(app)
print(json.dumps(answers))
"""  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert answers.pop("compile") == 5
    assert answers.pop("profile") in ([0, True], [5, True])  # 5: this machine was not quiet
    assert all(answer == [0, True] for answer in answers.values()), answers
    assert "pip install 'edgemae[build]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(job: Job, compiled: Ran) -> None:
    """`edgemae run ... | head -1`, through `python -m edgemae`."""
    command = [sys.executable, "-m", "edgemae", "run", str(job.bundle), str(job.val / "circle")]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().count("0-000.png") == 1
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0, errors
    assert "Error" not in errors
