"""A profile in which nothing is missing, for pages and tables."""

from __future__ import annotations

import numpy as np

from edgemae.profiling.records import (
    BaselineComparison,
    CameraFigures,
    EarlyStopping,
    Layer,
    Layers,
    Power,
    Profile,
    Sensor,
    Series,
    SloVerdict,
    Soak,
    Start,
    Throughput,
)
from edgemae.profiling.stats.percentiles import Summary, summarise
from edgemae.profiling.timing.interference import Interference
from edgemae.profiling.timing.system_monitor import SystemTimeline


def full_profile(runs: int = 600, verdict: str = "NOISY") -> Profile:
    """Return a profile in which nothing is missing."""
    rng = np.random.default_rng(0)
    ms = 5 * rng.lognormal(0, 0.03, runs) * np.where(rng.random(runs) < 0.2, 1.25, 1.0)
    bad = rng.random(runs) < 0.06
    ms = ms + bad * rng.pareto(2, runs)

    def of(share: float) -> Summary:
        return summarise(ms * share * 1e6)

    layer = Layer(
        name="/blocks.0/fc1/MatMul", module="blocks.0.mlp.fc1", kind="MatMul", precision="fp32", ms=2.0, macs=7_000_000,
        bytes=140_000, limit_share=0.4, bound="compute",
    )  # fmt: skip
    soft = Layer(name="n2", module="", kind="Softmax", precision="fp32", ms=0.3)
    return Profile(
        verdict=verdict, reasons=("others used 8% <of> the processors",), name="cam & co", version=1,
        bundle_sha256="ab" * 32, target="laptop", engine="openvino", precision="fp32", scheme="", scenario="camera",
        steady=of(1.0), stages={"capture": of(0.3), "pre": of(0.1), "infer": of(0.8), "sink": of(0.01)},
        start=Start(cold_ms=431.0, load_ms=210.0, first_ms=12.5),
        interference=Interference(
            verdict=verdict, reasons=(), clean_fraction=0.94, switched_runs=40, slow_canaries=50, others_share=0.08,
            steal_share=0.0, spread=0.1, window_s=9.0, p50_clean_ms=4.98, absent=("cpu pressure (PSI)",),
            timeline=SystemTimeline(
                at_s=tuple(i / 4 for i in range(1, 13)), others_share=(0.02,) * 5 + (0.4,) * 3 + (0.03,) * 4,
                steal_share=(0.01,) * 12, temperature_c=tuple(50.0 + i for i in range(12)),
            ),
        ),
        machine={"cpu": "A processor", "threads": 2, "libraries": {"numpy": "2.0"}}, created="2026-01-01T00:00:00Z",
        throughput=Throughput(fps=193.0, low=188.0, high=197.0, block_runs=50),
        camera=CameraFigures(
            source_fps=25.0, fps=24.8, fps_low=24.1, fps_high=25.0, drop_share=0.008, drop_low=0.002, drop_high=0.02,
            age=of(1.4), frames=runs,
        ),
        early_stopping=(
            EarlyStopping(name="SingleStream p90", value=6.2, runs=runs, needed=64),
            EarlyStopping(name="MultiStream p99", value=None, runs=runs, needed=5296),
        ),
        slo=(SloVerdict(text="p99<33ms", value=9.1, high=12.0, passed=True),
             SloVerdict(text="fps>25", value=24.8, high=24.1, passed=False),
             SloVerdict(text="drop<1%", value=0.008, high=0.02, passed=False)),
        baseline=BaselineComparison(
            name="student", kind="pytorch", engine="torch eager", precision="fp32", p50_ms=6.1, n=400, ratio=1.2,
            ratio_low=1.19, ratio_high=1.215, different=True, paired=True, rounds=20,
            ratios=tuple(float(r) for r in 1.2 * rng.lognormal(0, 0.01, 20)), version="2.13.0",
        ),
        layers=Layers(
            rows=(layer, soft), infer_ms=4.2, instrumented_ms=5.1, overhead=0.21, unmapped_share=0.02,
            peak_gmacs={"fp32": 41.0, "int8": 78.0}, peak_gbytes=11.0, runs=40, covered=0.91,
        ),
        power=Power(sensors=(Sensor(name="package-0", source="rapl", mean=12.3, max=15.0, unit="W"),),
                    energy_mj=61.5, absent=("ina3221",), idle_w=4.2, run_w=12.3, throttled=False, mode="nvpmodel 2"),
        soak=Soak(minutes=10.0, first_p50_ms=5.02, last_p50_ms=5.11, ratio=1.018, ratio_low=0.99, ratio_high=1.04,
                  slower=False),
        series=Series(
            at_s=tuple((np.cumsum(ms) / 1e3).tolist()), ms=tuple(ms.tolist()), disturbed=tuple(bad.tolist())
        ),
    )  # fmt: skip
