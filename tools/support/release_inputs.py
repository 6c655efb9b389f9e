"""Names, images, plans, checkpoints, programs and machines that nobody here would make, and others have."""

from __future__ import annotations

import os
import re
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from support.release_bytes import png
from support.release_case import COMPILE, ESCAPE, case, cases
from support.release_runner import Outcome, Workbench

# ---------------------------------------------------------------- text that a terminal would act on


@cases("escapes", [("inspect", ("inspect",)), ("verify", ("verify",)), ("eval", ("eval", "--eval-data")),
                   ("run", ("run",))], 0, 2, 5)  # fmt: skip
def _label(bench: Workbench, verb: tuple[str, ...]) -> Outcome:
    def change(tree: dict[str, Any]) -> None:
        tree["labels"] = [ESCAPE + label for label in tree["labels"]]

    more = (*verb[1:], bench.test) if verb[0] in ("eval", "run") else ()
    if verb[0] == "run":
        more = (bench.test / "7", "--limit", "2")
    return bench.edgemae(verb[0], bench.rewritten(change=change), *more)


@case("escapes", "a class folder", 0, 2)
def _class(bench: Workbench) -> Outcome:
    where = bench.images("data", (f"one{ESCAPE}", "two"))
    return bench.edgemae("eval", bench.student, "--eval-data", where)


@case("escapes", "a target's name", 0, 2)
def _target(bench: Workbench) -> Outcome:
    path = bench.scratch / "box.toml"
    path.write_text(f'name = "box\\u001b[31m"\ntitle = "{"x"}\\u202e"\n')
    return bench.edgemae("verify", bench.bundle, "--target", path)


@cases("escapes", [(verb, verb) for verb in ("inspect", "verify", "profile", "run", "doctor")], 2, 5)
def _path(bench: Workbench, verb: str) -> Outcome:
    words = {"run": (bench.bundle, f"gone{ESCAPE}"), "doctor": (f"gone{ESCAPE}",)}.get(verb, (f"gone{ESCAPE}",))
    return bench.edgemae(verb, *words)


SECRETS = [("a password", "rtsp://me:hunter2@127.0.0.1:9/x"), ("?pw=", "http://127.0.0.1:9/x?pw=hunter2"),
           ("?code=", "http://127.0.0.1:9/x?code=hunter2&a=hunter2"),
           ("a fragment", "http://127.0.0.1:9/x#hunter2")]  # fmt: skip


@cases("secrets", [(f"{verb}: {name}", (verb, url)) for name, url in SECRETS for verb in ("run", "doctor")], 2, 5,
       never="hunter2", most_s=20.0)  # fmt: skip
def _secret(bench: Workbench, how: tuple[str, str]) -> Outcome:
    verb, url = how
    return bench.edgemae("run", bench.bundle, url) if verb == "run" else bench.edgemae("doctor", url)


# ---------------------------------------------------------------- images and folders


@cases("images", [
    ("a GIF named .png", b"GIF89a" + struct.pack("<HH", 60000, 60000) + bytes(40)),
    ("a PBM named .png", b"P4 60000 60000\n" + bytes(30)), ("400 Mpx in 49 kB", png(20000, 20000, rows=20000)),
    ("1 x 1,000,000", png(1, 10**6, rows=10**6)), ("a header alone", png(10**9, 10**9)),
], 0, 2, 3)  # fmt: skip
def _hostile_image(bench: Workbench, data: bytes) -> Outcome:
    where = bench.images("data", ("7", "8"))
    (where / "7" / "zz.png").write_bytes(data)
    return bench.edgemae("eval", bench.bundle, "--eval-data", where)


@cases("images", [("a FIFO", "fifo"), ("a link to /dev/zero", "zero"), ("a link to itself", "loop")], 0, 2)
def _odd_file(bench: Workbench, kind: str) -> Outcome:
    where = bench.images("data", ("7", "8"))
    path = where / "7" / "zz.png"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "zero" else path)
    return bench.edgemae("eval", bench.bundle, "--eval-data", where)


@cases("images", [(ending, ending) for ending in (".jfif", ".tif", ".gif", ".avif", ".PNG", "")], 0, 2, says="8")
def _ending(bench: Workbench, ending: str) -> Outcome:
    where = bench.images("data", ("7", "8"))
    for path in (where / "8").iterdir():
        path.rename(path.with_suffix(ending))
    return bench.edgemae("eval", bench.bundle, "--eval-data", where)


