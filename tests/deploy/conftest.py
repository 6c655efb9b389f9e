"""A machine behind a real ssh server on this one, and a file to copy there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgemae.deploy.ssh import RemoteHost, parse_address
from tests.support.bundles import block_onnx, box, make_bundle
from tests.support.sshd import Server

__all__ = ["block_onnx", "box", "make_bundle"]


@pytest.fixture
def host(server: Server) -> Iterator[RemoteHost]:
    with RemoteHost(parse_address("device"), sys.executable) as host:
        host.ask("environment")
        yield host


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "large.edgemae"
    path.write_bytes(np.random.default_rng(3).bytes(8 << 20))
    return path
