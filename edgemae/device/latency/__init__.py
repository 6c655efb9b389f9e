"""Latency of anything that can be called, with the evidence for believing it; and of a whole bundle (`profile`)."""

from edgemae.device.latency.interference import Interference, worst
from edgemae.device.latency.machine import differences, fingerprint
from edgemae.device.latency.profiling import Against, Profile, cold_start, describe, profile, read_profile
from edgemae.device.latency.quantiles import (
    Blocks,
    Ratio,
    Summary,
    allowed_percentiles,
    rank_interval,
    ratio,
    round_ratios,
    runs_needed,
    summarise,
)
from edgemae.device.latency.timing import Samples, interleave, measure, park

__all__ = [
    "Against",
    "Blocks",
    "Interference",
    "Profile",
    "Ratio",
    "Samples",
    "Summary",
    "allowed_percentiles",
    "cold_start",
    "describe",
    "differences",
    "fingerprint",
    "interleave",
    "measure",
    "park",
    "profile",
    "rank_interval",
    "ratio",
    "read_profile",
    "round_ratios",
    "runs_needed",
    "summarise",
    "worst",
]