@cases("images", [("Training and Testing", ("Training", "Testing")), ("@eaDir", ("7", "8", "@eaDir")),
                  ("a recycle bin", ("7", "8", "$RECYCLE.BIN")), ("__MACOSX", ("7", "8", "__MACOSX"))],
       0, 2)  # fmt: skip
def _leftover(bench: Workbench, classes: tuple[str, ...]) -> Outcome:
    where = bench.images("data", classes)
    return bench.edgemae(
        "compile", bench.teacher, "--data", where, "--target", "laptop-x86-vnni", "--dry-run", "-o", "out"
    )


@case("images", "12 bits in 16", 2, says="16")
def _deep(bench: Workbench) -> Outcome:
    where = bench.images("data", ("7", "8"))
    for path in where.rglob("*.png"):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        cv2.imwrite(str(path), image.astype(np.uint16) << 4)
    return bench.edgemae("eval", bench.bundle, "--eval-data", where)


@case("images", "names that are not UTF-8", 2, 0)
def _latin(bench: Workbench) -> Outcome:
    where = bench.images("data", ("7", "8"))
    os.rename(os.fsencode(where / "7"), os.fsencode(where) + b"/caf\xe9")
    return bench.edgemae(
        "compile", bench.teacher, "--data", where, "--target", "laptop-x86-vnni", "--dry-run", "-o", "out"
    )


@cases("images", [(text, text) for text in ("{0..9999}{0..9999}{0..9999}.tar", "x-{0..999999999999}.tar",
                                            "{a,b}{0..99999999}.tar")], 2)  # fmt: skip
def _shards(bench: Workbench, pattern: str) -> Outcome:
    return bench.edgemae("eval", bench.bundle, "--eval-data", bench.scratch / pattern)


@cases("images", [("m3u8", "#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"),
                  ("ffconcat", "ffconcat version 1.0\nfile '/etc/passwd'\n"),
                  ("sdp", "v=0\nm=video 0 RTP/AVP 96\n")], 2)  # fmt: skip
def _playlist(bench: Workbench, text: str) -> Outcome:
    path = bench.scratch / f"list.{'m3u8' if 'EXT' in text else 'ffconcat' if 'ff' in text else 'sdp'}"
    path.write_text(text)
    return bench.edgemae("run", bench.bundle, path, "--limit", "1")


# ---------------------------------------------------------------- numbers, plans and outputs


@cases("limits", [(f"{flag} {value}", (flag, value)) for flag in ("--max-drop", "--max-latency-ms", "--max-size-mib")
                  for value in ("-1", "nan", "inf")], 2)  # fmt: skip
def _limit(bench: Workbench, how: tuple[str, str]) -> Outcome:
    return bench.edgemae("compile", bench.student, "--data", bench.train, *COMPILE, f"{how[0]}={how[1]}")


@cases("plans", [
    ("seed -1", "seed = -1"), ("inf", "[distill]\nepochs = inf"), ("nan", "[finetune]\nlr = nan"),
    ("nesting", "x = " + "[" * 100_000 + "]" * 100_000), ("absurd depth", "[student]\ndepth = 1000000000"),
    ("absurd width", "[student]\nwidth = 1000000000"), ("absurd batch", "[distill]\nbatch = 1000000000000"),
    ("absurd threads", "threads = 1000000"),
], 2)  # fmt: skip
def _plan(bench: Workbench, text: str) -> Outcome:
    (bench.scratch / "plan.toml").write_text(text)
    return bench.edgemae("compile", bench.teacher, "--plan", "plan.toml", "--data", bench.train, *COMPILE)


@cases("plans", [("/dev/zero", "/dev/zero"), ("a folder", "/tmp"), ("a FIFO", "fifo")], 2)
def _plan_file(bench: Workbench, path: str) -> Outcome:
    if path == "fifo":
        os.mkfifo(bench.scratch / "fifo")
    return bench.edgemae("compile", bench.teacher, "--plan", path, "--data", bench.train, *COMPILE)


@case("plans", "a byte-order mark", 0, most_s=30)
def _bom(bench: Workbench) -> Outcome:
    (bench.scratch / "plan.toml").write_bytes(b'\xef\xbb\xbfname = "x"\n')
    return bench.edgemae("compile", bench.student, "--plan", "plan.toml", "--data", bench.train, *COMPILE)


