"""How fresh the frames of a live source are, and how it comes back: edgemae beside a plain OpenCV loop.

    python tools/bench_stream.py --json tools/results/stream.json
    python tools/bench_stream.py --quick
    python tools/bench_stream.py --quick --roboflow --clips video

An RTSP server (H.264, 25 fps) runs in a process of its own, so does every consumer; images carry their capture time.
- P1: age of a result (at the end of the work on its frame) for consumers of 1 to 60 fps.
- P2, P3: silences, resets and restarts: images older than the policy allows, time until the silence is noticed, time
  until the first image that was made after the return.
- P4: `close` beside a frozen source; threads, descriptors and memory over many openings and reconnects.
- P5: inferences that raise, and a consumer ten times too slow, through `Model.stream`'s loop.
`--roboflow` adds the InferencePipeline of the package `inference` (Apache-2.0), installed into an environment under a
temporary folder or found where PYTHON is given; `--clips DIR` counts the frames of real videos.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from support.stream_rig import ROOT, ServerProcess, ages_of, holdings, say

from edgemae.device.camera.camera import Camera
from edgemae.device.hardware.fingerprint import fingerprint
from edgemae.device.stream import stream
from tests.support.frame_stamps import age_ms

FPS, LIMIT_MS = 25.0, 200.0
INTERVAL_MS = 1000 / FPS
LATE_MS = 100.0  # see soak_stream
SPEEDS = (1, 5, 12, 25, 60)
CLIPS = {"car-detection.mp4": 377, "bottle-detection.mp4": 1189, "asl-bird.mkv": 63}
ROBOFLOW = "inference==0.15.2"  # pip searched 40 minutes for a set of versions that suits the newest one
PATIENCE_S = 45.0  # for a program to come back
SIZE = [640, 384]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer frames and faults: about 10 minutes with roboflow")
    help_text = "add roboflow's InferencePipeline, of that interpreter or installed for this run"
    parser.add_argument("--roboflow", nargs="?", const="", metavar="PYTHON", help=help_text)
    parser.add_argument("--clips", type=Path, metavar="DIR", help="count the frames of real videos there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    programs: dict[str, str | None] = {"edgemae": sys.executable, "opencv": sys.executable}
    with tempfile.TemporaryDirectory() as folder:
        missing = ""
        if args.roboflow is not None:
            programs["roboflow"], missing = find_roboflow(Path(folder), args.roboflow)
        usable = {name: python for name, python in programs.items() if python}
        result: dict[str, Any] = {
            "command": shlex.join(["python", "tools/bench_stream.py", *sys.argv[1:]]),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "roboflow": missing or None,
            "versions": {name: version_of(name, python) for name, python in usable.items()}, "machine": fingerprint(),
        }  # fmt: skip
        parts: dict[str, Callable[[], Any]] = {
            "callbacks": lambda: callbacks(Path(folder)), "leaks": lambda: leaks(Path(folder)),
            "clips": lambda: None if args.clips is None else clips(args.clips),
            "ages": lambda: ages(usable, args.quick), "faults": lambda: faults(usable, args.quick),
        }  # fmt: skip
        for name, part in parts.items():
            result[name] = part()
            if args.json is not None:  # after every part: a long run that is stopped keeps what it has
                args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(readme_table(result))
    return 0


class Consumer:
    """Run a program; `rows` grows with what it says."""

    def __init__(self, python: str, name: str, url: str, work_s: float, policy: str = "") -> None:
        environment = os.environ | {"OPENCV_LOG_LEVEL": "OFF", "OPENCV_FFMPEG_LOGLEVEL": "-8"}
        self._process = subprocess.Popen(
            [python, str(ROOT / "tools/support/stream_program.py"), name, url, str(work_s), policy],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        self.rows: list[list[Any]] = []
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith('["'):
                self.rows.append(json.loads(line))

    def frames(self) -> list[list[Any]]:
        return [row for row in self.rows if row[0] == "frame"]

    def wait_for(self, true: Any, timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while not true(self.rows):
            if time.monotonic() > end or self._process.poll() is not None:
                return False
            time.sleep(0.02)
        return True

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


# ---------------------------------------------------------------- P1


def ages(programs: dict[str, str], quick: bool) -> list[dict[str, Any]]:
    """Return the age of results for consumers of each speed."""
    rows = []
    speeds, least_s = ((1, 5, 25, 60), 8.0) if quick else (SPEEDS, 30.0)
    with ServerProcess("rtsp", fps=FPS, size=SIZE) as server:
        for name, python in programs.items():
            for speed in speeds:
                with Consumer(python, name, server.url, 1 / speed) as consumer:
                    if not consumer.wait_for(lambda rows: len(rows) > 3, PATIENCE_S):
                        rows.append({"who": name, "fps": speed, "n": 0})
                        continue
                    time.sleep(least_s)
                    seen = [row for row in consumer.frames() if row[2] is not None]
                found = ages_of([(done - stamp) / 1e6 for _, _, stamp, done, _ in seen])
                work_ms = float(np.percentile([(done - got) / 1e6 for _, got, _, done, _ in seen], 99))
                limit_ms = 2 * INTERVAL_MS + work_ms
                kept = found["p99_ms"] <= limit_ms
                rows.append({"who": name, "fps": speed, **found, "limit_ms": round(limit_ms, 1), "kept": kept,
                             "last_ms": round((seen[-1][3] - seen[-1][2]) / 1e6, 1)})  # fmt: skip
                say(f"{name} at {speed} fps: {found}")
    return rows


# ---------------------------------------------------------------- P2, P3


def faults(programs: dict[str, str], quick: bool) -> list[dict[str, Any]]:
    """Return how each program takes silences and ends."""
    freezes = (0.5, 2.0, 6.0) if quick else (0.5, 2.0, 6.0, 10.0, 30.0)
    plan: list[tuple[str, list[Any], float, list[Any]]] = [("freeze", ["freeze"], s, ["release"]) for s in freezes]
    plan += [("hold", ["hold"], s, ["release"]) for s in (1.0, 4.0)]
    plan += [("deaf", ["freeze", True], 3.0, ["release"]),
             ("reset", ["reset"], 0.0, []), ("half frame", ["half_frame"], 0.0, []),
             ("restart", ["stop"], 3.0, ["start"])]  # fmt: skip
    rows = []
    for name, python in programs.items():
        for fault, begin, silence_s, end in plan * (1 if quick else 3):
            with (
                ServerProcess("rtsp", fps=FPS, size=SIZE) as server,
                Consumer(python, name, server.url, 0.0, f"staleness:{LIMIT_MS:.0f}ms") as consumer,
            ):
                if not consumer.wait_for(lambda rows: sum(row[0] == "frame" for row in rows) > 20, PATIENCE_S):
                    rows.append({"who": name, "fault": fault, "s": silence_s, "opened": False})
                    continue
                began_ns = time.monotonic_ns()
                server.send(*begin)
                time.sleep(silence_s)
                ended_ns = time.monotonic_ns()
                if end:
                    server.send(*end)
                back = consumer.wait_for(lambda rows, at=ended_ns: _first_fresh(rows, at) is not None, PATIENCE_S)
                time.sleep(1.0)
                rows.append(_taken(name, fault, silence_s, consumer.rows, began_ns, ended_ns) | {"back": back})
                say(f"{rows[-1]}")
    return rows


def _first_fresh(rows: list[list[Any]], after_ns: int) -> int | None:
    return next((r[1] for r in rows if r[0] == "frame" and r[2] is not None and r[2] >= after_ns), None)


def _taken(
    name: str, fault: str, silence_s: float, rows: list[list[Any]], began_ns: int, ended_ns: int
) -> dict[str, Any]:
    flagged = next((r[1] for r in rows if r[0] == "state" and r[1] > began_ns and r[2] != "live"), None)
    fresh = _first_fresh(rows, ended_ns)
    old = [(r[1] - r[2]) / 1e6 for r in rows if r[0] == "frame" and r[2] is not None and r[1] > began_ns]
    return {
        "who": name, "fault": fault, "s": silence_s,
        "flagged_ms": None if flagged is None else round((flagged - began_ns) / 1e6),
        "fresh_after_ms": None if fresh is None else round((fresh - ended_ns) / 1e6),
        "older_than_policy": sum(age > LIMIT_MS + LATE_MS for age in old),
        "unreadable": sum(r[0] == "frame" and r[2] is None for r in rows),
        "oldest_ms": round(max(old), 1) if old else None,
    }  # fmt: skip


# ---------------------------------------------------------------- P4


def leaks(folder: Path) -> dict[str, Any]:
    """Return what is left after many openings and reconnects, and how long `close` took beside a frozen source."""
    opened, reconnected = 1000, 200
    clip = folder / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (64, 48))
    for i in range(10):
        writer.write(np.full((48, 64, 3), i * 8, np.uint8))
    writer.release()
    cv2.imwrite(str(folder / "one.png"), np.zeros((48, 64, 3), np.uint8))

    def open_and_close(count: int) -> None:
        for i in range(count):
            with Camera((clip, folder / "one.png")[i % 2]) as camera:
                camera.read()

    open_and_close(40)  # what libraries open once and keep
    time.sleep(0.5)
    before = holdings()
    open_and_close(opened)
    time.sleep(0.5)
    found: dict[str, Any] = {"openings": opened, "left_by_openings": _grown(before)}
    with ServerProcess("rtsp", fps=FPS, size=SIZE) as server:
        closes = []
        for _ in range(20):
            camera = Camera(server.url)
            camera.read()
            server.send("freeze", True)
            time.sleep(0.3)
            start = time.monotonic()
            camera.close()
            closes.append(time.monotonic() - start)
            server.send("release")
        found["close_s"] = {"n": len(closes), "max": round(max(closes), 3)}
        time.sleep(1.5)
        before = holdings()
        with Camera(server.url) as camera:
            while camera.counters.reconnects < reconnected:
                seen = camera.counters.reconnects
                server.send("reset")
                while camera.counters.reconnects == seen:
                    camera.read(timeout_ms=20_000)
        counters = camera.counters
        found["reconnects"] = counters.reconnects
        found["adds_up"] = counters.captured == counters.delivered + counters.dropped
    found["left_by_reconnects"] = _grown(before)
    say(f"{found}")
    return found


def _grown(before: dict[str, float]) -> dict[str, float]:
    return {name: round(value - before[name], 1) for name, value in holdings().items()}


# ---------------------------------------------------------------- P5


def callbacks(folder: Path) -> dict[str, Any]:
    """Return how many frames were processed when 1 % of the inferences raise, and the ages behind a slow consumer."""
    path, count = folder / "long.avi", 600
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (64, 48))
    for i in range(count):
        writer.write(np.full((48, 64, 3), i % 256, np.uint8))
    writer.release()
    calls = 0

    def shaky(frame_bgr: np.ndarray) -> int:
        nonlocal calls
        calls += 1
        if calls % 100 == 0:
            raise ValueError("one in a hundred")
        return calls

    with stream(shaky, path) as results:
        processed = sum(1 for _ in results)
    work_s, seen = 10 * INTERVAL_MS / 1e3, []
    with ServerProcess("rtsp", fps=FPS, size=SIZE) as server, stream(lambda _: time.sleep(work_s), server.url) as slow:
        for item in slow:
            age = age_ms(item.frame.array_bgr)
            if age is not None:
                seen.append(age)
            if len(seen) == 20:
                break
    found = ages_of(seen)
    limit_ms = 2 * INTERVAL_MS + work_s * 1e3
    return {
        "frames": count, "raised": results.counters.failed, "processed": processed,
        "all_others": processed == count - results.counters.failed,
        "slow": found | {"limit_ms": limit_ms, "median_kept": found["p50_ms"] <= limit_ms},
    }  # fmt: skip


# ---------------------------------------------------------------- extras


def clips(folder: Path) -> list[dict[str, Any]]:
    """Return how many frames of each real video came through, in order."""
    rows = []
    for name, expected in CLIPS.items():
        if not (folder / name).exists():
            rows.append({"name": name, "expected": expected, "frames": None})
            continue
        with Camera(folder / name) as camera:
            seqs = [frame.seq for frame in camera]
        in_order = seqs == list(range(len(seqs)))
        found = {"frames": len(seqs), "in_order": in_order, "corrupt": camera.counters.corrupt}
        rows.append({"name": name, "expected": expected, **found})
    return rows


def find_roboflow(folder: Path, python: str) -> tuple[str | None, str]:
    """Return an interpreter that has roboflow's package, installed under `folder` if none is given, or why not."""
    program, commands = python or str(folder / "roboflow/bin/python"), []
    if not python:
        say("installing roboflow's inference into an environment of its own")
        commands = [[sys.executable, "-m", "venv", str(folder / "roboflow")],
                    [program, "-m", "pip", "install", "-q", ROBOFLOW]]  # fmt: skip
    for command in [*commands, [program, "-c", "from inference import InferencePipeline"]]:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return None, f"{shlex.join(command[1:])}: {(done.stderr.strip().splitlines() or ['?'])[-1][:300]}"
    return program, ""


