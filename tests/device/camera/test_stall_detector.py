"""Which frames are fresh, on made-up times: no clock, no source."""

from __future__ import annotations

from edgemae.device.camera.stall_detector import StallDetector

MS = 1_000_000


class Pipe:
    """A source on a clock of its own: `come(wait)` lets a frame come after a wait of so many ms."""

    def __init__(self, read_timeout_ms: float = 1000.0) -> None:
        self.stall_detector, self.now_ns = StallDetector(read_timeout_ms), 1000 * MS
        self.stall_detector.restart(25.0)

    def come(self, *waits_ms: float) -> list[bool]:
        found = []
        for wait_ms in waits_ms:
            self.now_ns += round(wait_ms * MS)
            found.append(self.stall_detector.is_fresh(self.now_ns, wait_ms))
        return found


def settled(interval_ms: float = 40.0) -> Pipe:
    pipe = Pipe()
    pipe.come(*[interval_ms] * 20)
    return pipe


def test_what_was_queued_before_the_first_wait_is_old() -> None:
    """A server begins with what it has kept: eight frames at once, then the first that is new."""
    assert Pipe().come(1, 1, 2, 1, 1, 1, 1, 1, 38, 40, 2, 40) == [False] * 9 + [True] * 3
    assert Pipe().come(3600, 1, 1, 38, 40) == [False] * 4 + [True]  # or later, after a wait: no less old
    assert Pipe().come(3600, 1, 35, 1, 1, 38, 40) == [False] * 6 + [True]  # one wait is not enough


def test_after_a_silence_the_first_frame_and_what_follows_at_once_are_old() -> None:
    pipe = settled()
    assert pipe.come(600, 1, 1, 1, 30, 40, 40) == [False] * 5 + [True] * 2


def test_a_short_pause_is_no_stall() -> None:
    assert settled().come(200, 1, 1, 40) == [True] * 4


def test_the_limit_follows_the_interval() -> None:
    assert settled(40).stall_detector.stall_ms == 250
    assert settled(16).stall_detector.stall_ms == 250
    assert settled(200).stall_detector.stall_ms == 600


def test_a_camera_that_becomes_slower_is_believed_soon() -> None:
    pipe = settled(40)
    fresh = pipe.come(*[400] * 12)
    assert fresh[1:] == [True] * 11  # in the dark a webcam goes from 25 to 2.5 fps; the first could be a stall
    assert pipe.stall_detector.stall_ms == 1200
    assert all(pipe.come(*[40] * 12))
    assert pipe.stall_detector.stall_ms == 250


def test_a_reader_that_never_waits_is_not_starved_for_ever() -> None:
    """A source that is faster than it says never lets its reader wait: discarding all of it would be worse."""
    fresh = Pipe().come(*[5] * 500)
    assert not any(fresh[:390])
    assert all(fresh[410:])


def test_a_long_backlog_is_discarded_whole() -> None:
    """Ten seconds that a recorder has kept, at 5 ms a frame."""
    assert Pipe().come(*[5] * 250, 35, 40) == [False] * 251 + [True]


def test_a_fast_source_is_believed_when_it_says_so() -> None:
    pipe = Pipe()
    pipe.stall_detector.restart(fps=60.0)
    assert pipe.come(1, 1, 15, 16, 17) == [False] * 3 + [True] * 2
    pipe.stall_detector.restart(fps=90_000.0)
    assert pipe.stall_detector.interval_ms > 15


def test_bursts_get_through_where_the_time_out_allows_for_them() -> None:
    """HLS: 25 frames at once, every second. With a read time-out of 8 s a pause of 1 s is no stall."""
    assert all(Pipe(read_timeout_ms=8000).come(40, 40, 40, *([1000] + [1] * 24) * 4)[3:])
    fresh = settled().come(*([1000] + [1] * 24) * 8)
    assert 0 < sum(fresh) < len(fresh)  # with the default one, some do


def test_opening_again_starts_again_with_the_interval_that_was_learnt() -> None:
    pipe = settled(200)
    pipe.stall_detector.restart(25.0)
    assert pipe.stall_detector.interval_ms == 200
    assert pipe.come(5, 5, 190, 200) == [False, False, False, True]
