"""Orders, copies and jobs over a real ssh server: what is lost and found again, and every way to be refused."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgemae.deploy import ssh
from edgemae.deploy.ssh import RemoteHost, parse_address
from edgemae.deploy.ssh_errors import ConnectionLostError
from edgemae.spec.errors import EngineRuntimeError, InputError, RemoteError
from edgemae.terminal.progress import Progress
from tests.support.sshd import Server, changed


class Cutter(Progress):
    """A progress that cuts the connection after some bytes of its first copy, and remembers what every copy sent."""

    sent: list[int]
    cut: Callable[[], object]
    after = 5 << 20

    def __init__(self, label: str, total: int, done: int = 0, *, shown: bool = True) -> None:
        super().__init__(label, total, done, shown=False)
        type(self).sent.append(0)

    def __enter__(self) -> Cutter:
        return self

    def __exit__(self, *_: object) -> None: ...

    def advance(self, count: int = 1, /, **figures: float) -> None:
        self.sent[-1] += count
        if len(self.sent) == 1 and self.sent[0] >= self.after:
            type(self).after = 1 << 60
            assert type(self).cut() > 0


# ---------------------------------------------------------------- copies


def test_a_copy_arrives_whole_and_is_not_made_twice(host: RemoteHost, file: Path, server: Server) -> None:
    stored = Path(host.copy(file))
    assert stored.read_bytes() == file.read_bytes()
    assert stored == server.cache / hashlib.sha256(file.read_bytes()).hexdigest() / file.name
    before = stored.stat().st_mtime_ns
    assert Path(host.copy(file)) == stored
    assert stored.stat().st_mtime_ns == before
    assert server.copies() == [stored.parent.name]


def test_a_copy_that_is_cut_off_goes_on_where_it_stopped(
    host: RemoteHost, file: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    cutter = type("CutterOnce", (Cutter,), {"sent": [], "cut": staticmethod(server.cut)})
    monkeypatch.setattr(ssh, "progress", cutter)
    logins = server.logins
    stored = Path(host.copy(file))
    assert stored.read_bytes() == file.read_bytes()
    assert server.logins > logins
    assert len(cutter.sent) == 2
    size = file.stat().st_size
    assert 0 < cutter.sent[1] < size, "the second copy sent everything again"
    assert cutter.sent[0] < size


# ---------------------------------------------------------------- jobs


COUNT = (
    "import sys, time\nfor i in range(20): print('line', i, file=sys.stderr, flush=True); time.sleep(0.1)\nprint(42)"
)


def test_a_job_goes_on_when_the_connection_is_lost(
    host: RemoteHost, server: Server, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO, "edgemae")
    logins, cuts = server.logins, []
    # It waits for each cut, or its last lines might be here before the first one.
    wait = f"""
import os, sys, time
for i in range(20):
    while i in (4, 10) and not os.path.exists(f"{tmp_path}/{{i}}"):
        time.sleep(0.02)
    print("line", i, file=sys.stderr, flush=True)
