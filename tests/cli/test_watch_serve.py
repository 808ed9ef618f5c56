"""``nanogpt watch --serve``: pages and drawings for a browser that knows the address."""

from __future__ import annotations

import asyncio
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from unittest.mock import AsyncMock

import programs
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tui"))

import recorded

from nanogpt_cli import extras
from nanogpt_cli.cli.watch import serve
from nanogpt_cli.run import commands
from nanogpt_cli.run.folder import RunFolder

aiohttp = pytest.importorskip("aiohttp", reason="needs the extra [web]")
pytest.importorskip("textual_serve", reason="needs the extra [web]")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "my run's"
    return recorded.write_run(folder, steps=60, max_steps=60, ended="finished")


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-m", "nanogpt_cli", "watch", str(run), "--serve"]
    pipe = subprocess.PIPE  # no `programs.start`, which would end it with the first test
    process = subprocess.Popen(words, text=True, stdout=pipe, stderr=pipe)
    yield process
    process.kill()
    process.communicate(timeout=programs.LIMIT)


@pytest.fixture(scope="module")
def url(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    return server.stdout.readline().rstrip("\n")


@pytest.fixture
async def browser() -> AsyncIterator[aiohttp.ClientSession]:
    limit = aiohttp.ClientTimeout(total=programs.LIMIT)
    async with aiohttp.ClientSession(timeout=limit) as session:
        yield session


def test_the_address_is_on_loopback_and_holds_a_secret(url: str) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{22}/", url)


async def test_a_page_leads_back_to_where_the_browser_came_from(
    url: str, browser: aiohttp.ClientSession
) -> None:
    place = url.split("/", 3)[3]
    for host in (url.split("/")[2], "localhost:9000"):  # the second as through a tunnel
        async with browser.get(url, headers={"Host": host}) as answer:
            page = await answer.text()
            assert answer.status == 200
            assert f'data-session-websocket-url="ws://{host}/{place}ws"' in page
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["Referrer-Policy"] == "no-referrer"
    async with browser.get(f"{url}static/js/textual.js") as answer:
        assert answer.status == 200


@pytest.mark.parametrize("path", ["", "ws", "{wrong}/", "{wrong}/ws", "static/js/textual.js", "é/"])
async def test_without_the_secret_nothing_is_shown(
    url: str, browser: aiohttp.ClientSession, path: str
) -> None:
    root, token = url.rstrip("/").rsplit("/", 1)
    path = path.format(wrong=token[:-1] + ("a" if token[-1] != "a" else "b"))
    async with browser.get(f"{root}/{path}") as answer:
        assert answer.status == 403
        assert token not in await answer.text()
    with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
        await browser.ws_connect(f"{root}/{path}")


async def test_a_window_shows_the_run_and_is_read_only(
    url: str, run: Path, browser: aiohttp.ClientSession
) -> None:
    async with browser.ws_connect(f"{url}ws?width=110&height=30") as window:
        await _until(window, run.name, "60/60", "read-only")
        await window.send_json(["stdin", "q"])
        closed = await asyncio.wait_for(_closed(window), programs.LIMIT)
        assert closed


async def test_a_window_lists_the_runs_that_were_named_and_changes_none(
    tmp_path: Path, browser: aiohttp.ClientSession
) -> None:
    known = {"layers": 2, "steps": 20, "max_steps": 20, "ended": "finished"}
    runs = [recorded.write_run(tmp_path / name, **known) for name in ("one", "two", "three")]
    before = sorted(tmp_path.rglob("*"))
    words = [sys.executable, "-m", "nanogpt_cli", "watch", *map(str, runs[:2]), "--serve"]
    server = programs.start(words, text=True)
    assert server.stdout is not None
    url = server.stdout.readline().rstrip("\n")
    async with browser.ws_connect(f"{url}ws?width=110&height=30") as window:
        await _until(window, "those named", "2 of 2", "one", "two")
        for key, said in (("d", "nothing is deleted"), ("n", "nothing is written"),
                          ("e", "nothing is saved")):  # fmt: skip
            await window.send_json(["stdin", key])
            await _until(window, f"read-only: {said}")
        await window.send_json(["stdin", "p"])
        await _until(window, "★")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_window_that_stops_leaves_no_process(
    hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output ends before its process does; the server must not take one for the other."""
    if hangs:
        monkeypatch.setattr(serve, "_LEAVING", 0.05)
    wait = "time.sleep(600)" if hangs else "sys.stdin.read()"
    program = f"import os, sys, time; os.write(1, b'__GANGLION__\\n'); os.close(1); {wait}"
    command = f"exec {shlex.join([sys.executable, '-c', program])}"
    nothing = AsyncMock()
    service = serve.window_service()(
        command, write_bytes=nothing, write_str=nothing, close=nothing, download_manager=nothing
    )
    await service.start(80, 24)
    if not hangs:
        service._process.stdin.write_eof()
    await asyncio.wait_for(service.stop(), programs.LIMIT)
    assert service._process.returncode is not None


async def _until(window: aiohttp.ClientWebSocketResponse, *words: str) -> None:
    """Wait until these words have been drawn."""
    drawn = ""
    while not all(word in drawn for word in words):
        message = await asyncio.wait_for(window.receive(), programs.LIMIT)
        assert message.type == aiohttp.WSMsgType.BINARY, message
        drawn += re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", message.data.decode("utf-8", "replace"))


async def _closed(window: aiohttp.ClientWebSocketResponse) -> bool:
    async for _ in window:
        pass
    return window.closed


async def test_with_control_a_window_speaks_to_the_trainer(
    tmp_path: Path, browser: aiohttp.ClientSession
) -> None:
    holder = programs.start(["sleep", "600"])
    host = socket.gethostname()
    run = recorded.write_run(tmp_path / "live", steps=60, ended="", pid=holder.pid, host=host)
    words = [sys.executable, "-m", "nanogpt_cli", "watch", str(run), "--serve", "--control"]
    server = programs.start(words, text=True)
    assert server.stdout is not None
    url = server.stdout.readline().rstrip("\n")
    async with browser.ws_connect(f"{url}ws?width=110&height=30") as window:
        await _until(window, "live", "stalled")
        await window.send_json(["stdin", "K"])
        await _until(window, "Save a checkpoint now?")
        await window.send_json(["stdin", "y"])
        await _until(window, "checkpoint asked for")
    assert commands.take_commands(RunFolder(run)) == [("checkpoint", "")]
    server.send_signal(signal.SIGINT)
    out, err = programs.finish(server)
    assert server.returncode == 130
    assert out == ""
    assert err.splitlines() == [
        "open it in a browser on this machine; it can command trainers, save notes, and delete "
        "runs that have ended; Ctrl-C ends it"
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--serve", "--once"], "error: --serve does not go with --once"),
        (["--serve", "--control", "--readonly"], "error: --control does not go with --readonly"),
        (["--control"], "error: --control belongs to --serve"),
        (["--port", "8000"], "error: --port belongs to --serve"),
        (["--serve", "--port", "70000"], "error: Invalid value for '--port'"),
        (["--serve", "--theme", "pink"], "error: there is no theme 'pink'"),
    ],
)
def test_options_that_do_not_fit(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert programs.nanogpt("watch", str(run), *words) == 2
    assert capsys.readouterr().err.startswith(said)


def test_a_port_that_is_taken(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert programs.nanogpt("watch", str(run), "--serve", "--port", str(port)) == 2
    assert f"error: cannot listen on port {port}: Address already in" in capsys.readouterr().err


def test_without_the_extra(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = extras.Extra("", ("no_such_module",))
    monkeypatch.setattr(extras, "EXTRAS", {**extras.EXTRAS, "web": missing})
    assert programs.nanogpt("watch", str(run), "--serve") == 2
    assert 'pip install "nanogpt-cli[web]"' in capsys.readouterr().err
