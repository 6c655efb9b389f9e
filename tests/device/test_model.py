"""Loading and running bundles: the variants, its errors, results, and a device that has no build library."""

from __future__ import annotations

import json
import logging
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest

from edgemae.device import engines, model
from edgemae.device.model import Model, Result, load
from edgemae.device.preprocess import preprocess
from edgemae.device.session import Session
from edgemae.spec.errors import (
    BundleCorruptError,
    BundleError,
    EngineMissingError,
    EngineRuntimeError,
    InputError,
    SelfCheckError,
    TargetError,
)
from edgemae.spec.manifest import Manifest, Tolerance
from edgemae.spec.report import GateVerdict
from edgemae.spec.target import Target

FRAME = cv2.resize(np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8), (64, 48))


@pytest.fixture(scope="module")
def path(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle()


# ------------------------------------------------------------------------------------------------ results


def test_a_frame_gives_label_scores_logits_embedding_and_times(path: Path) -> None:
    with load(path, engine="onnxruntime") as loaded:
        result = loaded(FRAME)
        raw = loaded.session(preprocess(FRAME, loaded.pixel))
    assert isinstance(loaded, Model)
    assert isinstance(result, Result)
    shares = np.exp(raw["logits"][0].astype(np.float64))
    shares /= shares.sum()
    assert result.label == loaded.labels[int(shares.argmax())]
    assert result.score == pytest.approx(shares.max())
    assert (result.label, result.score) == result.topk[0]
    assert [score for _, score in result.topk] == sorted((s for _, s in result.topk), reverse=True)
    assert sum(score for _, score in result.topk) == pytest.approx(1)
    assert result.logits is not None
    assert result.embedding is not None
    np.testing.assert_array_equal(result.logits, raw["logits"][0])
    np.testing.assert_array_equal(result.embedding, raw["embedding"][0])
    assert list(result.speed) == ["pre_ms", "infer_ms", "post_ms"]
    assert min(result.speed.values()) > 0
    with pytest.raises(AttributeError):
        result.label = "x"  # type: ignore[misc]


def test_every_colour_order_gives_one_result(path: Path) -> None:
    with load(path) as loaded:
        expected = loaded(FRAME).logits
        np.testing.assert_array_equal(loaded(FRAME[:, :, ::-1], color="RGB").logits, expected)
        np.testing.assert_array_equal(loaded(cv2.cvtColor(FRAME, cv2.COLOR_BGR2RGBA), color="RGBA").logits, expected)
        with pytest.raises(InputError, match="float64"):
            loaded(FRAME / 255)


@pytest.mark.parametrize(("top", "count"), [(1, 1), (3, 3), (99, 5), (0, 1)])
def test_top_limits_the_list(path: Path, top: int, count: int) -> None:
    with load(path) as loaded:
        assert len(loaded(FRAME, top=top).topk) == count


def test_without_a_head_there_is_an_embedding_only(make_bundle: Callable[..., Path]) -> None:
    with load(make_bundle(head=False)) as loaded:
        result = loaded(FRAME)
    assert (result.label, result.score, result.topk, result.logits) == (None, None, [], None)
    assert result.embedding is not None
    assert result.embedding.shape == (16,)


def test_without_labels_the_index_is_the_label(make_bundle: Callable[..., Path]) -> None:
    with load(make_bundle(labels=())) as loaded:
        assert {label for label, _ in loaded(FRAME).topk} == {"0", "1", "2", "3", "4"}


def test_info_is_json_and_says_what_runs(path: Path) -> None:
    with load(path) as loaded:
        info = json.loads(json.dumps(loaded.info))
    assert (info["name"], info["engine"], info["precision"], info["status"]) == ("block", "openvino", "fp32", "passed")
    assert info["check"]["frames"] == 3
    assert info["skipped"] == []
    assert info["sha256"] == loaded.sha256


def test_a_stream_is_that_of_the_stream_room(path: Path, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / "frames" / f"{i}.png"), FRAME)
    with load(path) as loaded:
        results = list(loaded.stream(str(tmp_path / "frames"), policy="every"))
    assert len(results) == 3


def test_a_model_is_given_to_one_thread_at_a_time(path: Path) -> None:
    """Engines reuse their buffers: two streams into one model must not mix their frames up."""
    frames = [np.full((32, 32, 3), value, np.uint8) for value in (10, 90, 170, 250)]
    with load(path) as loaded, ThreadPoolExecutor(4) as threads:
        alone = [loaded(frame).logits for frame in frames]
        for _ in range(25):
            for result, expected in zip(threads.map(loaded, frames), alone, strict=True):
                np.testing.assert_array_equal(result.logits, expected)
        inside = 0

        def slow(pixels: np.ndarray) -> dict[str, np.ndarray]:
            nonlocal inside
            inside += 1
            time.sleep(0.002)
            assert inside == 1
            inside -= 1
            return {"embedding": np.zeros((1, 4), np.float32)}

        loaded.session._run = slow
        assert len(list(threads.map(loaded, frames * 4))) == 16


