"""What runs on the other machine: its text is sent along with every order, so nothing of it has to be installed there.

Only the standard library, and nothing newer than Python 3.8, so that a machine without edgemae can say so. An answer is
one line: MARK, then JSON. A job runs in a session of its own: the end of a connection does not end it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterator  # noqa: UP035 - read by the oldest Python that may be there

MARK = "edgemae> "
KEPT_FILES = 8  # bundles that stay for another time; the oldest go first
FORGOTTEN_S = 86_400  # a job that was never fetched is swept away after a day
HEARTBEAT_S = 2.0  # of a followed job: a line to nobody ends this program
LOOK_EVERY_S = 0.1
CHUNK = 1 << 16
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(verb: str, order: dict[str, Any]) -> None:
    """Do one order and print its answer; what the disk refuses is an answer too."""
    verbs: dict[str, Callable[..., dict[str, Any]]] = {
        "environment": environment, "stored": stored, "receive": receive,
        "start": start, "follow": follow, "drop": drop,
    }  # fmt: skip
    try:
        send({"answer": verbs[verb](**order)})
    except BrokenPipeError:  # nobody listens any more
        os._exit(0)
    except OSError as error:
        kind = "full" if error.errno in FULL else "refused"
        send({"answer": {"error": kind, "text": f"{error.filename or folder()}: {error.strerror}"}})


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(MARK + json.dumps(message) + "\n")
    sys.stdout.flush()


def folder() -> Path:
    """Return the one place that is written to; it follows the rule of edgemae's caches."""
    own = os.environ.get("EDGEMAE_CACHE_DIR")
    caches = (
        Path(own)
        if own
        else Path(os.environ.get("XDG_CACHE_HOME") or Path(os.path.expanduser("~")) / ".cache") / "edgemae"
    )
    return caches / "remote"


# ---------------------------------------------------------------- this machine


def environment() -> dict[str, Any]:
    """Return what is installed here, and make room for what will come."""
    os.makedirs(folder(), mode=0o700, exist_ok=True)
    os.makedirs(folder() / "jobs", exist_ok=True)
    for job in (folder() / "jobs").iterdir():
        if time.time() - job.stat().st_mtime > FORGOTTEN_S and not alive(job):
            shutil.rmtree(job, ignore_errors=True)
    try:
        import edgemae

        # A folder of that name, such as a checkout in the home folder, is imported as an empty package.
        version: str | None = getattr(edgemae, "__version__", None)
    except ImportError:
        version = None
    return {"edgemae": version, "python": ".".join(map(str, sys.version_info[:3])), "program": sys.executable}


# ---------------------------------------------------------------- files


def stored(sha256: str, size: int, name: str) -> dict[str, Any]:
    """Return how much of a file is here; a whole one is checked, and only then gets its name."""
    whole, part = folder() / sha256 / name, folder() / f"{sha256}.part"
    if whole.is_file() and digest(whole) == sha256:
        os.utime(whole.parent)
        return {"done": True, "have": size, "path": str(whole)}
    have = part.stat().st_size if part.exists() else 0
    if have < size:
        return {"done": False, "have": have}
    if have > size or digest(part) != sha256:
        part.unlink()
        return {"done": False, "have": 0, "corrupted": True}
    whole.parent.mkdir(exist_ok=True)
    os.replace(part, whole)
    kept = sorted((p for p in folder().iterdir() if p.name != "jobs"), key=lambda p: p.stat().st_mtime, reverse=True)
    used = b"".join(needed(job) for job in (folder() / "jobs").glob("*"))
    for old in kept[KEPT_FILES:]:
        if old.name.encode() not in used:
            old.unlink() if old.is_file() else shutil.rmtree(old, ignore_errors=True)
    return {"done": True, "have": size, "path": str(whole)}


