"""A web server on loopback that takes messages, or misbehaves as a test asks."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "T0P/S3CRET"
MODES = ("down", "silent", "nonsense", "500", "closes", "redirects")


class Webhook:
    """Its address, and the messages that it has got."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}/services/{SECRET}"
        self.got: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.over = threading.Event()

    @property
    def texts(self) -> list[str]:
        return [message["text"] for message in self.got]


@contextlib.contextmanager
def serving(mode: str = "") -> Iterator[Webhook]:
    """A server; see ``MODES``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hook.got.append(json.loads(body))
            hook.headers.append({name.lower(): value for name, value in self.headers.items()})
            if mode == "silent":
                hook.over.wait(60)
            elif mode == "nonsense":
                self.wfile.write(b"\0\xffnothing of use " + self.path.encode() + b"\n" * 9)
            elif mode == "500":
                self.send_error(500, f"cannot do {self.path}")
            elif mode == "redirects":
                self.send_response(307)
                self.send_header("Location", hook.address + "/elsewhere")
                self.end_headers()
            elif mode != "closes":
                self.send_response(204)
                self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        hook = Webhook(server.server_address[1])
        if mode == "down":
            server.server_close()
            yield hook
            return
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hook
        finally:
            hook.over.set()
            server.shutdown()
            thread.join(60)