def version_of(name: str, python: str) -> str:
    """Return the version of what a program reads frames with."""
    code = {
        "edgemae": "import edgemae; print(edgemae.__version__)",
        "opencv": "import cv2; print(cv2.__version__)",
        "roboflow": "from importlib.metadata import version; print(version('inference'))",
    }[name]
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout.strip() or "?"


def readme_table(result: dict[str, Any]) -> str:
    """Return the results as docs/benchmarks.md shows them."""
    who = list(dict.fromkeys(row["who"] for row in result["ages"]))
    lines = ["| Age of a result, p99 | " + " | ".join(who) + " | Limit |", "| --- |" + " ---: |" * (len(who) + 1)]
    for speed in dict.fromkeys(row["fps"] for row in result["ages"]):
        row = {r["who"]: r for r in result["ages"] if r["fps"] == speed}
        cells = [f"{row[name]['p99_ms']:.0f} ms" if row[name]["n"] else "–" for name in who]
        lines.append(f"| consumer of {speed} fps | {' | '.join(cells)} | {row['edgemae'].get('limit_ms', 0):.0f} ms |")
    lines += ["", "| First fresh image after the return (older than the policy) | " + " | ".join(who) + " |"]
    lines.append("| --- |" + " ---: |" * len(who))
    for fault, silence_s in dict.fromkeys((row["fault"], row["s"]) for row in result["faults"]):
        same = [row for row in result["faults"] if (row["fault"], row["s"]) == (fault, silence_s)]
        cells = [_fault_cell([row for row in same if row["who"] == name]) for name in who]
        lines.append(f"| {fault}{f' of {silence_s:g} s' if silence_s else ''} | {' | '.join(cells)} |")
    leaks, calls = result["leaks"], result["callbacks"]
    lines += [
        "",
        f"- close beside a frozen source: at most {leaks['close_s']['max']:.2f} s of {leaks['close_s']['n']}",
        f"- left by {leaks['openings']} openings: {_left(leaks['left_by_openings'])}",
        f"- left by {leaks['reconnects']} reconnects: {_left(leaks['left_by_reconnects'])}",
        f"- {calls['raised']} of {calls['frames']} inferences raised, {calls['processed']} processed",
    ]
    if result["clips"]:
        lines.append("- clips: " + ", ".join(f"{c['name']} {c['frames']} of {c['expected']}" for c in result["clips"]))
    if result["roboflow"]:
        lines.append(f"- roboflow: {result['roboflow']}")
    return "\n".join(lines)


def _fault_cell(rows: list[dict[str, Any]]) -> str:
    if not rows or any(row.get("fresh_after_ms") is None for row in rows):
        return f"not within {PATIENCE_S:.0f} s"
    return f"{max(row['fresh_after_ms'] for row in rows)} ms ({sum(row['older_than_policy'] for row in rows)})"


def _left(grown: dict[str, float]) -> str:
    return f"{grown['threads']:g} threads, {grown['descriptors']:g} descriptors, {grown['rss_mib']:g} MiB"


if __name__ == "__main__":
    sys.exit(main())