def test_outputs_that_are_no_numbers_get_no_label(path: Path) -> None:
    with load(path) as loaded:
        logits = np.array([[0.0, np.nan, 1.0, np.inf, 0.0]], np.float32)
        loaded.session._run = lambda _: {"logits": logits}
        with pytest.raises(EngineRuntimeError, match=r"openvino-fp32 .* 2 of 5 logits"):
            loaded(FRAME)


def test_a_stream_of_a_model_takes_callbacks_and_several_sources(path: Path, tmp_path: Path) -> None:
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "0.png"), FRAME)
    seen: list[str] = []
    with load(path) as loaded:
        sources = {name: tmp_path / name for name in ("left", "right")}
        loaded.stream(sources, on_result=lambda item: seen.append(item.source), max_age_ms=60_000).run()
    assert sorted(seen) == ["left", "right"]


@pytest.mark.parametrize("how", [(), ("--async",)])
def test_the_example_of_a_camera_app_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: tuple[str]
) -> None:
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "0.png"), FRAME)
    example = Path(__file__).parents[2] / "examples/camera_app.py"
    sources = [str(tmp_path / name) for name in ("left", "right")]
    monkeypatch.setattr(sys, "argv", [str(example), str(path), *how, *sources])
    runpy.run_path(str(example), run_name="__main__")
    output = capsys.readouterr().out
    assert all(f"{source} frame 0: " in output for source in sources)
    assert ("ended StreamCounters(inferred=2" in output) is not bool(how)


# ------------------------------------------------------------------------------------------------ the variants


def test_auto_takes_the_first_variant_and_a_name_takes_its_own(path: Path) -> None:
    for engine, expected in (("auto", "openvino"), ("openvino", "openvino"), ("onnxruntime", "onnxruntime")):
        with load(path, engine=engine) as loaded:
            assert loaded.variant.engine == loaded.session.engine == expected
            assert loaded.skipped == ()


def test_a_missing_engine_is_skipped_aloud(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with caplog.at_level(logging.WARNING), load(path) as loaded:
        assert loaded.variant.engine == "onnxruntime"
    assert loaded.skipped == (("openvino-fp32", "the engine 'openvino' is not installed"),)
    assert "openvino-fp32 is skipped" in caplog.text
    assert "edgemae[openvino]" in caplog.text
    with pytest.raises(EngineMissingError, match="'openvino'"):
        load(path, engine="openvino")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineMissingError, match=r"openvino-fp32: .*onnxruntime-fp32: ") as error:
        load(path)
    assert "edgemae[openvino]" in error.value.fix
    assert "edgemae[onnxruntime]" in error.value.fix


def test_an_engine_that_cannot_build_is_skipped_and_the_reasons_are_listed(
    path: Path, make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = model.open_session

    def failing(engine: str, *rest: Any) -> Session:
        if engine == "openvino":
            raise EngineRuntimeError("no such device", expected="x", fix="y")
        return real(engine, *rest)

    monkeypatch.setattr(model, "open_session", failing)
    with load(path) as loaded:
        assert loaded.skipped == (("openvino-fp32", "no such device"),)
    with pytest.raises(EngineRuntimeError, match="no such device"):
        load(path, engine="openvino")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineRuntimeError, match=r"no such device.*onnxruntime-fp32"):
        load(path)


