"""A real ssh server on loopback for one user with one key, with a cache folder of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = Path("/usr/sbin/sshd")
ROOT = Path(__file__).resolve().parents[2]
SERVER = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
SetEnv EDGEMAE_CACHE_DIR={folder}/cache PYTHONPATH={root} PYTHONDONTWRITEBYTECODE=1
"""
CLIENT = """
Host device
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile {folder}/user_key
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile /dev/null
"""


@dataclass
class Server:
    """One running server. `config` is the ssh_config that knows it as `device`."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def config(self) -> Path:
        return self.folder / "ssh_config"

    @property
    def cache(self) -> Path:
        return self.folder / "cache" / "remote"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def logins(self) -> int:
        return self.log.count("Accepted publickey")

    def cut(self) -> int:
        """Kill every connection, as a network that fails does; return how many there were."""
        sessions = children(self.process.pid)
        for pid in sessions:
            with contextlib.suppress(ProcessLookupError):  # it fell with the one above it
                os.kill(pid, signal.SIGKILL)
        return len(sessions)

    def jobs(self) -> list[str]:
        return sorted(path.name for path in (self.cache / "jobs").iterdir())

    def copies(self) -> list[str]:
        return sorted(path.name for path in self.cache.iterdir() if path.name != "jobs")


def children(pid: int) -> list[int]:
    """Return the processes below one, sessions of their own left out: those are jobs."""
    descendants = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            child = int(path.parent.name)
            descendants += [child, *children(child)]
    return descendants


def keygen(path: Path, passphrase: str = "") -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def serve(folder: Path) -> Server:
    """Start a server; the test is skipped where there is none to start."""
    if not SSHD.exists():
        pytest.skip(f"{SSHD} is not installed: apt install openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # its service would make it
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    keygen(folder / "host_key")
    keygen(folder / "user_key")
    (folder / "authorized_keys").write_bytes((folder / "user_key.pub").read_bytes())
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
    places = {"port": port, "folder": folder, "root": ROOT, "user": getpass.getuser()}
    (folder / "sshd_config").write_text(SERVER.format(**places))
    (folder / "ssh_config").write_text(CLIENT.format(**places))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stdout=log, stderr=log)
    server = Server(folder, port, process)
    for _ in range(200):
        if "Server listening" in server.log or process.poll() is not None:
            break
        time.sleep(0.05)
    assert process.poll() is None, server.log
    return server


def stop(server: Server) -> None:
    server.cut()
    server.process.terminate()
    server.process.wait()


def changed(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old: str, new: str) -> None:
    config = tmp_path / "ssh_config"
    text = server.config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    monkeypatch.setenv("EDGEMAE_SSH_CONFIG", str(config))
