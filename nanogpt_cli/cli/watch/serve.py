"""``nanogpt watch --serve``: the dashboard in a browser, through Textual's own server."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_cli import extras
from nanogpt_cli.cli import console
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from aiohttp import web

    from nanogpt_cli.tui.state.workspace import Workspace

_HOST = "127.0.0.1"
_LEAVING = 5.0  # seconds that a window's process has to end after its last output
# The page's template asks for a font from elsewhere; nothing is to be asked of other machines.
_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self' ws:; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Ask:
    """What to serve.

    Attributes:
        port: to listen on; 0 for any that is free.
        control: whether the browser may command trainers, save files and delete ended runs.
        ascii_only, theme, page: as options of ``nanogpt watch``.
    """

    port: int
    control: bool
    ascii_only: bool
    theme: str | None
    page: str


def check_installed() -> None:
    """Refuse early, before anything is connected to.

    Raises:
        UserError: the extra is not installed.
    """
    if extras.EXTRAS["web"].missing:
        raise UserError("--serve needs Textual's server", extras.install_command("web"))


def serve(folders: Sequence[Path], ask: Ask, workspace: Workspace) -> None:
    """Serve the dashboard of run folders, and the list of them, on loopback until Ctrl-C.

    The address is written to stdout. It holds a secret, without which every request is refused, so
    that neither another user of this machine nor a page open in the same browser can look in.

    Raises:
        UserError: the port is taken or may not be used.
    """
    with _listening(ask.port) as listener:
        token = secrets.token_urlsafe(16)
        port = listener.getsockname()[1]
        rights = (
            "; it can command trainers, save notes, and delete runs that have ended"
            if ask.control
            else "; read-only (--control lets it command, save and delete)"
        )
        console.write(sys.stdout, f"http://{_HOST}:{port}/{token}/\n")
        console.say(f"open it in a browser on this machine{rights}; Ctrl-C ends it")
        with console.stdout_kept():
            asyncio.run(_run(listener, token, _command(folders, ask, workspace)))


def _listening(port: int) -> socket.socket:
    try:
        return socket.create_server((_HOST, port))
    except OSError as error:
        raise UserError(
            f"cannot listen on port {port}: {os.strerror(error.errno or 0)}",
            "choose another with --port, or leave it out for one that is free",
        ) from None


def _command(folders: Sequence[Path], ask: Ask, workspace: Workspace) -> str:
    """The command line of the process that draws for one browser window."""
    settings = {
        "folders": [str(folder.absolute()) for folder in folders],
        "root": str(workspace.root.absolute()),
        "listed": [str(folder.absolute()) for folder in workspace.folders],
        "readonly": not ask.control,
        "ascii_only": ask.ascii_only,
        "theme": ask.theme,
        "page": ask.page,
    }
    # In UTF-8 mode, for it is the browser that draws, whatever this terminal can.
    program = [sys.executable, "-X", "utf8", "-m", "nanogpt_cli.cli.watch.browser_page"]
    words = [*program, json.dumps(settings)]
    return (
        subprocess.list2cmdline(words) if sys.platform == "win32" else f"exec {shlex.join(words)}"
    )


async def _run(listener: socket.socket, token: str, command: str) -> None:
    from aiohttp import web

    pages = await _pages(command)
    app = web.Application(middlewares=[_refusing_strangers(token)])
    app.add_subapp(f"/{token}", pages)
    app.on_response_prepare.append(_add_headers)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


async def _pages(command: str) -> web.Application:
    """Textual's pages, whose links lead back to where the browser came from.

    Through a tunnel (``ssh -L 9000:localhost:8000``) that is another port than ours.
    """
    from textual_serve import server

    class Pages(server.Server):
        async def handle_index(self, request: web.Request) -> Any:
            self.public_url = f"http://{request.host}"  # read before anything is awaited
            return await super().handle_index(request)

        async def on_startup(self, app: web.Application) -> None:
            """Print no banner."""

    # The library has no other way to name the class, and this process serves nothing else.
    server.AppService = window_service()  # type: ignore[attr-defined]
    return await Pages(command, host=_HOST, title="nanogpt watch")._make_app()


def window_service() -> Any:
    """The class of Textual's server that holds the process of one window, with a patient end.

    The library takes the end of a process's output for its end. A loop that is closed between the
    two would report it with tracebacks, and a process that hangs would outlive the server.
    """
    from textual_serve.app_service import AppService

    class WindowService(AppService):
        async def stop(self) -> None:
            await super().stop()
            if (process := self._process) is None:
                return
            try:
                await asyncio.wait_for(process.wait(), _LEAVING)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    return WindowService


def _refusing_strangers(token: str) -> Any:
    from aiohttp import web

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> Any:
        first = request.path.split("/")[1]
        if not hmac.compare_digest(first.encode(), token.encode()):
            raise web.HTTPForbidden(text="use the whole address that nanogpt watch has printed\n")
        return await handler(request)

    return guard


async def _add_headers(_: Any, response: web.StreamResponse) -> None:
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["Referrer-Policy"] = "no-referrer"  # the address is the secret
    response.headers["Cache-Control"] = "no-store"
