"""What ssh says when it ends, and whether another attempt may help."""

from __future__ import annotations

import re

from edgemae.spec.errors import RemoteError

LOST = 255  # exit code of ssh for its own failures
NO_PROGRAM = (126, 127)
Failures = dict[str, tuple[str, str]]
HOST_KEY_FAILURES: Failures = {  # what ssh says, as a pattern: what it means, what to do
    "IDENTIFICATION HAS CHANGED": (
        "{host} shows another host key than the one that is known",
        "was it set up anew? then ssh-keygen -R HOST, ssh to it once and compare the fingerprint; or is it an attack?",
    ),
    "ost key verification failed|No .* host key is known": (
        "the host key of {host} is not known",
        "ssh to it once by hand, and compare the fingerprint: there, ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
    ),
}
# Of a machine that has answered before these are a lost connection: names go with the network.
FIRST_CONTACT_FAILURES: Failures = {
    "Permission denied|Too many authentication failures": (
        "{host} does not let us in: {last}",
        "give it your key: ssh-copy-id; a key with a passphrase needs ssh-agent",
    ),
    "Could not resolve": ("{last}", "check the name, or add a Host to ~/.ssh/config"),
    "Bad configuration|bad configuration|Can't open user config": (
        "ssh does not accept its settings: {last}",
        "correct ssh_config",
    ),
}


class ConnectionLostError(Exception):
    """The connection broke: worth another attempt."""


def failure(code: int, stderr: str, host: str, python: str, *, has_answered: bool) -> Exception:
    """Return what ssh's exit code and last words mean; `has_answered`: the machine has answered before.

    Before the first answer nothing is worth another attempt.
    """
    last = stderr.splitlines()[-1].strip() if stderr else f"ssh ended with {code}"
    if code in NO_PROGRAM:
        return RemoteError(
            f"{host} cannot run '{python}': {last}", expected="Python 3.10 or newer there",
            fix="name the interpreter that has edgemae: --remote-python ~/venv/bin/python",
        )  # fmt: skip
    if 0 <= code != LOST:
        return RemoteError(
            f"Python on {host} failed: {last}", expected="a Python 3.10 or newer that starts",
            fix=f"try it by hand: ssh {host} {python} --version",
        )  # fmt: skip
    for pattern, (what, fix) in (
        HOST_KEY_FAILURES if has_answered else HOST_KEY_FAILURES | FIRST_CONTACT_FAILURES
    ).items():
        if re.search(pattern, stderr):
            return RemoteError(what.format(host=host, last=last), expected="ssh to log in without asking", fix=fix)
    if has_answered:
        return ConnectionLostError(last if stderr else "the connection was lost")
    return RemoteError(
        f"cannot connect to {host}: {last}", expected="a machine that is on, with an ssh server",
        fix=f"try it by hand: ssh {host}",
    )  # fmt: skip
