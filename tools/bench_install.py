"""What the runtime costs on a device: megabytes installed, the time of its import, memory with a ViT-Tiny.

    python tools/bench_install.py --quick --json install.json

Builds the wheel of this checkout and installs it into clean environments, one for each choice of extras, with the
versions of constraints.txt. Promised: at most 200 MB with one engine, 320 MB with OpenCV, an import of 0.3 s, 200 MB of
memory; a promise that is missed is printed as such.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_latency import PIXEL, TINY

from edgemae.device.engines import open_session
from edgemae.device.hardware.fingerprint import fingerprint
from edgemae.device.preprocess import preprocess
from edgemae.device.selfcheck import golden_files, golden_name
from edgemae.export.to_onnx import to_onnx
from edgemae.model.vit import ViT
from edgemae.spec.bundle import write_bundle
from edgemae.spec.manifest import Manifest, Tolerance, Variant
from edgemae.spec.target import find_target

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = "edgemae.bench-install/1"
CHOICES = ("onnxruntime", "openvino", "onnxruntime,camera", "openvino,camera")
ABSENT = ("torch", "onnx", "pandas", "scipy")
LIMITS = {"installed_mb": (200, 320), "import_s": (0.3, 0.3), "rss_mb": (None, 200)}  # without and with OpenCV
PROGRAMS = {"nothing": "pass", "import": "import edgemae", "opened": "import edgemae; edgemae.load"}
MEMORY = """
import json, sys
def mb(key="VmRSS"):
    rows = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(rows[key].split()[0]) * 1024 / 1e6
steps = {"Python": mb()}
import numpy as np; steps["numpy"] = mb()
import cv2; steps["OpenCV"] = mb()
import edgemae
with edgemae.load(sys.argv[1]) as model:
    steps["engine and bundle"] = mb()
    frame_bgr = np.zeros((480, 640, 3), np.uint8)
    for _ in range(int(sys.argv[2])):
        model(frame_bgr)
steps["frames"] = mb()
print(json.dumps({"steps": steps, "rss_mb": mb(), "peak_mb": mb("VmHWM")}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="5 starts of Python instead of 25, 10 frames instead of 100"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder) / "dist")
        results = [study(Path(folder), wheel, extras, quick=args.quick) for extras in CHOICES]
    report = {
        "schema": SCHEMA, "command": shlex.join(["python", *sys.argv]),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": fingerprint(), "results": results,
    }  # fmt: skip
    print(readme_table(report))
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


# ---------------------------------------------------------------- measuring


def build_wheel(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def study(folder: Path, wheel: Path, extras: str, *, quick: bool) -> dict[str, Any]:
    """Install one choice and measure it. Memory is measured with OpenCV only: no bundle loads without."""
    env = folder / extras.replace(",", "-")
    venv.create(env, symlinks=True)
    python = env / "bin" / "python"
    install = ["install", "-q", "--only-binary=:all:", "-c", str(ROOT / "constraints.txt")]
    requirement = f"edgemae[{extras}] @ {wheel.as_uri()}"
    subprocess.run([sys.executable, "-m", "pip", "--python", str(env), *install, requirement], check=True)
    print(f"installed {extras}", file=sys.stderr)
    (site,) = (env / "lib").glob("python*/site-packages")
    names = [distribution.name for distribution in importlib.metadata.distributions(path=[str(site)])]
    sizes = {name: sum(path.stat().st_size for path in files_of(site, name)) / 2**20 for name in names}
    sizes = dict(sorted(sizes.items(), key=lambda item: -item[1]))
    bytecode = sum(path.stat().st_size for name in sizes for path in files_of(site, name) if path.suffix == ".pyc")
    measured: dict[str, Any] = {
        "extras": extras, "sizes_mib": sizes, "installed_mb": sum(sizes.values()) * 2**20 / 1e6,
        "bytecode_mb": bytecode / 1e6,
        "absent": absent(python), **starts(python, 5 if quick else 25),
    }  # fmt: skip
    if "camera" in extras:
        bundle = write_tiny(folder, extras.partition(",")[0])
        command = [str(python), "-c", MEMORY, str(bundle), "10" if quick else "100"]
        environment = {"EDGEMAE_CACHE_DIR": str(folder / "cache")}
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env=environment)
        measured |= json.loads(done.stdout)
    return measured | {"missed": missed(measured)}


def files_of(site: Path, name: str) -> list[Path]:
    """Return the files of an installed distribution, the compiled Python files with it."""
    (distribution,) = importlib.metadata.distributions(name=name, path=[str(site)])
    files = [Path(str(distribution.locate_file(file))) for file in distribution.files or []]
    return [path for path in files if path.is_file()]


