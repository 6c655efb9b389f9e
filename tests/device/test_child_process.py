"""A child that answers, ends, is silent or prints, and what its parent sees."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from edgemae.device.child_process import JsonLinesProcess

CHILD = """
import json, sys, time
from edgemae.device.child_process import claim_stdout
send = claim_stdout()
print("a library says hello")
for line in sys.stdin:
    order = json.loads(line)
    if order.get("end"):
        sys.exit(3)
    if not order.get("silent"):
        send(order)
"""


@pytest.fixture
def child() -> Iterator[JsonLinesProcess]:
    process = JsonLinesProcess(
        [sys.executable, "-c", CHILD], env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    )
    yield process
    process.close()


def test_answers_come_back_whole_and_without_what_was_printed(child: JsonLinesProcess) -> None:
    assert child.ask({"n": 1}, 30.0) == {"n": 1}
    long = {"text": "x" * 1_000_000}  # longer than a pipe holds
    assert child.ask(long, 30.0) == long


def test_an_ended_child_is_no_silent_one(child: JsonLinesProcess) -> None:
    assert child.ask({}, 30.0) == {}
    with pytest.raises(TimeoutError):
        child.ask({"silent": True}, 0.05)
    with pytest.raises(EOFError):
        child.ask({"end": True}, 30.0)
    assert child.wait(10.0) == 3
    with pytest.raises(EOFError):
        child.ask({}, 30.0)


def test_a_child_ends_with_its_standard_input(child: JsonLinesProcess) -> None:
    assert child.close(30.0) == 0
    child.kill()  # of one that has ended: nothing happens


def test_a_child_that_does_not_leave_is_killed() -> None:
    process = JsonLinesProcess([sys.executable, "-c", "import time; time.sleep(60)"])
    assert process.close(0.05) == -9
