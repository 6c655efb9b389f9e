"""Whether a camera survives: one stream of 25 fps with random faults for as long as wanted.

    python tools/soak_stream.py --minutes 30 --json tools/results/stream-soak.json
    python tools/soak_stream.py --quick

The server runs in a process of its own and every image carries its capture time, so ages are those of the images.
Faults, in random order (`--seed`): the camera freezes, or stops answering as well; the network holds frames back and
then delivers them all; connections are reset; half a frame, then the end; the server is away; noise in place of frames;
another image size; the source's clock jumps. The exit code is 1 when anything leaked, an old image came through, or
the counters do not add up.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shlex
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from support.stream_rig import ServerProcess, ages_of, holdings, say

from edgemae.device.camera.camera import Camera
from edgemae.device.hardware.fingerprint import fingerprint
from edgemae.spec.errors import CameraError
from tests.support.frame_stamps import age_ms

FPS, LIMIT_MS = 25.0, 200.0
# Between the stamp and the network lies the server's encoder, between the hand-over and the look at the clock this
# process may be switched out: on a busy machine both take their time. What a fault holds back is older than this.
LATE_MS = 100.0
# A damaged packet that the decoder could repair is not reported: it repeats an old image until the next key
# frame, which the server sends every second.
NOISE_S = 4.0
FAULTS = ("freeze", "deaf", "hold", "reset", "half", "away", "garbage", "resize", "jump")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 minutes")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    minutes = 2.0 if args.quick else args.minutes
    result = {
        "command": shlex.join(["python", "tools/soak_stream.py", *sys.argv[1:]]),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **soak(minutes, args.seed), "machine": fingerprint(),
    }  # fmt: skip
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k not in ("machine", "samples")}, indent=1))
    return 0 if result["passed"] else 1


class InjectedFaults:
    """What was done to the server, and until when its noise may be seen."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.noise_until_s = 0.0
        self.over = threading.Event()


class Ages:
    """Ages in memory that is there from the beginning: it must not look like a leak."""

    def __init__(self, most: int) -> None:
        self._ms, self.count = np.full(most, -1.0), 0

    def add(self, age_ms: float) -> None:
        self._ms[self.count] = age_ms
        self.count += 1

    def seen(self) -> np.ndarray:
        return self._ms[: self.count]


def soak(minutes: float, seed: int) -> dict[str, Any]:
    """Return what a consumer of mixed speed saw in `minutes` of faults."""
    most = round(minutes * 60 * FPS * 1.5)
    start, ages, hidden = time.monotonic(), Ages(most), Ages(most)
    samples: list[dict[str, Any]] = []
    states: Counter[str] = Counter()
    seen = {"reads_without_frame": 0, "unreadable": 0, "older_than_policy": 0, "old_after_noise": 0}
    dice, injected = random.Random(seed + 1), InjectedFaults()
    with ServerProcess("rtsp", fps=FPS, size=[320, 256]) as server:
        camera = Camera(server.url, f"staleness:{LIMIT_MS:.0f}ms")
        injector = threading.Thread(target=inject_faults, args=(server, random.Random(seed), injected))
        injector.start()
        try:
            while time.monotonic() - start < minutes * 60:
                if time.monotonic() - start >= 5.0 * len(samples):
                    samples.append({"s": round(time.monotonic() - start), **holdings()})
                try:
                    frame = camera.read(timeout_ms=500)
                except CameraError:
                    seen["reads_without_frame"] += 1
                    states[camera.state] += 1
                    if camera.state == "failed":
                        raise
                    continue
                assert frame is not None
                age, own = age_ms(frame.array_bgr), frame.age_ms
                is_noisy = time.monotonic() < injected.noise_until_s
                if age is None:
                    seen["unreadable"] += 1
                elif age > LIMIT_MS + LATE_MS:
                    seen["old_after_noise" if is_noisy else "older_than_policy"] += 1
                    say(f"old: {age:.0f} ms, believed {own:.0f} ms, generation {frame.generation}, {camera.counters}")
                else:
                    ages.add(age)
                    hidden.add(age - own)
                if dice.random() < 0.1:
                    time.sleep(dice.uniform(0.0, 0.15))  # a consumer that is too slow now and then
        finally:
            injected.over.set()
            injector.join()
            closing = time.monotonic()
            camera.close()
            close_s = time.monotonic() - closing
    figures = {"ages": ages_of(ages.seen()), "not_in_age_ms": ages_of(hidden.seen()), **seen,
               "faults": dict(injected.counts), "states": dict(states)}  # fmt: skip
    return evaluate(minutes, samples, figures, camera, close_s) | {"samples": samples}


def evaluate(
    minutes: float, samples: list[dict[str, Any]], figures: dict[str, Any], camera: Camera, close_s: float
) -> dict[str, Any]:
    """Return the figures and whether they are as promised."""
    settled = samples[len(samples) // 5 :]  # libraries fill their caches in the beginning
    slope = float(np.polyfit([x["s"] for x in settled], [x["rss_mib"] for x in settled], 1)[0]) * 3600
    counters, after = camera.counters, holdings()
    found = {
        "minutes": minutes, "fps": FPS, "policy": camera.policy, **figures,
        "counters": asdict(counters) | {"dropped": counters.dropped},
        "adds_up": counters.captured == counters.delivered + counters.dropped,
        "rss_mib": [round(settled[0]["rss_mib"], 1), round(settled[-1]["rss_mib"], 1)],
        "rss_mib_per_hour": round(slope, 2),
        "most_threads": max(x["threads"] for x in samples), "threads_after": after["threads"],
        "most_descriptors": max(x["descriptors"] for x in samples), "descriptors_after": after["descriptors"],
        "descriptors_first": samples[0]["descriptors"], "close_s": round(close_s, 3),
    }  # fmt: skip
    grown = found["rss_mib"][1] - found["rss_mib"][0]
    steady = found["descriptors_after"] <= found["descriptors_first"]
    kept = found["adds_up"] and figures["older_than_policy"] == 0
    return found | {"passed": bool(kept and grown < 5 and steady and close_s < 1.5)}


def inject_faults(server: ServerProcess, dice: random.Random, injected: InjectedFaults) -> None:
    """Break the server in one way after the other until it is over."""
    wide, over = False, injected.over
    while not over.wait(dice.uniform(2.0, 10.0)):
        fault = dice.choice(FAULTS)
        injected.counts[fault] += 1
        if fault in ("freeze", "deaf", "hold"):
            server.send(*(["freeze", fault == "deaf"] if fault != "hold" else ["hold"]))
            over.wait(dice.choice((0.2, 0.4, 1.0, 3.0, 6.0)))
            server.send("release")
        elif fault == "away":
            server.send("stop", dice.random() < 0.5)
            over.wait(dice.choice((0.2, 1.0, 5.0, 10.0)))
            server.send("start")
        elif fault == "garbage":
            injected.noise_until_s = time.monotonic() + NOISE_S
            server.send("garbage", dice.randint(1, 5))
        elif fault == "resize":
            wide = not wide
            server.send("resize", *((480, 256) if wide else (320, 256)))
        elif fault == "jump":
            server.send("jump_s", dice.uniform(-1e4, 1e4))
        else:
            server.send("reset" if fault == "reset" else "half_frame")
        say(f"{fault}")


if __name__ == "__main__":
    sys.exit(main())
