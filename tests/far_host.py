"""A far host for tests: OpenSSH's own server on loopback, with keys of its own."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import programs
import pytest

# Runs what ssh would run elsewhere here, without a network: for what is not about connections.
_NO_NETWORK = """#!/bin/sh
echo $$ >>{connections}
for command; do :; done
cd {home} && HOME={home} exec sh -c "$command"
"""
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
needs_sshd = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None, reason="OpenSSH's sshd and ssh are not installed"
)


def until(found: Callable[[], object]) -> None:
    """Wait for something that another thread or process does."""
    deadline = time.monotonic() + programs.LIMIT
    while not found():
        assert time.monotonic() < deadline, "it never came to it"
        time.sleep(0.02)


def pretended(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make the program ``ssh`` run its command here; the home folder of the pretended host."""
    home, program = folder / "far home", folder / "bin" / "ssh"
    for place in (home, program.parent):
        place.mkdir(parents=True)
    words = {"home": shlex.quote(str(home)), "connections": folder / "connections"}
    program.write_text(_NO_NETWORK.format(**words), encoding="utf-8")
    program.chmod(0o755)
    patch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    patch.setenv("NANOGPT_HOME", str(folder / "cache"))
    return home


class FarHost:
    """A server that can be killed and started again on the same port; its home is ``home``.

    The program ``ssh`` that tests find first reads a configuration of its own, since OpenSSH looks
    for the user's without asking ``HOME``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir(parents=True)
        self.server: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        for name in ("host", "user", "stranger"):
            self._key(name)
        (folder / "authorized").write_bytes((folder / "user.pub").read_bytes())
        key = (folder / "host.pub").read_text(encoding="utf-8")
        (folder / "known").write_text(f"[127.0.0.1]:{self.port} {key}", encoding="utf-8")
        self._configure()

    def environment(self, patch: pytest.MonkeyPatch) -> None:
        """Let this process and its children find the host as ``gpu1``, and keep copies here."""
        patch.setenv("PATH", f"{self.folder / 'bin'}:{os.environ['PATH']}")
        patch.setenv("NANOGPT_HOME", str(self.folder / "cache"))

    def start(self) -> None:
        """Start the server and wait until it listens."""
        assert SSHD is not None
        if hasattr(os, "geteuid") and os.geteuid() == 0:  # what the service's start-up would make
            Path("/run/sshd").mkdir(mode=0o755, parents=True, exist_ok=True)
        self.server = programs.start([SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")])
        programs.until(self._listens, self.server)

    def kill(self) -> None:
        """Kill the server with all its connections, as a crash would; a dead one stays dead."""
        if self.server is None:
            return
        for process in [*_children(self.server.pid), self.server.pid]:
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(process, 9)
        self.server.communicate(timeout=programs.LIMIT)
        self.server = None

    def _listens(self) -> bool:
        with socket.socket() as knock:
            return knock.connect_ex(("127.0.0.1", self.port)) == 0

    def _key(self, name: str) -> None:
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
        subprocess.run(words, check=True, timeout=programs.LIMIT)

    def _configure(self) -> None:
        common = f"Port {self.port}\n"
        (self.folder / "sshd_config").write_text(
            f"{common}ListenAddress 127.0.0.1\nHostKey {self.folder}/host\nPidFile none\n"
            f"AuthorizedKeysFile {self.folder}/authorized\nStrictModes no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n"
            f'ForceCommand cd {self.home} && HOME={self.home} exec sh -c "$SSH_ORIGINAL_COMMAND"\n',
            encoding="utf-8",
        )
        (self.folder / "ssh_config").write_text(
            f"Host gpu1 stranger\nHostName 127.0.0.1\n{common}IdentitiesOnly yes\n"
            f"UserKnownHostsFile {self.folder}/known\nGlobalKnownHostsFile none\n"
            f"Host gpu1\nIdentityFile {self.folder}/user\n"
            f"Host stranger\nIdentityFile {self.folder}/stranger\n"
            f"Host unknown\nHostName 127.0.0.1\n{common}UserKnownHostsFile none\n"
            "GlobalKnownHostsFile none\n",
            encoding="utf-8",
        )
        program = self.folder / "bin" / "ssh"
        program.parent.mkdir()
        real = shutil.which("ssh")
        program.write_text(
            f'#!/bin/sh\necho "$$" >>{self.folder}/connections\n'
            f'exec {real} -F {self.folder}/ssh_config "$@"\n',
            encoding="utf-8",
        )
        program.chmod(0o755)


def _children(parent: int) -> list[int]:
    """All processes below one, the deepest last."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True,
        timeout=programs.LIMIT,
    )  # fmt: skip
    parents = {int(p): int(pp) for p, pp in (line.split() for line in listed.stdout.splitlines())}
    found = [parent]
    for one in found:
        found += [pid for pid, above in parents.items() if above == one]
    return found[1:]
