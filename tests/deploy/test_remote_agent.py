"""What runs on the other machine: copies are kept, checked and make room; jobs outlive their connection."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from edgemae.deploy import ssh
from edgemae.deploy.ssh import RemoteHost
from edgemae.spec.errors import StorageError
from tests.support.sshd import Server


def test_what_was_kept_of_a_copy_is_checked(host: RemoteHost, file: Path, server: Server) -> None:
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    part = server.cache / f"{sha256}.part"
    part.write_bytes(b"\0" * (5 << 20))
    assert Path(host.copy(file)).read_bytes() == file.read_bytes()
    assert not part.exists()


def test_a_copy_that_rots_there_is_made_anew(host: RemoteHost, file: Path) -> None:
    stored = Path(host.copy(file))
    stored.write_bytes(stored.read_bytes()[:-1] + b"?")
    assert Path(host.copy(file)).read_bytes() == file.read_bytes()


def test_a_full_disk_there_is_said_to_be_full(host: RemoteHost, file: Path, server: Server) -> None:
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    (server.cache / f"{sha256}.part").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"device is full: .*No space left"):
        host.copy(file)


@pytest.mark.parametrize("in_use", [False, True])
def test_old_copies_make_room_unless_a_job_reads_them(
    host: RemoteHost, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, in_use: bool
) -> None:
    (tmp_path / "remote_agent.py").write_text(ssh.AGENT.read_text().replace("KEPT_FILES = 8", "KEPT_FILES = 2"))
    monkeypatch.setattr(ssh, "AGENT", tmp_path / "remote_agent.py")
    for number in range(3):
        (tmp_path / str(number)).write_text(str(number))
        stored = host.copy(tmp_path / str(number))
        if number == 0 and in_use:
            wait = [sys.executable, "-c", "import time; time.sleep(60)", stored]
            assert host.ask("start", job="reads", commands=[wait])["started"]
    assert sorted(path.name for path in server.cache.glob("*/[0-9]")) == (["0", "1", "2"] if in_use else ["1", "2"])
    host.ask("drop", job="reads")


def test_a_job_gives_codes_and_outputs_and_stops_at_the_first_that_fails(host: RemoteHost, server: Server) -> None:
    def says(text: str, code: int = 0) -> list[str]:
        return [sys.executable, "-c", f"print({text!r}); raise SystemExit({code})"]

    assert host.run([says("a"), says("b '\"ü"), says("c", 3), says("d")]) == ([0, 0, 3], ["a\n", "b '\"ü\n", "c\n"])
    assert server.jobs() == []
