"""A camera for weeks, as a service: one JSON line a result, and a word to systemd after each, so that it sees a hang.

python examples/camera_service.py my.edgemae 0

examples/edgemae-camera.service starts it. When the camera goes away it ends with the error's exit code, and systemd
starts it again; it says READY after the first result and WATCHDOG after each.
"""

import json
import os
import signal
import socket
import sys

import edgemae


def main(bundle: str, source: str) -> int:
    try:
        with edgemae.load(bundle) as model, edgemae.Camera(source, "latest", realtime=True) as camera:
            for frame in camera:
                result = model(frame.array_bgr)
                row = {"label": result.label, "score": result.score, "age_ms": round(frame.age_ms, 1)}
                print(json.dumps({"seq": frame.seq} | row), flush=True)
                notify_systemd("READY=1\nWATCHDOG=1")
    except edgemae.EdgemaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        notify_systemd("STOPPING=1")
    return 0


def notify_systemd(words: str) -> None:
    """Send words to the service manager, where there is one (sd_notify's protocol: a datagram)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(words.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # through the `with`, which closes camera and engine
    sys.exit(main(*sys.argv[1:3]))
