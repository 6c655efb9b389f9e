"""What one `edgemae profile` found out: the records of profile.json, and reading one back.

Times are in ms unless a name says otherwise. A figure that this machine cannot give is None, and `absent` says why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgemae.profiling.stats.percentiles import Summary
from edgemae.profiling.timing.interference import Interference
from edgemae.spec.atomic_file import require_replaceable, unwritable, write_atomic
from edgemae.spec.errors import InputError
from edgemae.spec.report import Record

SCHEMA = "edgemae.profile/4"
WRITERS = {f"edgemae.profile/{n}": "a development version of edgemae before 0.1.0" for n in (1, 2, 3)}  # read no more
SCENARIOS = ("single", "offline", "camera")
# What a frame goes through, in order. capture: from the source's hand-over to the start of work (waiting in the slot);
# sink: what the caller does with the result. A scenario without a source has no capture and decode.
STAGES = ("capture", "decode", "pre", "infer", "post", "sink")


class Start(Record, frozen=True):
    """How long a new process takes to its first result."""

    cold_ms: float  # start of the process -> first result
    load_ms: float  # of that: opening and checking the bundle, building or fetching the engine, the golden frames
    first_ms: float  # of that: the very first inference, on the first golden frame
    runs: int = 1  # processes; of several, these are medians
    cold_high_ms: float | None = None  # upper end of the median's interval, where there were enough


class Throughput(Record, frozen=True):
    """Frames a second of back-to-back runs, with a block-bootstrap interval (runs of a block share disturbances)."""

    fps: float
    low: float
    high: float
    block_runs: int
    confidence: float = 0.95


class CameraFigures(Record, frozen=True):
    """What a device app sees behind a camera of a fixed rate whose newest frame is taken."""

    source_fps: float  # of arrivals
    fps: float  # of results
    fps_low: float  # block bootstrap, as of Throughput
    fps_high: float
    drop_share: float  # of arrived frames that were never worked on, 0..1
    drop_low: float
    drop_high: float
    age: Summary  # from a frame's arrival to its result
    frames: int  # that arrived


class EarlyStopping(Record, frozen=True):
    """A percentile as MLPerf's loadgen estimates it: an upper bound at 99 % confidence from few runs."""

    name: str  # "SingleStream p90" | "MultiStream p99" | "Offline"
    value: float | None  # ms, or samples/s for Offline; None when the runs are too few
    runs: int
    needed: int  # smallest number of runs that allows it


class SloVerdict(Record, frozen=True):
    """One limit of --slo, the figure beside it and whether it was shown to be met."""

    text: str  # as it was given: "p99<33ms"
    value: float | None
    high: float | None  # upper end of the figure's interval (lower end for limits of the form fps>25)
    passed: bool
    note: str = ""


class BaselineComparison(Record, frozen=True):
    """State how much faster this bundle is than something else: their time / ours, above 1 when we are faster."""

    name: str
    kind: str  # bundle | pytorch | onnx | profile
    engine: str
    precision: str
    p50_ms: float
    n: int
    ratio: float
    ratio_low: float
    ratio_high: float
    different: bool | None  # at 95 %; None for a stored profile: not interleaved, so it cannot be told
    paired: bool  # True: interleaved, right now; False: compared with a stored profile of the same machine
    rounds: int = 0
    ratios: tuple[float, ...] = ()  # of every round, for the chart
    version: str = ""  # of the engine that ran it, which the machine's libraries may not name: PyTorch


class Layer(Record, frozen=True):
    """One operator of the engine's graph (fused ones are one row), scaled to the un-instrumented median."""

    name: str  # the engine's
    module: str  # the student's: "blocks.3.attn.qkv"; "" where it cannot be told
    kind: str  # operator: MatMul, LayerNormalization, ...
    precision: str  # fp32 | fp16 | int8 ...
    ms: float
    macs: int | None = None
    bytes: int | None = None  # of inputs, weights and outputs
    limit_share: float | None = None  # of what this machine can do at this intensity (roofline), 0..1
    bound: str = ""  # compute | memory


