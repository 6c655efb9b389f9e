"""Latency on this machine: timing with the evidence for believing it, layers, energy, A/B tests and reports."""
