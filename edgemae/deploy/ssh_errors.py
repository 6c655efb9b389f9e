"""What ssh says when it ends, and whether another attempt may help."""

from __future__ import annotations

import re

from edgemae.spec.errors import RemoteError

LOST = 255  # exit code of ssh for its own troubles
NO_PROGRAM = (126, 127)
Troubles = dict[str, tuple[str, str]]
OTHER_KEY: Troubles = {  # what ssh says, as a pattern: what it means, what to do
    "IDENTIFICATION HAS CHANGED": (
        "{host} shows another host key than the one that is known",
        "was it set up anew? then ssh-keygen -R HOST, ssh to it once and compare the fingerprint; or is it an attack?",
    ),
    "ost key verification failed|No .* host key is known": (
        "the host key of {host} is not known",
        "ssh to it once by hand, and compare the fingerprint: there, ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
    ),
}
NEVER_MET: Troubles = {  # of a machine that has answered before, these are a lost connection: names go with the network
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


class LostError(Exception):
    """The connection broke: worth another attempt."""


def failure(code: int, said: str, host: str, python: str, *, met: bool) -> Exception:
    """Return what ssh's exit code and last words mean; `met`: the machine has answered before.

    Before the first answer nothing is worth another attempt.
    """
    last = said.splitlines()[-1].strip() if said else f"ssh ended with {code}"
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
    for pattern, (what, fix) in (OTHER_KEY if met else OTHER_KEY | NEVER_MET).items():
        if re.search(pattern, said):
            return RemoteError(what.format(host=host, last=last), expected="ssh to log in without asking", fix=fix)
    if met:
        return LostError(last if said else "the connection was lost")
    return RemoteError(
        f"cannot connect to {host}: {last}", expected="a machine that is on, with an ssh server",
        fix=f"try it by hand: ssh {host}",
    )  # fmt: skip