def receive(sha256: str, size: int, name: str, offset: int) -> dict[str, Any]:
    """Write what comes in on stdin from a byte on, at once, so that whatever came before a loss is kept.

    An earlier connection that is thought dead may still write: the same bytes to the same places, which does no harm.
    """
    stdin: Any = sys.stdin.buffer  # what was read ahead with our own text is in it
    handle = os.open(folder() / f"{sha256}.part", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        if os.fstat(handle).st_size >= offset:
            os.lseek(handle, offset, os.SEEK_SET)
            for data in iter(lambda: stdin.read1(CHUNK), b""):
                while data:
                    data = data[os.write(handle, data) :]
    finally:
        os.close(handle)
    return stored(sha256, size, name)


def digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        for data in iter(lambda: file.read(1 << 20), b""):
            found.update(data)
    return found.hexdigest()


# ---------------------------------------------------------------- jobs


def start(job: str, commands: list[list[str]]) -> dict[str, Any]:
    """Start commands, one after another until one fails, in a session of their own; a job that is there is kept."""
    place = folder() / "jobs" / job
    if alive(place) or (place / "ended").exists():
        return {"started": False, "age_s": time.time() - (place / "work.py").stat().st_mtime}
    shutil.rmtree(place, ignore_errors=True)  # killed, or cut off before it began
    place.mkdir(parents=True)
    own = globals()["source"].rpartition(b"\nmain(")[0]
    (place / "work.py").write_bytes(own + b"\nwork(" + json.dumps(commands).encode() + b")\n")
    with open(place / "lock", "w") as lock, open(place / "log", "ab") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        child = subprocess.Popen(
            [sys.executable, "work.py"], cwd=str(place), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, pass_fds=(lock.fileno(),),  # the child holds the lock for as long as it lives
        )  # fmt: skip
        (place / "pid").write_text(str(child.pid))
    return {"started": True}


def work(commands: list[list[str]]) -> None:
    """Run the commands of a job in its folder, and leave their output and exit codes."""
    codes = []
    for number, command in enumerate(commands):
        with open(f"out.{number}", "wb") as out:
            codes.append(subprocess.call(command, stdin=subprocess.DEVNULL, stdout=out))
        if codes[-1]:
            break
    Path("ended.tmp").write_text(json.dumps(codes))
    os.replace("ended.tmp", "ended")


def needed(place: Path) -> bytes:
    """Return a text that names all that a job needs, for as long as it lives."""
    try:
        return (place / "work.py").read_bytes() if alive(place) else b""
    except FileNotFoundError:  # dropped meanwhile
        return b""


def follow(job: str, offset: int) -> dict[str, Any]:
    """Tell what a job logs from a byte on, until it ends; return its exit codes and what each command wrote to stdout.

    No codes: it was killed.
    """
    place, sent_s = folder() / "jobs" / job, time.monotonic()
    while True:
        over = (place / "ended").exists() or not alive(place)
        for line in new_lines(place / "log", offset, over):
            offset += len(line)
            sent_s = time.monotonic()
            send({"line": line.decode(errors="replace").rstrip("\n"), "offset": offset})
        if over:
            break
        if time.monotonic() - sent_s > HEARTBEAT_S:
            sent_s = time.monotonic()
            send({})
        time.sleep(LOOK_EVERY_S)
    ended = place / "ended"
    outputs = sorted(place.glob("out.*"), key=lambda path: int(path.suffix[1:]))
    return {"codes": json.loads(ended.read_text()) if ended.exists() else None,
            "outputs": [path.read_text(errors="replace") for path in outputs]}  # fmt: skip


def new_lines(log: Path, offset: int, over: bool) -> Iterator[bytes]:
    with log.open("rb") as file:
        file.seek(offset)
        for line in file:
            if line.endswith(b"\n") or over:
                yield line


def drop(job: str) -> dict[str, Any]:
    """End a job if it still runs, and remove all that it left."""
    place = folder() / "jobs" / job
    if place.exists() and alive(place):
        with contextlib.suppress(ProcessLookupError, ValueError, FileNotFoundError):
            os.killpg(int((place / "pid").read_text()), signal.SIGTERM)
    shutil.rmtree(place, ignore_errors=True)
    return {}


def alive(place: Path) -> bool:
    """Tell whether the process of a job lives: it holds the lock. A number of a process may be another's by now."""
    try:
        with open(place / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