def absent(python: Path) -> list[str]:
    """Return which of the libraries that a device must not have are not there."""
    code = f"import importlib.util as u; print(*[n for n in {ABSENT!r} if u.find_spec(n) is None])"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def starts(python: Path, rounds: int) -> dict[str, Any]:
    """Start Python with nothing, with edgemae, and with what `load` takes, interleaved; return medians and ratios."""
    times_s: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds + 1):
        for name, code in PROGRAMS.items():
            start = time.perf_counter()
            done = subprocess.run([python, "-c", code], capture_output=True, check=False)
            if done.returncode == 0:
                times_s[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(seconds[1:]) for name, seconds in times_s.items() if seconds}  # the first: cold
    nothing = medians["nothing"]
    return {
        "start_s": medians, "import_s": medians["import"] - nothing, "import_ratio": medians["import"] / nothing,
        "open_s": medians["opened"] - nothing if "opened" in medians else None,
    }  # fmt: skip


def write_tiny(folder: Path, engine: str) -> Path:
    """Write a bundle of a ViT-Tiny/16 at 224 px with random weights."""
    torch.manual_seed(0)
    graph, target = to_onnx(ViT(TINY).eval(), PIXEL), find_target("cpu-onnxruntime")
    ((name, data),) = graph.files.items()
    frame_bgr = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    with open_session(engine, graph.files, target) as session:
        rows = next(iter(session(preprocess(frame_bgr, PIXEL)).values()))
    variant = Variant(engine=engine, files=(f"graph/{name}",), precision="fp32",
                golden=golden_name(f"{engine}-fp32"), tolerance=Tolerance(cosine_min=0.999, max_abs=0.01))  # fmt: skip
    golden, files = golden_files([frame_bgr], PIXEL, {variant.id: rows})
    manifest = Manifest(
        name="tiny", version=1, created="2026-01-01T00:00:00Z", status="passed", target=target, io=graph.io,
        pixel=PIXEL, variants=(variant,), golden=golden, labels=tuple(f"class {i}" for i in range(TINY.classes)),
    )  # fmt: skip
    return write_bundle(folder / f"tiny-{engine}.edgemae", manifest, {**files, f"graph/{name}": data})


def missed(measured: dict[str, Any]) -> list[str]:
    """Return each promise that was missed, with its figure and its largest cause."""
    with_opencv = "camera" in measured["extras"]
    over = {name: (measured[name], limits[with_opencv]) for name, limits in LIMITS.items() if name in measured}
    causes = {"installed_mb": shares(measured["sizes_mib"], 4), "rss_mb": grown(measured.get("steps", {}))}
    lines = [f"{name} {value:.4g} > {limit} ({causes.get(name, '')})"
             for name, (value, limit) in over.items() if limit is not None and value > limit]  # fmt: skip
    return lines + [f"{name} is installed" for name in ABSENT if name not in measured["absent"]]


def shares(sizes: dict[str, float], count: int) -> str:
    return ", ".join(f"{name} {size:.0f} MiB" for name, size in list(sizes.items())[:count])


def grown(steps: dict[str, float]) -> str:
    """Return how much each step added to the memory."""
    before = [0.0, *steps.values()]
    return ", ".join(f"{name} +{mb - last:.0f} MB" for (name, mb), last in zip(steps.items(), before, strict=False))


# ---------------------------------------------------------------- printing


def readme_table(result: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| `pip install` | Installed | `.pyc` | Largest | `import edgemae` | `edgemae.load` | Memory with ViT-Tiny |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    notes = []
    for row in result["results"]:
        lines.append(
            f"| `edgemae[{row['extras']}]` | {row['installed_mb']:.0f} MB | {row['bytecode_mb']:.0f} MB | "
            f"{shares(row['sizes_mib'], 3)} | {1e3 * row['import_s']:.0f} ms ({row['import_ratio']:.2f}× `pass`) | "
            f"{or_dash(row.get('open_s'), '.2f', 's')} | {or_dash(row.get('rss_mb'), '.0f', 'MB')} |"
        )
        notes += [f"- `{row['extras']}` misses a promise: {line}" for line in row["missed"]]
    return "\n".join([*lines, "", *notes])


def or_dash(value: float | None, form: str, unit: str) -> str:
    return "–" if value is None else f"{value:{form}} {unit}"


if __name__ == "__main__":
    sys.exit(main())
