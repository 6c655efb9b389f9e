"""What a release check needs: an installed wheel in an environment of its own, a finished demo, and commands that are
run under limits and looked at from outside."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parents[2]
MOST_S, MOST_MIB = 10.0, 1024.0  # of one case, unless it says otherwise
QUIET = ("CI", "ORT_DISABLE_TELEMETRY", "PYTHONPATH")  # what would hide a fault here that others see
KILLED_S, KILLED_MIB = 30.0, 3072.0  # a case that gets here is ended
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # what a terminal would act on
DIGITS = "@digits"  # in a manifest: a number of 5,000 digits
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


@dataclass(frozen=True)
class Outcome:
    """One command as it ended. `code` is -N for signal N, as subprocess has it."""

    command: str
    code: int
    out: str
    err: str
    seconds: float
    peak_mib: float
    killed: bool

    @property
    def first_line(self) -> str:
        """Return the first line of what was printed, errors first."""
        lines = [line for line in (self.err + self.out).splitlines() if line.strip()]
        return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")

    def faults(self) -> list[str]:
        """Return what is wrong with any command that ends so, whatever it was asked."""
        found = []
        if self.killed:
            found.append(f"was killed after {self.seconds:.0f} s at {self.peak_mib:.0f} MiB")
        if self.code == 1 or "Traceback (most recent call last)" in self.err:
            found.append("a bug of edgemae")
        if self.code < 0 and not self.killed:
            found.append(f"ended by signal {-self.code}")
        if raw := RAW.search(self.out + self.err):
            found.append(f"prints {raw.group()!r} raw")
        return found


class Workbench:
    """Run the installed edgemae in a scratch folder, on the bundle, teacher, student and images of its own demo."""

    def __init__(self, python: Path, folder: Path, demo: Path) -> None:
        self.python, self.folder, self.demo = python, folder, demo
        self.scratch = folder
        self.home = folder / "home"
        self.home.mkdir(exist_ok=True)

    @property
    def bundle(self) -> Path:
        return self.demo / "digits.edgemae"

    @property
    def train(self) -> Path:
        return self.demo / "images" / "train"

    @property
    def test(self) -> Path:
        return self.demo / "images" / "test"

    @property
    def student(self) -> Path:
        return next(self.demo.glob("stages/student-*/student.safetensors"))

    @property
    def teacher(self) -> Path:
        return next(self.demo.glob("stages/pretrain-*/teacher.safetensors"))

    def fresh(self, name: str) -> Workbench:
        """Return the same bench with an empty scratch folder."""
        bench = Workbench(self.python, self.folder, self.demo)
        bench.scratch = self.folder / "cases" / re.sub(r"\W+", "-", name)[:80]
        shutil.rmtree(bench.scratch, ignore_errors=True)
        bench.scratch.mkdir(parents=True)
        bench.scratch.chmod(0o777)  # some cases run as another user
        return bench

    def edgemae(self, *arguments: object, **how: Any) -> Outcome:
        """Run a verb."""
        return self.run([str(self.python), "-m", "edgemae", *map(str, arguments)], **how)

    def script(self, text: str, *arguments: object, **how: Any) -> Outcome:
        """Run a program that imports edgemae."""
        return self.run([str(self.python), "-c", text, *map(str, arguments)], **how)

    def run(
        self, command: Sequence[str], *, env: Mapping[str, str | None] = {}, user: int | None = None,
        signal_after: tuple[float, int] | None = None, stdout: Any = subprocess.PIPE, killed_s: float = KILLED_S,
    ) -> Outcome:  # fmt: skip
        """Run a command to its end. `signal_after`: seconds and the signal that it gets; `user`: who runs it."""
        around: dict[str, str] = {key: value for key, value in os.environ.items() if key not in QUIET}
        around |= {"HOME": str(self.home), "EDGEMAE_CACHE_DIR": str(self.folder / "cache"), "NO_COLOR": "1"}
        for key, value in env.items():
            around.pop(key, None)
            if value is not None:
                around[key] = value
        with tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as out:
            start = time.monotonic()
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out if stdout is subprocess.PIPE else stdout, stderr=err,
                cwd=self.scratch, env=around, user=user, start_new_session=True,
            )  # fmt: skip
            peak, killed = self._watch(process, start, signal_after, killed_s)
            seconds = time.monotonic() - start
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read(1 << 22).decode("utf-8", "backslashreplace"))
        words = " ".join(Path(word).name if "/" in word else word for word in command[1:])
        return Outcome(words[:200], process.returncode, texts[0], texts[1], seconds, peak, killed)

    def failed(self, why: str) -> Outcome:
        """Return the outcome of a case that ended well and left behind what it must not."""
        return Outcome("", 1, "", f"error: {why}", 0.0, 0.0, False)

    @staticmethod
    def _watch(
        process: subprocess.Popen[bytes], start: float, signal_after: tuple[float, int] | None, killed_s: float
    ) -> tuple[float, bool]:
        """Wait for the end; return the most memory that the process held (MiB), and whether it had to be killed."""
        peak, killed, sent = 0.0, False, False
        while process.poll() is None:
            try:
                held = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * PAGE_KIB / 1024
            except (OSError, IndexError):
                held = 0.0
            peak, passed = max(peak, held), time.monotonic() - start
            if signal_after is not None and not sent and passed > signal_after[0]:
                process.send_signal(signal_after[1])
                sent = True
            if passed > killed_s or held > KILLED_MIB:
                killed = True
                os.killpg(process.pid, 9)
                process.wait()
            time.sleep(0.01)
        return peak, killed

    # ---------------------------------------------------------------- inputs that only somebody else would write

    def rewritten(
        self, name: str = "hostile.edgemae", files: Mapping[str, bytes | None] = {}, change: Any = None
    ) -> Path:
        """Return the demo's bundle as a folder with other files (None: without it) and a changed manifest, rightly
        hashed. `change` edits the manifest's tree in place."""
        path = self.scratch / name
        with tempfile.TemporaryDirectory() as folder:
            shutil.unpack_archive(self.bundle, folder, "zip")
            found = {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
        tree = msgspec.json.decode(found.pop("manifest.json"))
        found.pop("manifest.sha256")
        for file, data in files.items():
            found.pop(file, None)
            if data is not None:
                found[file] = data
        tree["files"] = {file: {"sha256": _sha256(data), "size": len(data)} for file, data in found.items()}
        if change is not None:
            change(tree)
        raw = msgspec.json.encode(tree, order="sorted").replace(b'"@digits"', b"9" * 5000) + b"\n"
        found |= {"manifest.json": raw, "manifest.sha256": f"{_sha256(raw)}  manifest.json\n".encode()}
        for file, data in found.items():
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_bytes(data)
        return path

    def file_of(self, name: str) -> bytes:
        """Return one file of the demo's bundle."""
        with tempfile.TemporaryDirectory() as folder:
            shutil.unpack_archive(self.bundle, folder, "zip")
            return (Path(folder) / name).read_bytes()

    def manifest(self) -> dict[str, Any]:
        """Return the manifest of the demo's bundle."""
        tree: dict[str, Any] = msgspec.json.decode(self.file_of("manifest.json"))
        return tree

    def images(self, name: str, classes: Sequence[str] = ("one", "two"), each: int = 6) -> Path:
        """Return a folder with `each` of the demo's images in each of these classes."""
        source = sorted(self.train.glob("*/*.png"))
        for k, label in enumerate(classes):
            where = self.scratch / name / label
            where.mkdir(parents=True, exist_ok=True)
            for i in range(each):
                shutil.copy(source[k * each + i], where)
        return self.scratch / name


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def installed(wheel: Path | None, folder: Path) -> Path:
    """Return the Python of an environment with edgemae from a wheel (None: built from this checkout).

    What edgemae needs comes from the environment that this runs in; edgemae itself only from the wheel.
    """
    if wheel is None:
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(folder),
            str(ROOT),
        ]
        subprocess.run(command, check=True)
        (wheel,) = folder.glob("edgemae-*.whl")
    home = folder / "env"
    venv.create(home, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = home / "lib" / version / "site-packages"
    shutil.unpack_archive(wheel, site, "zip")
    # A line of a .pth file is a folder to import from; .pth files in that folder, such as that of an editable edgemae,
    # do not count.
    (site / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin" / "python"
