"""Resize kernels of the pixel contract: time interleaved with INTER_AREA, distance from it, and top-1 of a real model.

    python tools/bench_pixels.py --quick
    python tools/bench_pixels.py --data clothing10/val --bundle clothing10.edgemae --clips video --json pixels.json

Beside the kernels stand two ways that are not in the contract, with their figures: JPEG files decoded at a fraction of
their size, and resizing inside the graph by the engine. The model was trained with `area-linear`; what another kernel
costs a model that was trained with it is less.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray
from support.as_command import as_command

from edgemae.data.decode_worker import read_image
from edgemae.data.shards import images_at
from edgemae.device.hardware.fingerprint import fingerprint
from edgemae.device.model import load
from edgemae.device.preprocess import ImageBGR, crop, preprocess
from edgemae.evaluation.accuracy import predict
from edgemae.profiling.stats.comparison import ratio
from edgemae.profiling.stats.percentiles import summarise
from edgemae.profiling.timing.interference import combined_verdict
from edgemae.profiling.timing.timer import interleave
from edgemae.spec.graph import KERNELS, PixelContract

REFERENCE = "area-linear"
COMPARED = ("halve-linear", "linear")
IMAGE_PX = 224
CAMERAS_WH = ((1920, 1080), (1280, 720), (640, 480))
REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
NOISE = 3.0  # standard deviation in levels, of an ordinary sensor indoors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 rounds in place of 30, no accuracy")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument("--data", help="labelled photos for top-1")
    parser.add_argument("--bundle", type=Path, help="a bundle for those classes")
    parser.add_argument("--clips", type=Path, help="folder of videos for distances on real camera frames")
    args = parser.parse_args()
    rounds = 8 if args.quick else 30
    result: dict[str, Any] = {
        "command": shlex.join(["python", "tools/bench_pixels.py", *sys.argv[1:]]),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "image_px": IMAGE_PX,
        "kernels": [timed(width, height, rounds) for width, height in CAMERAS_WH],
        "not_in_the_contract": [*reduced_decode(rounds), in_the_graph(rounds)],
        "clips": [on_clip(path) for path in sorted(args.clips.iterdir())] if args.clips else [],
        "machine": fingerprint(),
    }  # fmt: skip
    if args.data and args.bundle and not args.quick:
        result["top1"] = list(top1(args.bundle, args.data))
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    return 0


def contract(kernel: str) -> PixelContract:
    return PixelContract(image_px=IMAGE_PX, kernel=kernel)


def camera_frame(width: int, height: int) -> ImageBGR:
    """Return an image of smooth shapes, edges and sensor noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (9, 16, 3), dtype=np.uint8)
    frame = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(40):
        a, b = (tuple(int(v) for v in rng.integers(0, (width, height))) for _ in range(2))
        cv2.line(frame, a, b, tuple(int(v) for v in rng.integers(0, 256, 3)), int(rng.integers(1, 8)))
    return noisy(frame, rng)


def noisy(frame: NDArray[Any], rng: np.random.Generator) -> ImageBGR:
    return np.clip(frame + rng.normal(0, NOISE, frame.shape), 0, 255).astype(np.uint8)  # type: ignore[no-any-return]


