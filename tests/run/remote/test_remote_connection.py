"""Connections through OpenSSH's own server on loopback: refused, cut, and made again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import far_host
import programs
import pytest

from nanogpt_cli.errors import UserError
from nanogpt_cli.run import commands
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.remote import address, status
from nanogpt_cli.run.remote.follower import Follower

pytestmark = far_host.needs_sshd

TICK = 0.05  # seconds; Linux counts 100 to 1000 ticks a second
# A trainer that writes odd pieces of lines, each counted, until it is told to stop.
WRITER = """
import sys, time
log = open(sys.argv[1], "ab", buffering=0)
for number in range(1_000_000):
    text = b'{"type":"step","step":%d,"x":"%s"}\\n' % (number, b"x" * (number * 7919 % 4001))
    half = number * 31 % len(text)
    log.write(text[:half])
    log.write(text[half:])
    time.sleep(0.002)
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> far_host.FarHost:
    return far_host.FarHost(tmp_path_factory.mktemp("far"))


@pytest.fixture
def run(host: far_host.FarHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    host.environment(monkeypatch)
    monkeypatch.setenv("NANOGPT_HOME", str(tmp_path / "cache"))
    folder = host.home / "runs" / tmp_path.name
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_bytes(b'{"type":"none"}\n')
    host.start()
    yield folder
    host.kill()


def follower(text: str) -> Follower:
    found = address.parse(text)
    assert found is not None
    return Follower([found], control=True)


def test_a_cut_connection_loses_no_byte_and_repeats_none(host: far_host.FarHost, run: Path) -> None:
    writer = programs.start([sys.executable, "-c", WRITER, str(run / "events.jsonl")])
    watching = follower(f"gpu1:{run.name}")
    try:
        watching.connect(asking=False)
        watching.start()
        copy = watching.folders[0]

        def known() -> status.Status:
            found = status.read(copy)
            assert found is not None
            return found

        def size() -> int:
            log = copy / "events.jsonl"
            return log.stat().st_size if log.exists() else 0

        for _ in range(2):
            before = size()
            far_host.until(lambda before=before: size() > before + 50_000)
            host.kill()
            far_host.until(lambda: not known().connected)
            assert known().reason
            # A file's time may be that of the kernel's last tick, some milliseconds ago.
            assert known().since <= (copy / "mirror.json").stat().st_mtime + TICK
            commands.send_command(RunFolder(copy), "stop")  # hours later it would surprise
            host.start()
            far_host.until(lambda: known().connected)
        assert commands.take_commands(RunFolder(run)) == []
        assert "stop was not sent" in known().trouble
        commands.send_command(RunFolder(copy), "pause")
        far_host.until(lambda: any((run / "control").glob("[0-9]*-pause")))
        assert commands.take_commands(RunFolder(run)) == [("pause", "")]
        writer.kill()
        writer.wait(programs.LIMIT)
        whole = (run / "events.jsonl").read_bytes()
        far_host.until(lambda: size() >= len(whole))
        assert (copy / "events.jsonl").read_bytes() == whole
    finally:
        watching.stop()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("stranger", "cannot connect to stranger: .*Permission denied"),
        ("unknown", "cannot connect to unknown: Host key verification failed"),
        ("nowhere.invalid", "cannot connect to nowhere.invalid: Could not resolve hostname"),
    ],
)
def test_hosts_that_cannot_be_reached(run: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        follower(f"{name}:small").connect(asking=False)
    assert "~/.ssh/config" in refused.value.hint or f"ssh {name}" in refused.value.hint


def test_a_host_without_a_server(host: far_host.FarHost, run: Path) -> None:
    host.kill()
    try:
        with pytest.raises(UserError, match="Connection refused"):
            follower("gpu1:small").connect(asking=False)
    finally:
        host.start()
