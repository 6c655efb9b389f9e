"""The measuring toolbox: latencies of anything that can be called, with the evidence for believing them."""

from edgemae.device.latency.bootstrap import Mean, mean_interval
from edgemae.device.latency.interference import Interference, worst
from edgemae.device.latency.machine import differences, fingerprint
from edgemae.device.latency.quantiles import (
    Blocks,
    Ratio,
    Summary,
    allowed_percentiles,
    percentile,
    rank_interval,
    ratio,
    round_ratios,
    runs_needed,
    shift,
    summarise,
)
from edgemae.device.latency.timing import Recorder, Samples, Until, interleave, measure, park, warm

__all__ = [
    "Blocks",
    "Interference",
    "Mean",
    "Ratio",
    "Recorder",
    "Samples",
    "Summary",
    "Until",
    "allowed_percentiles",
    "differences",
    "fingerprint",
    "interleave",
    "mean_interval",
    "measure",
    "park",
    "percentile",
    "rank_interval",
    "ratio",
    "round_ratios",
    "runs_needed",
    "shift",
    "summarise",
    "warm",
    "worst",
]
