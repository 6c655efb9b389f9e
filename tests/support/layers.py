"""Planted operators for tests of layers."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from edgemae.device.operators import Operator
from edgemae.device.session import Instrumented
from edgemae.profiling.layers import layer_profile as room

PIXELS = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)


ON_CPU = ("onnxruntime", "openvino")


def operator(name: str, ms: Any, **facts: Any) -> Operator:
    values = {"origin": name, "kind": "MatMul", "precision": "fp32", "macs": None, "bytes": None}
    return Operator(name=name, ms=np.asarray(ms, np.float64), **(values | facts))


def stand_in(monkeypatch: pytest.MonkeyPatch, plain_s: float, watched_s: float, operators: list[Operator]) -> None:
    watched = Instrumented("x", lambda _: time.sleep(watched_s), lambda: time.sleep(0.005), lambda: operators)
    monkeypatch.setattr(room, "find_engine", lambda name: type("E", (), {"instrument": lambda *_: watched}))
    monkeypatch.setattr(room, "open_session", lambda *_: nullcontext(lambda pixels: time.sleep(plain_s)))