class Layers(Record, frozen=True):
    """Where the time of one inference goes."""

    rows: tuple[Layer, ...]
    infer_ms: float  # un-instrumented median that `ms` adds up to
    instrumented_ms: float
    overhead: float  # instrumented / un-instrumented - 1
    unmapped_share: float  # of the time, in rows whose module is not known
    peak_gmacs: dict[str, float]  # precision -> measured limit of this machine with these threads, GMAC/s
    peak_gbytes: float  # measured memory bandwidth, GB/s
    runs: int
    covered: float = 1.0  # share of a watched inference that lies in its operators; the rest is shared out among them
    verdict: str = "TRUSTED"  # of this pass: it takes its own runs
    reasons: tuple[str, ...] = ()


class Sensor(Record, frozen=True):
    """One rail or zone over the measurement."""

    name: str
    source: str  # rapl | ina3221 | thermal | cpufreq
    mean: float
    max: float
    unit: str  # W | C | MHz
    first_minute: float | None = None
    last_minute: float | None = None


class Power(Record, frozen=True):
    """Power and heat, where the machine tells."""

    sensors: tuple[Sensor, ...] = ()
    idle_w: float | None = None
    run_w: float | None = None
    energy_mj: float | None = None  # of one inference above idle
    throttled: bool | None = None
    throttle: tuple[str, ...] = ()  # every sign that heat or current took speed away
    mode: str = ""  # nvpmodel, platform profile
    absent: tuple[str, ...] = ()  # what was looked for and is not there


class Soak(Record, frozen=True):
    """First against last minute of a long run."""

    minutes: float
    first_p50_ms: float
    last_p50_ms: float
    ratio: float  # last / first: above 1 it got slower
    ratio_low: float
    ratio_high: float
    slower: bool  # at 95 %, by more than 2 %: two minutes of an idle machine may lie that far apart


class Series(Record, frozen=True):
    """The runs themselves, thinned to at most 5,000, for charts. All lists are equally long."""

    at_s: tuple[float, ...] = ()  # start of a run since the first one
    ms: tuple[float, ...] = ()
    disturbed: tuple[bool, ...] = ()  # switched out, or beside a slow canary
    kept: int = 1  # one run of this many is here


class Profile(Record, frozen=True):
    """Hold everything that one `edgemae profile` found out. `steady` is of whole calls, pixels in to result out."""

    verdict: str  # TRUSTED | NOISY | INVALID
    reasons: tuple[str, ...]
    name: str
    version: int
    bundle_sha256: str
    target: str
    engine: str
    precision: str
    scheme: str
    scenario: str
    steady: Summary
    stages: dict[str, Summary]  # those of STAGES that this scenario has
    start: Start | None
    interference: Interference
    machine: dict[str, Any]  # fingerprint() and the engine's threads
    created: str
    throughput: Throughput | None = None
    camera: CameraFigures | None = None
    early_stopping: tuple[EarlyStopping, ...] = ()
    slo: tuple[SloVerdict, ...] = ()
    baseline: BaselineComparison | None = None
    layers: Layers | None = None
    power: Power | None = None
    soak: Soak | None = None
    series: Series = Series()
    command: str = ""
    schema: str = SCHEMA


def store(path: Path, data: bytes) -> None:
    """Write a file beside a profile: its page or its timeline. Raises StorageError."""
    write_atomic(path, data)


def writable(path: Path) -> None:
    """Raise StorageError now for a file that could not be written when the runs are over."""
    there = path.exists()
    try:
        require_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
        if not there:
            path.unlink()
    except OSError as error:
        raise unwritable(path, error) from error


def read_profile(path: str | Path) -> Profile:
    """Return a stored profile. Raises InputError for a file that is none, or one of another schema."""
    try:
        raw = Path(path).read_bytes()
        schema = msgspec.json.decode(raw, type=dict[str, Any]).get("schema")
        if schema == SCHEMA:
            return msgspec.json.decode(raw, type=Profile)
        writer = WRITERS.get(str(schema), "no version up to this one")
        reason = f"it has schema {schema!r}, which {writer} writes"
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = str(error)
    raise InputError(
        f"'{path}' cannot be read as a profile: {reason}",
        expected=f"JSON of schema '{SCHEMA}', as `edgemae profile --json` prints it",
        fix="take the profile again with this version: edgemae profile BUNDLE --json",
    )