print(42)
"""

    class CutAtLine(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() in ("device: line 3", "device: line 9"):
                cuts.append(server.cut())
                (tmp_path / str(int(record.getMessage().split()[-1]) + 1)).touch()

    handler = CutAtLine()
    logging.getLogger("edgemae").addHandler(handler)
    try:
        assert host.run([[sys.executable, "-c", wait]]) == ([0], ["42\n"])
    finally:
        logging.getLogger("edgemae").removeHandler(handler)
    assert len(cuts) == 2
    assert min(cuts) > 0
    assert server.logins >= logins + 2
    logged = [r.getMessage() for r in caplog.records if r.getMessage().startswith("device: line ")]
    assert logged == [f"device: line {i}" for i in range(20)]  # each once, none lost
    assert server.jobs() == []


def test_a_job_is_found_again_by_the_next_attempt(
    host: RemoteHost, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tmp_path / "count"
    program = f"import time; time.sleep(1.5); open({str(count)!r}, 'a').write('x'); print('done')"
    command = [[sys.executable, "-c", program]]
    ask = host.ask

    def cut_off(verb: str, **order: object) -> dict[str, object]:
        if verb == "follow":
            raise ConnectionLostError("the cable is cut")
        return ask(verb, **order)  # type: ignore[arg-type]

    monkeypatch.setattr(host, "ask", cut_off)
    with pytest.raises(RemoteError, match=r"8 times .*the cable is cut"):
        host.run(command)
    monkeypatch.setattr(host, "ask", ask)
    assert len(server.jobs()) == 1
    assert host.run(command) == ([0], ["done\n"])
    assert count.read_text() == "x"
    assert server.jobs() == []


def test_a_job_that_is_killed_is_told_of(host: RemoteHost, server: Server) -> None:
    kill = "import os, signal, time; os.kill(int(open('pid').read()), signal.SIGKILL); time.sleep(1)"
    with pytest.raises(EngineRuntimeError, match="device was killed"):
        host.run([[sys.executable, "-c", kill]])
    assert server.jobs() == []


def test_an_interrupt_ends_the_job_and_leaves_nothing(host: RemoteHost, server: Server, tmp_path: Path) -> None:
    class Interrupt(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "line 2" in record.getMessage():
                raise KeyboardInterrupt

    handler = Interrupt()
    logging.getLogger("edgemae").addHandler(handler)
    logging.getLogger("edgemae").setLevel(logging.INFO)
    mark = tmp_path / "pid"
    program = f"import os\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\n{COUNT.replace('(20)', '(3000)')}"
    try:
        with pytest.raises(KeyboardInterrupt):
            host.run([[sys.executable, "-c", program]])
    finally:
        logging.getLogger("edgemae").removeHandler(handler)
    assert server.jobs() == []
    for _ in range(100):
        if not Path(f"/proc/{mark.read_text()}").exists():
            return
        time.sleep(0.05)
    pytest.fail("the job still runs")


def test_a_result_that_is_here_already_is_no_new_one(
    host: RemoteHost, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whether or not the other side could be told to forget it."""
    monkeypatch.setenv("EDGEMAE_CACHE_DIR", str(tmp_path / "own"))
    count = tmp_path / "count"
    program = f"open({str(count)!r}, 'a').write('x'); print(len(open({str(count)!r}).read()))"
    ask = host.ask

    def deaf(order: str, **more: object) -> object:
        if order == "drop":
            raise RemoteError("it cannot be reached", expected="it", fix="wait")
        return ask(order, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(host, "ask", deaf)
    assert host.run([[sys.executable, "-c", program]]) == ([0], ["1\n"])
    assert len(server.jobs()) == 1
    monkeypatch.setattr(host, "ask", ask)
    assert host.run([[sys.executable, "-c", program]]) == ([0], ["2\n"])
    assert server.jobs() == []
    assert not list((tmp_path / "own").rglob("*.fetched"))


# ---------------------------------------------------------------- being refused


def test_a_connection_that_never_comes_back(
    host: RemoteHost, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ssh, "ATTEMPTS", 3)
    changed(server, monkeypatch, tmp_path, f"Port {server.port}", "Port 1")
    server.cut()
    with pytest.raises(RemoteError, match=r"3 times .*Connection refused"):
        host.retry(lambda: host.ask("environment"))


def test_greetings_of_a_shell_do_no_harm(server: Server, host: RemoteHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_python", f"echo Welcome; {host._python}")
    assert host.ask("environment")["program"] == sys.executable


# ---------------------------------------------------------------- addresses and secrets


@pytest.mark.parametrize(
    ("text", "parts", "name"),
    [
        ("device", ("", "device", ""), "device"),
        ("me@10.0.0.7:2222", ("me", "10.0.0.7", "2222"), "10.0.0.7-2222"),
        ("me@[fe80::1]:22", ("me", "fe80::1", "22"), "fe80-1-22"),
        (r"CORP\me@jetson.local", (r"CORP\me", "jetson.local", ""), "jetson.local"),
    ],
)
def test_addresses(text: str, parts: tuple[str, str, str], name: str) -> None:
    address = parse_address(text)
    assert (address.user, address.host, address.port) == parts
    assert address.name == name


@pytest.mark.parametrize("text", ["", "-oProxyCommand=id", "me@-oProxyCommand=id", "a b", "me@host:port", "me@host;id"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"'{text}'")):
        parse_address(text)


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError) as caught:
        parse_address("me:hunter2@host")
    assert "hunter2" not in str(caught.value)
    assert "no password" in caught.value.what


def test_command_lines_hold_no_secret(host: RemoteHost, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = (server.folder / "user_key").read_text().split()[5:7]
    seen: list[str] = []

    class Scan(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                except OSError:
                    continue

    handler = Scan()
    logging.getLogger("edgemae").addHandler(handler)
    try:
        host.run([[sys.executable, "-c", COUNT.replace("range(20)", "range(3)")]])
    finally:
        logging.getLogger("edgemae").removeHandler(handler)
    ours = [line for line in seen if "BatchMode=yes" in line and "StrictHostKeyChecking=yes" in line]
    assert ours, "the scan came too late"
    for text in (*seen, caplog.text, server.log):
        assert not any(secret in text for secret in secrets)
    assert not any("sshpass" in line or "password=" in line.lower() for line in ours)
