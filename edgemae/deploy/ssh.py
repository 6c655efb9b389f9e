"""Another machine over the system's OpenSSH client: orders, files and jobs that outlive a lost connection.

BatchMode: no password or passphrase is ever asked for, so none can reach a command line or a log. Host keys are always
checked. Everything else is up to the user's ssh_config: keys, ports, jump hosts. EDGEMAE_SSH_CONFIG names another one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from edgemae.deploy.remote_agent import MARK
from edgemae.deploy.ssh_errors import ConnectionLostError, failure
from edgemae.device.engine_cache import cache_folder
from edgemae.spec.errors import EngineRuntimeError, InputError, RemoteError, StorageError
from edgemae.terminal.progress import Progress, progress

log = logging.getLogger("edgemae")
AGENT = Path(__file__).with_name("remote_agent.py")
BOOT = "import sys; source = sys.stdin.buffer.read(int(sys.argv[1])); exec(source)"
OPTIONS = {
    "BatchMode": "yes", "StrictHostKeyChecking": "yes", "ConnectTimeout": "15", "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3", "ClearAllForwardings": "yes", "ForwardAgent": "no", "ForwardX11": "no",
    "PermitLocalCommand": "no", "RequestTTY": "no", "LogLevel": "ERROR",
}  # fmt: skip
LONGEST_SOCKET = 60  # bytes of the folder's name: a socket's path may have 104, and ssh adds 58
ATTEMPTS = 8  # losses in a row, without any progress between them
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
CHUNK = 1 << 16
COPIES = 2  # of a file that arrived changed
T = TypeVar("T")


@dataclass(frozen=True)
class Address:
    """Where to connect to. `name` is fit for a file's name."""

    user: str
    host: str
    port: str

    @property
    def name(self) -> str:
        return re.sub(r"[^A-Za-z0-9.-]+", "-", self.host + (f"-{self.port}" if self.port else "")).strip("-")


def parse_address(text: str) -> Address:
    """Return the parts of user@host[:port]; user and port may be left to ssh_config. Raises InputError."""
    user, at, place = text.rpartition("@")
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_][A-Za-z0-9_.-]*)(?::(\d{1,5}))?", place)
    if found and (not at or re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\\@-]*", user)):
        return Address(user, found[1].strip("[]"), found[2] or "")
    visible = f"...@{place}" if ":" in user else text  # what stands behind the colon may be a password
    raise InputError(
        f"--remote '{visible}' is not the address of a machine" + (": it may hold no password" if ":" in user else ""),
        expected="user@host, user@host:port or a Host of your ssh_config",
        fix="correct it; log in with a key: ssh-keygen, then ssh-copy-id user@host",
    )


