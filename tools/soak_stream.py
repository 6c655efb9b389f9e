"""Whether a camera survives: one stream of 25 fps that is broken at random for as long as wanted.

    python tools/soak_stream.py --minutes 30 --json tools/results/stream-soak.json
    python tools/soak_stream.py --quick

The server runs in a process of its own and every picture carries its capture time, so ages are those of the pictures.
Faults, in random order (`--seed`): the camera freezes, or stops answering as well; the network holds frames back and
then delivers them all; connections are reset; half a frame, then the end; the server is away; noise in place of frames;
another picture size; the source's clock jumps. The exit code is 1 when anything leaked, an old picture came through, or
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
from stream_rig import ServerProcess, ages_of, holdings, say

from edgemae.device.camera import Camera
from edgemae.device.latency import fingerprint
from edgemae.spec.errors import CameraError
from tests.stamps import age_ms

FPS, LIMIT_MS = 25.0, 200.0
# Between the stamp and the network lies the server's encoder, between the hand-over and the look at the clock this
# process may be switched out: on a busy machine both take their time. What a fault holds back is older than this.
LATE_MS = 100.0
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


def soak(minutes: float, seed: int) -> dict[str, Any]:
    """Return what a consumer of mixed speed saw in `minutes` of faults."""
    start, samples, ages, hidden, states = time.monotonic(), [], [], [], Counter()
    unreadable = waits = 0
    dice, faults, over = random.Random(seed + 1), Counter(), threading.Event()
    with ServerProcess("rtsp", fps=FPS, size=[320, 256]) as server:
        camera = Camera(server.url, f"staleness:{LIMIT_MS:.0f}ms")
        breaker = threading.Thread(target=break_it, args=(server, random.Random(seed), faults, over))
        breaker.start()
        try:
            while time.monotonic() - start < minutes * 60:
                if time.monotonic() - start >= 5.0 * len(samples):
                    samples.append({"s": round(time.monotonic() - start), **holdings()})
                try:
                    frame = camera.read(timeout_ms=500)
                except CameraError:
                    waits += 1
                    states[camera.state] += 1
                    if camera.state == "failed":
                        raise
                    continue
                assert frame is not None
                age, own = age_ms(frame.array_bgr), frame.age_ms
                if age is None:
                    unreadable += 1
                else:
                    ages.append(age)
                    hidden.append(age - own)
                if dice.random() < 0.1:
                    time.sleep(dice.uniform(0.0, 0.15))  # a consumer that is too slow now and then
        finally:
            over.set()
            breaker.join()
            closing = time.monotonic()
            camera.close()
            close_s = time.monotonic() - closing
    return judge(minutes, samples, ages, camera, close_s) | {
        "not_in_age_ms": ages_of(hidden), "unreadable": unreadable,
        "reads_without_frame": waits, "faults": dict(faults), "states": dict(states),
        "samples": samples,
    }  # fmt: skip


def judge(
    minutes: float, samples: list[dict[str, Any]], ages: list[float], camera: Camera, close_s: float
) -> dict[str, Any]:
    """Return the figures and whether they are as promised."""
    settled = samples[len(samples) // 5 :]  # libraries fill their caches in the beginning
    slope = float(np.polyfit([x["s"] for x in settled], [x["rss_mib"] for x in settled], 1)[0]) * 3600
    counters = camera.counters
    late = sum(age > LIMIT_MS + LATE_MS for age in ages)
    after = holdings()
    found = {
        "minutes": minutes, "fps": FPS, "policy": camera.policy, "ages": ages_of(ages), "older_than_policy": late,
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
    return found | {"passed": bool(found["adds_up"] and late == 0 and grown < 8 and steady and close_s < 1.5)}


def break_it(server: ServerProcess, dice: random.Random, faults: Counter[str], over: threading.Event) -> None:
    """Break the server in one way after the other until `over`."""
    wide = False
    while not over.wait(dice.uniform(2.0, 10.0)):
        fault = dice.choice(FAULTS)
        faults[fault] += 1
        if fault in ("freeze", "deaf", "hold"):
            server.tell(*(["freeze", fault == "deaf"] if fault != "hold" else ["hold"]))
            over.wait(dice.choice((0.2, 0.4, 1.0, 3.0, 6.0)))
            server.tell("release")
        elif fault == "away":
            server.tell("stop", dice.random() < 0.5)
            over.wait(dice.choice((0.2, 1.0, 5.0, 10.0)))
            server.tell("start")
        elif fault == "garbage":
            server.tell("garbage", dice.randint(1, 5))
        elif fault == "resize":
            wide = not wide
            server.tell("resize", *((480, 256) if wide else (320, 256)))
        elif fault == "jump":
            server.tell("jump_s", dice.uniform(-1e4, 1e4))
        else:
            server.tell("reset" if fault == "reset" else "half_frame")
        say(f"{fault}")


if __name__ == "__main__":
    sys.exit(main())