@cases("targets", [(name, name) for name in ("../../out", "/tmp/out", "a/b", "..", "", "x" * 300)], 2)
def _target_name(bench: Workbench, name: str) -> Outcome:
    text = (Path(__file__).resolve().parents[2] / "targets" / "laptop-x86-vnni.toml").read_text()
    path = bench.scratch / "own.toml"
    path.write_text(re.sub(r'^name = ".*"', lambda _: f'name = "{name}"', text, flags=re.MULTILINE))
    return bench.edgemae("compile", bench.student, "--data", bench.train, "--target", path, *COMPILE)


@cases("outputs", [
    ("gallery build -o BUNDLE", ("gallery", "build", "{b}", "{data}", "-o", "{b}")),
    ("profile --html BUNDLE", ("profile", "{b}", "--runs", "44", "--html", "{b}")),
    ("profile --trace BUNDLE", ("profile", "{b}", "--runs", "44", "--per-layer", "--trace", "{b}")),
    ("run --save BUNDLE", ("run", "{b}", "{data}/7", "--save", "{b}")),
    ("extract -o itself", ("extract", "{s}", "--depth", "1", "-o", "{s}")),
], 2)  # fmt: skip
def _onto_itself(bench: Workbench, words: tuple[str, ...]) -> Outcome:
    bundle, student = bench.scratch / "b.edgemae", bench.scratch / "s.safetensors"
    bundle.write_bytes(bench.bundle.read_bytes())
    student.write_bytes(bench.student.read_bytes())
    given = {"b": bundle, "s": student, "data": bench.test}
    outcome = bench.edgemae(*(word.format(**given) for word in words))
    kept = (bundle.read_bytes(), student.read_bytes()) == (bench.bundle.read_bytes(), bench.student.read_bytes())
    return outcome if kept else bench.failed("the input was overwritten")


@cases("options", [("gallery search --top 0", ("gallery", "search", "{b}", "g", "{i}", "--top", "0")),
                   ("gallery build --limit-kib 0",
                    ("gallery", "build", "{b}", "{d}", "-o", "n", "--limit-kib", "0", "--anomaly"))], 2)  # fmt: skip
def _zero(bench: Workbench, words: tuple[str, ...]) -> Outcome:
    given = {"b": bench.bundle, "d": bench.test, "i": next(bench.test.glob("7/*.png"))}
    if words[1] == "search":
        bench.edgemae("gallery", "build", bench.bundle, bench.images("g-images", ("7", "8")), "-o", "g")
    return bench.edgemae(*(word.format(**given) for word in words))


@case("outputs", "a home in the path", 0, most_s=30)
def _tilde(bench: Workbench) -> Outcome:
    outcome = bench.edgemae("compile", bench.student, "--data", bench.train, *COMPILE[:-2], "--output=~/out")
    return (
        outcome if not (bench.scratch / "~").exists() else bench.run(["sh", "-c", "echo error: a folder ~ >&2; exit 1"])
    )


@case("run", "a folder named 2024", 0)
def _year(bench: Workbench) -> Outcome:
    bench.images("2024", ("",), each=2)
    return bench.edgemae("run", bench.bundle, "2024", "--limit", "1")


# ---------------------------------------------------------------- checkpoints


@cases("checkpoints", [(".npz", b"PK\x03\x04" + bytes(100)), ("a short .pth", b"\x80\x02}q\x00"),
                       ("text", b"hello"), ("empty", b""),
                       (".zip of nothing", b"PK\x05\x06" + bytes(18))], 2, never="weights_only")  # fmt: skip
def _checkpoint(bench: Workbench, data: bytes) -> Outcome:
    path = bench.scratch / "mae.pth"
    path.write_bytes(data)
    return bench.edgemae("inspect", path)


@cases("checkpoints", [("10^6 tensors", lambda: ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
                                                           for i in range(10**6))),
                       ("fp8", lambda: '"w":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}')], 2)  # fmt: skip
def _safetensors(bench: Workbench, header: Callable[[], str]) -> Outcome:
    raw = ("{" + header() + "}").encode()
    path = bench.scratch / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(4))
    return bench.edgemae("inspect", path)