@pytest.mark.parametrize(("fallback", "level"), [("warn", logging.WARNING), ("auto", logging.INFO)])
def test_a_step_down_is_told_as_loudly_as_was_asked_for(
    path: Path, fallback: str, level: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with caplog.at_level(logging.INFO, "edgemae.device"), load(path, fallback=fallback) as loaded:
        info = loaded.info
    (report,) = [record for record in caplog.records if "is skipped" in record.message]
    assert report.levelno == level
    assert info["skipped"] == [{"variant": "openvino-fp32", "reason": "the engine 'openvino' is not installed"}]


def test_never_means_the_first_variant_or_its_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(path, fallback="never") as loaded:
        assert loaded.variant.engine == "openvino"
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(model, "check", lambda *_: pytest.fail("a second engine was tried"))
    with pytest.raises(EngineMissingError, match="'openvino'") as error:
        load(path, fallback="never")
    assert "edgemae[openvino]" in error.value.fix
    with pytest.raises(InputError, match="'never'"):
        load(path, fallback="nevr")


def test_an_engine_that_computes_something_else_is_never_skipped_over(
    path: Path, make_bundle: Callable[..., Path]
) -> None:
    def edit(manifest: Manifest, files: dict[str, bytes]) -> Manifest:
        strict = msgspec.structs.replace(manifest.variants[0], tolerance=Tolerance(cosine_min=1.0, max_abs=0.0))
        return msgspec.structs.replace(manifest, variants=(strict, manifest.variants[1]))

    spoiled = make_bundle(edit=edit)
    with pytest.raises(SelfCheckError, match="openvino-fp32 "):
        load(spoiled)
    with load(spoiled, engine="onnxruntime") as loaded:
        assert loaded.variant.engine == "onnxruntime"


def test_the_session_of_a_refused_variant_is_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(Session, "close", lambda self: closed.append(self.engine))
    monkeypatch.setattr(model, "check", lambda *_: (_ for _ in ()).throw(SelfCheckError("no", expected="", fix="")))
    with pytest.raises(SelfCheckError):
        load(path)
    assert closed == ["openvino"]


def test_names_outside_the_variants(path: Path, make_bundle: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="'tensorrt'") as error:
        load(path, engine="tensorrt")
    assert error.value.expected == "one of onnxruntime, openvino"
    with pytest.raises(InputError, match="'openvino'"):
        load(path, engine="openvin")
    with pytest.raises(EngineMissingError, match="'npu'"):
        load(make_bundle(engines=("npu",)))
    with load(make_bundle(engines=("npu", "onnxruntime"))) as loaded:
        assert loaded.skipped[0][0] == "npu-fp32"


def test_the_target_can_be_another(path: Path, box: Target) -> None:
    with load(path) as own, load(path, target="cpu-onnxruntime") as named, load(path, target=box) as given:
        assert (own.target, named.target.name, given.target) == (box, "cpu-onnxruntime", box)
        np.testing.assert_allclose(own(FRAME).logits, named(FRAME).logits, atol=1e-5)
    with pytest.raises(TargetError, match="'cpu-onnxruntime'"):
        load(path, target="cpu-onnxruntim")


def test_a_failed_bundle_loads_with_a_warning(
    make_bundle: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    gates = (
        GateVerdict(gate="p90_ms", limit=5.0, value=9.0, passed=False),
        GateVerdict(gate="size_mib", limit=5.0, value=1.0, passed=True),
    )
    with load(make_bundle(status="failed", gates=gates)) as loaded:
        assert loaded.info["status"] == "failed"
    assert "missed its gates (p90_ms): do not ship it" in caplog.text


def test_paths_that_are_no_bundle(path: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none\.edgemae"):
        load(tmp_path / "none.edgemae")
    (tmp_path / "cut.edgemae").write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleCorruptError):
        load(tmp_path / "cut.edgemae")


def test_nothing_is_handed_to_an_engine_before_all_hashes_agree(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(path.read_bytes())
    data[-4000] ^= 4
    (tmp_path / "flipped.edgemae").write_bytes(data)
    for room, name in ((model, "open_session"), (engines, "make"), (model, "check")):
        monkeypatch.setattr(room, name, lambda *_: pytest.fail("an engine was reached"))
    with pytest.raises(BundleCorruptError):
        load(tmp_path / "flipped.edgemae")


# ------------------------------------------------------------------------------------------------ a bare device


DEVICE = """
import json, sys, time
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    tried = []
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            self.tried.append(name)
            raise ModuleNotFoundError("blocked: " + name, name=name)
        return None

sys.meta_path.insert(0, Refuse())
import edgemae
early = sorted(name for name in ("cv2", "numpy", "msgspec", "onnxruntime", "openvino") if name in sys.modules)
import numpy as np
with edgemae.load({path!r}, engine={engine!r}) as model:
    result = model(np.full((50, 70, 3), 90, np.uint8))
import resource
print(json.dumps({{
    "label": result.label, "logits": result.logits.tolist(), "early": early, "tried": Refuse.tried,
    "loaded": sorted({{name.partition(".")[0] for name in sys.modules}}),
    "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
}}))
"""

BUILD_ONLY = ("torch", "torchvision", "onnx", "onnxscript", "nncf", "pandas", "scipy", "sklearn", "transformers", "PIL")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_bundle_runs_where_no_build_library_is(path: Path, engine: str, cache_dir: Path) -> None:
    """A fresh process in which importing torch, onnx, nncf, pandas or scipy raises."""
    other = ("openvino",) if engine == "onnxruntime" else ("onnxruntime",)
    code = DEVICE.format(blocked=BUILD_ONLY + other, path=str(path), engine=engine)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    with load(path, engine=engine) as loaded:
        here = loaded(np.full((50, 70, 3), 90, np.uint8))
    assert here.logits is not None
    assert seen["label"] == here.label
    np.testing.assert_allclose(seen["logits"], here.logits, atol=1e-5)
    assert seen["early"] == [], "`import edgemae` alone loads no library"
    assert not set(BUILD_ONLY) & set(seen["loaded"])
    assert {"cv2", "numpy", "msgspec", engine} <= set(seen["loaded"])


def test_device_and_spec_never_pickle() -> None:
    """ONNX Runtime's and OpenVINO's own code may; ours has no line that could."""
    package = Path(model.__file__).parent.parent
    for room in ("device", "spec"):
        for file in (package / room).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            assert "import pickle" not in text, file
            assert "allow_pickle=True" not in text, file
            assert "eval(" not in text.replace("retrieval(", ""), file