def distance(frame: ImageBGR, kernel: str) -> float:
    """Return how far a kernel lies from the reference on the centre square, in levels of 255.

    On the square, because the two cut a long side at different fractions of a pixel, which is no matter of the kernel.
    """
    side = min(frame.shape[:2])
    top, left = ((length - side) // 2 for length in frame.shape[:2])
    square = frame[top : top + side, left : left + side]
    return levels(crop(square, contract(kernel)), crop(square, contract(REFERENCE)))


def levels(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


# ---------------------------------------------------------------- kernels


def timed(width: int, height: int, rounds: int) -> dict[str, Any]:
    """Return what each kernel takes from a camera frame to a tensor, and its distance from the reference."""
    frame = camera_frame(width, height)
    runs = {kernel: (lambda kernel=kernel: preprocess(frame, contract(kernel))) for kernel in KERNELS}
    rows = compare(runs, rounds)
    for row in rows["rows"]:
        row["levels"] = distance(frame, row["name"])
    return {"frame": f"{width} x {height}", **rows}


def compare(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    taken = interleave(runs, rounds)
    first = next(iter(taken))
    rows = []
    for name, samples in taken.items():
        gain = ratio(taken[first], samples)
        rows.append({"name": name, "p50_ms": summarise(samples.ns).p50_ms, "times_as_fast": gain.median,
                     "low": gain.low, "high": gain.high})  # fmt: skip
    return {"verdict": combined_verdict(*(samples.interference.verdict for samples in taken.values())), "rows": rows}


def on_clip(path: Path) -> dict[str, Any]:
    """Return the mean distance of kernels from the reference over 20 frames of a clip, in levels of 255."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        seen, frame = capture.read()
        if not seen:
            break
        frames.append(frame)
    capture.release()
    some = [frames[i] for i in np.linspace(0, len(frames) - 1, 20).astype(int)]
    return {"clip": path.name, "frame": "{1} x {0}".format(*some[0].shape)} | {
        kernel: float(np.mean([distance(f, kernel) for f in some])) for kernel in COMPARED
    }  # fmt: skip


# ---------------------------------------------------------------- ways that are not in the contract


def decoded(data: NDArray[Any], flag: int) -> ImageBGR:
    return np.asarray(cv2.imdecode(data, flag), np.uint8)


def reduced_decode(rounds: int) -> Iterator[dict[str, Any]]:
    """Yield decoding and resizing of a 1080p JPEG at full size, and at a half, a quarter and an eighth."""
    data = cv2.imencode(".jpg", camera_frame(1920, 1080), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    pixel = contract("halve-linear")
    ways: dict[str, Callable[[], ImageBGR]] = {"jpeg": lambda: crop(decoded(data, cv2.IMREAD_COLOR), pixel)}
    for part, flag in REDUCED.items():
        ways[f"jpeg, decoded at 1/{part}"] = lambda flag=flag: crop(decoded(data, flag), pixel)
    want = crop(decoded(data, cv2.IMREAD_COLOR), contract(REFERENCE))
    for row in compare(ways, rounds)["rows"]:
        yield row | {"levels": levels(ways[row["name"]](), want)}


def in_the_graph(rounds: int) -> dict[str, Any]:
    """Return ONNX Runtime's antialiased Resize of the cut-out square against ours."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    frame = camera_frame(1920, 1080)
    square = np.ascontiguousarray(frame[:, 420:1500])[None]
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
             helper.make_node("Resize", ["t", "", "", "size"], ["y"], mode="linear", antialias=1)]  # fmt: skip
    size = numpy_helper.from_array(np.array([1, 3, IMAGE_PX, IMAGE_PX]), "size")
    ports = (
        [helper.make_tensor_value_info("x", TensorProto.UINT8, square.shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 3, IMAGE_PX, IMAGE_PX])],
    )
    model = helper.make_model(
        helper.make_graph(nodes, "resize", *ports, [size]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    runs = {"resized by ours": lambda: crop(frame, contract("halve-linear")),
            "resized in the graph": lambda: session.run(None, {"x": square})}  # fmt: skip
    seen = session.run(None, {"x": square})[0][0].transpose(1, 2, 0)[:, :, ::-1]
    return compare(runs, rounds)["rows"][1] | {"levels": levels(seen, crop(frame, contract(REFERENCE)))}


# ---------------------------------------------------------------- top-1


def top1(path: Path, data: str) -> Iterator[dict[str, Any]]:
    """Yield accuracy by kernel: on the photos as they are, and shown to a noisy 1080p camera."""
    from edgemae.data.validation import known_classes

    with load(path) as model:
        images = known_classes(images_at(data, checked=True), model.labels)
        frames = [read_image(reference, model.pixel) for reference in images.paths]
        truth = np.array(images.labels)
        for shown in ("photos as they are", "as seen by a 1080p camera"):
            labels_of = {}
            for kernel in (REFERENCE, *COMPARED):
                pixel = msgspec.structs.replace(model.pixel, kernel=kernel)
                seen = (preprocess(frame_of(frame, i, shown), pixel) for i, frame in enumerate(frames))
                logits = predict(model.session, ((tensor, None) for tensor in seen)).logits
                assert logits is not None
                labels_of[kernel] = logits.argmax(axis=1)
            for kernel, answers in labels_of.items():
                yield {"shown": shown, "kernel": kernel, "n": len(truth), "top1": float((answers == truth).mean()),
                       "same_answer": float((answers == labels_of[REFERENCE]).mean())}  # fmt: skip


def frame_of(frame: ImageBGR, number: int, shown: str) -> ImageBGR:
    if shown.startswith("photos"):
        return frame
    scale = 1080 / min(frame.shape[:2])
    large = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return noisy(large, np.random.default_rng(number))


# ---------------------------------------------------------------- table


def table(result: dict[str, Any]) -> str:
    lines = []
    for group in result["kernels"]:
        lines += [f"\n{group['frame']} to {IMAGE_PX} px, {group['verdict']}\n",
                  "| kernel | p50 | times as fast | levels off |", "| --- | ---: | ---: | ---: |"]  # fmt: skip
        lines += [cells(row) for row in group["rows"]]
    lines += ["\nnot in the contract\n", "| way | p50 | times as fast | levels off |", "| --- | ---: | ---: | ---: |"]
    lines += [cells(row) for row in result["not_in_the_contract"]]
    lines += [f"{row}" for row in (*result["clips"], *result.get("top1", ()))]
    return "\n".join(lines)


def cells(row: dict[str, Any]) -> str:
    return (
        f"| {row['name']} | {row['p50_ms']:.2f} ms | {row['times_as_fast']:.2f} ({row['low']:.2f} to "
        f"{row['high']:.2f}) | {row['levels']:.2f} |"
    )


def readme_table(result: dict[str, Any]) -> str:
    """Return the table of docs/benchmarks.md: kernels that differ from the reference, their top-1 on the photos."""
    names = [group["frame"] for group in result["kernels"]]
    lines = ["| Kernel | " + " | ".join(f"{name} px" for name in names) + " | Levels off, 1080p | Top-1, 1080p |",
             "| --- |" + " ---: |" * (len(names) + 2)]  # fmt: skip
    seen = {row["kernel"]: row for row in result["top1"] if "1080p" in row["shown"]}
    for kernel in (REFERENCE, *COMPARED):
        rows = [next(row for row in group["rows"] if row["name"] == kernel) for group in result["kernels"]]
        times = [f"{row['p50_ms']:.2f} ms, {row['times_as_fast']:.1f}x" for row in rows]
        top1 = f"{100 * seen[kernel]['top1']:.1f} %"
        lines.append(f"| {kernel} | {' | '.join(times)} | {rows[0]['levels']:.1f} | {top1} |")
    verdicts = ", ".join(dict.fromkeys(group["verdict"] for group in result["kernels"]))
    n = seen[REFERENCE]["n"]
    note = (
        f"Beside other work ({verdicts}): compare the ratios. Top-1 of a model trained with {REFERENCE}, on {n} photos "
        "shown to a noisy 1080p camera."
    )
    return "\n".join([*lines, "", note])


if __name__ == "__main__":
    as_command(main)
