"""Every way in which ssh refuses or breaks has its own error, with what to do."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from edgemae.deploy.ssh import RemoteHost, parse_address
from edgemae.deploy.ssh_errors import ConnectionLostError, failure
from edgemae.spec.errors import RemoteError
from tests.support.sshd import Server, changed, keygen


def test_a_network_that_takes_its_names_along_is_a_lost_connection() -> None:
    def meaning(stderr: str, has_answered: bool = True) -> type[Exception]:
        return type(failure(255, stderr, "board", "python3", has_answered=has_answered))

    lost_names = "ssh: Could not resolve hostname board: Temporary failure in name resolution"
    assert meaning(lost_names) is ConnectionLostError
    assert meaning("bash: /opt/x.sh: Permission denied\nBroken pipe") is ConnectionLostError
    assert meaning("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.") is RemoteError
    assert meaning(lost_names, has_answered=False) is RemoteError


def refused(address: str = "device", python: str = sys.executable) -> RemoteError:
    with pytest.raises(RemoteError) as caught, RemoteHost(parse_address(address), python) as host:
        host.ask("environment")
    return caught.value


@pytest.mark.parametrize("lax", ["", "StrictHostKeyChecking no\n"])  # not even when the user's settings say so
def test_an_unknown_host_key(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lax: str) -> None:
    changed(server, monkeypatch, tmp_path, f"{server.folder}/known_hosts", f"{tmp_path}/none\n    {lax}")
    error = refused()
    assert error.what == "the host key of device is not known"
    assert "fingerprint" in error.fix
    assert not (tmp_path / "none").exists()


def test_a_changed_host_key(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keygen(tmp_path / "other")
    (tmp_path / "known").write_text(f"[127.0.0.1]:{server.port} {(tmp_path / 'other.pub').read_text()}")
    changed(server, monkeypatch, tmp_path, f"{server.folder}/known_hosts", f"{tmp_path}/known")
    error = refused()
    assert error.what == "device shows another host key than the one that is known"
    assert "ssh-keygen -R" in error.fix


@pytest.mark.parametrize("passphrase", ["", "hunter2 hunter2"])  # a wrong key; the right one, but locked
def test_a_key_that_does_not_open(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, passphrase: str
) -> None:
    key = tmp_path / "key"
    keygen(key, passphrase)
    if passphrase:
        with (server.folder / "authorized_keys").open("a") as file:
            file.write(key.with_suffix(".pub").read_text())
    changed(server, monkeypatch, tmp_path, f"{server.folder}/user_key", str(key))
    error = refused()
    assert error.what.startswith("device does not let us in: ")
    assert "Permission denied (publickey)" in error.what
    assert "ssh-copy-id" in error.fix


def test_a_name_that_nobody_knows_and_a_port_where_nobody_listens(server: Server) -> None:
    assert "Could not resolve hostname nowhere.invalid" in refused("nowhere.invalid").what
    assert re.fullmatch(r"cannot connect to device: .*Connection refused", refused("device:1").what)


def test_settings_that_ssh_does_not_take(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    changed(server, monkeypatch, tmp_path, "Port", "Prot")
    assert "does not accept its settings" in refused().what


@pytest.mark.parametrize("python", ["/nowhere/python3", "~/nowhere/python3", "/etc/hostname"])
def test_a_python_that_is_not_there(server: Server, python: str) -> None:
    error = refused(python=python)
    assert error.what.startswith(f"device cannot run '{python}'")
    assert "--remote-python" in error.fix


def test_a_program_that_is_no_python(server: Server) -> None:
    assert refused(python="/bin/false").what.startswith("Python on device failed")
