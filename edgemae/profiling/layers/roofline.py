"""What this machine can do at best, measured: the roofline that operators are held against.

Roofline: S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for multicore
architectures", CACM 52 (2009). Bandwidth is counted as STREAM's copy does: bytes read plus bytes written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from edgemae.device.engines import find_engine
from edgemae.profiling.layers.matmul_onnx import PRECISIONS, product_onnx
from edgemae.spec.report import Record
from edgemae.spec.target import Target

# The fastest of many short runs counts: a limit is what the machine can do, not what it did beside other work, and a
# run of 2 ms often fits between two of a neighbour's. An AVX2 product gains no more speed beyond 512, but beside other
# work the shorter one can come out faster (OpenVINO int8: 28 against 12 GMAC/s).
PRODUCT_SIZES = (256, 512)
REPEATS = 40
CACHES = 4  # arrays are this many times as large as the last-level cache
MIN_ARRAY, MAX_ARRAY = 64 << 20, 512 << 20  # bytes
CHUNK = 16 << 20  # bytes copied at a time; all others come in between, so that no cache still holds it


class Limits(Record, frozen=True):
    """State the measured limits of one engine with its threads."""

    gmacs: dict[str, float]  # precision -> GMAC/s of a large matrix product
    gbytes: float  # GB/s of memory


def measured_limits(engine: str, target: Target, precisions: Iterable[str]) -> Limits:
    """Return the limits for these precisions. Each is measured once in a process, in 0.3 s or so.

    Only fp32 and int8 have one: a product in fp16 or bf16 is not written here, and another's limit would be a wrong
    one. For engines on the processor: `copy_gbytes` knows nothing of a GPU's memory.
    """
    gmacs = {kind: product_gmacs(engine, target, kind) for kind in dict.fromkeys(precisions) if kind in PRECISIONS}
    return Limits(gmacs=gmacs, gbytes=copy_gbytes(target.threads))


def roofline(macs: int | None, size: int | None, ms: float, peak: float | None, gbytes: float) -> tuple[float, str]:
    """Return (share of the limit, "compute" or "memory") of an operator that took `ms`.

    `macs` and `size` (bytes) may be None, which counts as 0; `peak` is GMAC/s. The share is the least time that the
    limits allow over the time it took, at most 1: what lies in a cache can come faster than memory could give it.
    """
    compute_ms = macs / peak / 1e6 if macs and peak else 0.0
    memory_ms = size / gbytes / 1e6 if size and gbytes else 0.0
    share = min(max(compute_ms, memory_ms) / ms, 1.0) if ms > 0 else 0.0
    return share, "compute" if compute_ms >= memory_ms else "memory"


@cache
def product_gmacs(engine: str, target: Target, precision: str) -> float:
    """Return the GMAC/s that an engine reaches on a large matrix product, from its own time of that operator."""
    fastest = 0.0
    for size in PRODUCT_SIZES:
        session = find_engine(engine).instrument({"product.onnx": product_onnx(size, precision)}, target)
        values = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
        for _ in range(REPEATS):
            session(values)
        # The product is the longest operator by far; what surrounds it (quantizing, reordering) is left out.
        fastest = max(fastest, size**3 / max(float(operator.ms.min()) for operator in session.finish()) / 1e6)
    return fastest


@cache
def copy_gbytes(threads: int) -> float:
    """Return the GB/s of copying arrays that no cache holds, on this many threads at once."""
    size = min(max(CACHES * last_level_cache(), MIN_ARRAY), MAX_ARRAY)
    source, sink = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    sink[:] = 1  # a page that was never written takes a fault
    part = CHUNK // threads
    with ThreadPoolExecutor(threads) as pool:  # numpy gives up the interpreter's lock while it copies

        def copy(at: int) -> None:
            starts = range(at, at + part * threads, part)
            list(pool.map(lambda start: np.copyto(sink[start : start + part], source[start : start + part]), starts))

        return _gbytes(copy, range(0, size - CHUNK + 1, CHUNK), part * threads)


def last_level_cache(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Return the size in bytes of the largest cache of the first core, 0 where the kernel does not tell."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [path.read_text().strip() for path in root.glob("index*/size")]
    return max((int(text[:-1]) * units[text[-1]] for text in sizes if text[-1:] in units), default=0)


def _gbytes(copy: Callable[[int], None], starts: Sequence[int], size: int) -> float:
    """Return the GB/s of the fastest copy of `size` bytes; every one of `starts` has its turn, again and again."""
    fastest = np.inf
    for turn in range(max(REPEATS, 4 * len(starts))):
        start = time.perf_counter_ns()
        copy(starts[turn % len(starts)])
        fastest = min(fastest, time.perf_counter_ns() - start)
    return float(2 * size / fastest)  # bytes a ns are GB/s