class RemoteHost:
    """One machine behind `address`, for as long as a `with` block; `python` is its interpreter that has edgemae.

    `has_answered`: it has answered before, so that a connection that fails now is worth another attempt.
    """

    def __init__(self, address: Address, python: str = "python3", *, has_answered: bool = False) -> None:
        self.address, self._has_answered = address, has_answered
        # ~/ is the other machine's: quoted, its shell would not expand it.
        home, rest = ("~/", python[2:]) if python.startswith("~/") else ("", python)
        self._python, self._python_text = home + shlex.quote(rest), python
        self._sockets: Path | None = None

    def __enter__(self) -> RemoteHost:
        if shutil.which("ssh") is None:
            raise RemoteError(
                "the program 'ssh' is not installed here", expected="OpenSSH's client",
                fix="apt install openssh-client",
            )  # fmt: skip
        if os.name == "posix" and len(tempfile.gettempdir()) < LONGEST_SOCKET - len("/edgemae-12345678"):
            self._sockets = Path(tempfile.mkdtemp(prefix="edgemae-"))
        return self

    def __exit__(self, *_: object) -> None:
        if self._sockets is not None:
            subprocess.run([*self._ssh(), "-O", "exit", "--", self.address.host], capture_output=True)
            shutil.rmtree(self._sockets, ignore_errors=True)

    def ask(
        self, verb: str, *, data: BinaryIO | None = None, bar: Progress | None = None,
        on_message: Callable[[dict[str, Any]], None] | None = None, **order: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Give one order of `remote_agent` and return its answer; `data` follows it.

        Raises ConnectionLostError, RemoteError for a machine that cannot be used at all, and StorageError when its disk
        refuses.
        """
        text = AGENT.read_bytes() + f"\nmain({verb!r}, {order!r})\n".encode()
        command = [*self._ssh(), "--", self.address.host, f"{self._python} -c {shlex.quote(BOOT)} {len(text)}"]
        answer: dict[str, Any] | None = None
        with tempfile.TemporaryFile() as errors:
            ssh = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
            assert ssh.stdin is not None
            assert ssh.stdout is not None
            try:
                with contextlib.suppress(BrokenPipeError):
                    ssh.stdin.write(text)
                    while data is not None and (chunk := data.read(CHUNK)):
                        ssh.stdin.write(chunk)
                        if bar is not None:
                            bar.advance(len(chunk))
                with contextlib.suppress(BrokenPipeError):
                    ssh.stdin.close()
                for line in ssh.stdout:
                    if not line.startswith(MARK.encode()):  # what the other machine's shell greets with
                        continue
                    message = json.loads(line[len(MARK) :])
                    if "answer" in message:
                        answer = message["answer"]
                    elif on_message is not None:
                        on_message(message)
                code = ssh.wait()
            finally:
                ssh.kill()
                ssh.wait()
                ssh.stdout.close()
            errors.seek(0)
            stderr = errors.read().decode(errors="replace").strip()
        if answer is None:
            raise failure(code, stderr, self.address.host, self._python_text, has_answered=self._has_answered)
        self._has_answered = True
        if "error" in answer:
            raise self._disk_error(answer)
        return answer

    def retry(self, act: Callable[[], T], progressed: Callable[[], object] = lambda: None) -> T:
        """Act until the connection holds; raise RemoteError after ATTEMPTS losses in a row that brought nothing new."""
        losses, before = 0, progressed()
        while True:
            try:
                return act()
            except ConnectionLostError as error:
                losses, before = (1 if (now := progressed()) != before else losses + 1), now
                if losses >= ATTEMPTS:
                    raise RemoteError(
                        f"the connection to {self.address.host} was lost {losses} times in a row: {error}",
                        expected="a connection that comes back",
                        fix="see to the network and run the same command again: what was copied, and a run, are kept",
                    ) from error
                wait_s = min(FIRST_WAIT_S * 2 ** (losses - 1), LONGEST_WAIT_S)
                log.warning("%s: %s; connecting again in %.1f s", self.address.host, error, wait_s)
                time.sleep(wait_s)

    def copy(self, path: Path) -> str:
        """Bring a file there unless it is there already, and return its path there; an interrupted copy goes on."""
        with path.open("rb") as file:
            sha256 = hashlib.sha256(file.read()).hexdigest()
        size, corrupted, have = path.stat().st_size, 0, 0
        about: dict[str, Any] = {"sha256": sha256, "size": size, "name": re.sub(r"[^A-Za-z0-9._-]", "_", path.name)}

        def act() -> str:
            nonlocal have, corrupted
            stored = self.ask("stored", **about)
            while not stored["done"]:
                have = stored["have"]
                corrupted += "corrupted" in stored
                if corrupted >= COPIES:
                    raise RemoteError(
                        f"'{path}' arrives changed on {self.address.host}, {corrupted} times",
                        expected="the same bytes",
                        fix="see that nothing writes to the file meanwhile, and check the disk there",
                    )  # fmt: skip
                label = f"copy {path.name} to {self.address.host}"
                with path.open("rb") as file, progress(label, size, done=have) as bar:
                    file.seek(have)
                    stored = self.ask("receive", data=file, bar=bar, offset=have, **about)
            return str(stored["path"])

        return self.retry(act, progressed=lambda: have)

    def run(self, commands: list[list[str]]) -> tuple[list[int], list[str]]:
        """Run commands there one after another until one fails; return exit codes and what each wrote to stdout.

        They go on when the connection is lost, and are waited for again; after a loss for good the same call finds
        them, running or done. Their stderr is logged here. Ctrl-C ends them.
        """
        offset = 0
        job = hashlib.sha256(json.dumps([platform.node(), commands]).encode()).hexdigest()[:16]

        def on_message(message: dict[str, Any]) -> None:
            nonlocal offset
            if "line" in message:
                offset = message["offset"]
                log.info("%s: %s", self.address.host, message["line"])

        # A result that is here already is no new one.
        fetched = cache_folder() / "remote" / f"{self.address.name}-{job}.fetched"
        try:
            if fetched.exists():
                self.retry(lambda: self.ask("drop", job=job))
                fetched.unlink(missing_ok=True)
            begun = self.retry(lambda: self.ask("start", job=job, commands=commands))
            if not begun["started"]:
                log.info("%s: found the same run there, begun %.0f s ago", self.address.host, begun["age_s"])
            ended = self.retry(
                lambda: self.ask("follow", on_message=on_message, job=job, offset=offset), lambda: offset
            )
        except RemoteError:  # it cannot be reached: what runs there is kept for the next attempt
            raise
        except BaseException:
            with contextlib.suppress(ConnectionLostError, RemoteError, StorageError):
                self.ask("drop", job=job)
            raise
        try:
            self.retry(lambda: self.ask("drop", job=job))
        except (RemoteError, StorageError):
            with contextlib.suppress(OSError):
                fetched.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                fetched.touch()
        if ended["codes"] is None:
            raise EngineRuntimeError(
                f"the run on {self.address.host} was killed before it ended",
                expected="enough memory there, and a system that lets a job outlive its login",
                fix="look into its system log: out of memory, or KillUserProcesses=yes in logind.conf",
            )
        return ended["codes"], ended["outputs"]

    def _ssh(self) -> list[str]:
        command = ["ssh", "-T"]
        if config := os.environ.get("EDGEMAE_SSH_CONFIG"):
            command += ["-F", config]
        options = dict(OPTIONS)
        if self._sockets is not None:
            options |= {"ControlMaster": "auto", "ControlPath": f"{self._sockets}/%C", "ControlPersist": "60"}
        for key, value in options.items():
            command += ["-o", f"{key}={value}"]
        command += ["-l", self.address.user] if self.address.user else []
        return command + (["-p", self.address.port] if self.address.port else [])

    def _disk_error(self, answer: dict[str, Any]) -> StorageError:
        what = "the disk of {} is full" if answer["error"] == "full" else "{} refuses to write"
        return StorageError(
            f"{what.format(self.address.host)}: {answer['text']}",
            expected="room in a folder of our own there, ~/.cache/edgemae/remote",
            fix="free some space there, or set EDGEMAE_CACHE_DIR there to another disk",
        )
