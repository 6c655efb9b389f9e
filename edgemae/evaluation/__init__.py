"""Measuring: accuracy with intervals, gates, numeric parity, probes, and the report drawn from them."""