# ---------------------------------------------------------------- processes, environments, ends

ENDS = [("sys.exit(3)", "sys.exit(3)", 3), ("raise", "raise SystemExit(4)", 4), ("end", "pass", 0)]
STREAM = """
import sys, edgemae
model = edgemae.load(sys.argv[1])
stream = model.stream([sys.argv[2]] * 1, {more}).start() if {callback} else model.stream(sys.argv[2], realtime=True)
for seen in stream if not {callback} else ():
    break
{end}
"""


def clip(bench: Workbench) -> Path:
    """Return a video of some seconds."""
    path = bench.scratch / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, (64, 64))
    for i in range(500):
        writer.write(np.full((64, 64, 3), i % 256, np.uint8))
    writer.release()
    return path


for end, text, wanted in ENDS:

    @cases("ends", [(f"{end}, {kind}", (kind, text, wanted)) for kind in ("left with break", "callback")], wanted)
    def _end(bench: Workbench, how: tuple[str, str, int]) -> Outcome:
        kind, end, _ = how
        program = STREAM.format(end=end, callback=kind == "callback", more="on_result=print, realtime=True")
        return bench.script(program, bench.bundle, clip(bench))


FORK = """
import os, sys, edgemae, numpy as np
model = edgemae.load(sys.argv[1])
frame = np.zeros((64, 64, 3), np.uint8)
model(frame)
child = os.fork()
if child == 0:
    try:
        model(frame)
    except edgemae.EdgemaeError as error:
        print(error)
    model.close()
    sys.exit(0)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@case("ends", "a fork after load", 0)
def _fork(bench: Workbench) -> Outcome:
    return bench.script(FORK, bench.bundle)


@cases("environment", [("no HOME", {"HOME": None}), ("ASCII console", {"PYTHONIOENCODING": "ascii"}),
                       ("Latin-1 console", {"PYTHONIOENCODING": "latin-1"}),
                       ("C locale", {"LC_ALL": "C", "PYTHONUTF8": "0"}),
                       ("a read-only cache", {"EDGEMAE_CACHE_DIR": "/proc/none"})], 0)  # fmt: skip
def _environment(bench: Workbench, env: dict[str, str | None]) -> Outcome:
    return bench.edgemae("verify", bench.bundle, env=env)


@cases("environment", [(verb, verb) for verb in ("verify", "doctor", "targets", "run")], 0, 5)
def _stranger(bench: Workbench, verb: str) -> Outcome:
    """A user without a home and without an entry in passwd, as in a container."""
    bundle = bench.scratch / "b.edgemae"
    bundle.write_bytes(bench.bundle.read_bytes())
    words = {"verify": (bundle,), "run": (bundle, bench.test / "7", "--limit", "1")}.get(verb, ())
    env = {"HOME": None, "EDGEMAE_CACHE_DIR": None}
    return bench.edgemae(verb, *words, env=env, user=12345 if os.geteuid() == 0 else None)


@case("environment", "a full device", 2, 5)
def _full(bench: Workbench) -> Outcome:
    with open("/dev/full", "wb") as full:
        return bench.edgemae("inspect", bench.bundle, "--json", stdout=full)


@case("environment", "a long TMPDIR", 0, most_s=30)
def _long(bench: Workbench) -> Outcome:
    folder = bench.scratch / ("t" * 100)
    folder.mkdir()
    return bench.edgemae("eval", bench.student, "--eval-data", bench.test, env={"TMPDIR": str(folder)})


@cases("signals", [("SIGTERM", signal.SIGTERM), ("Ctrl-C", signal.SIGINT)], 143, 130, most_s=8.0)
def _signal(bench: Workbench, number: int) -> Outcome:
    words = ("run", bench.bundle, clip(bench), "--webui", "--port", "0")
    return bench.edgemae(*words, signal_after=(4.0, number))


@case("telemetry", "nothing is left in the home folder", 0)
def _home(bench: Workbench) -> Outcome:
    home = bench.scratch / "home"
    home.mkdir()
    text = "import edgemae, sys, time\nedgemae.load(sys.argv[1])\ntime.sleep(3)"
    outcome = bench.script(text, bench.bundle, env={"HOME": str(home), "XDG_CACHE_HOME": None})
    left = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
    return bench.failed(f"it wrote {left[0]}") if left else outcome
