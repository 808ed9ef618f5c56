"""One message to an HTTP address, in a form that incoming webhooks and ntfy take.

The body is ``{"text": …}``, the form of Slack's and Mattermost's incoming webhooks. ntfy reads JSON
of its own form at its root only; sent to a topic, its template headers take the text out of ours
(ntfy 2.10, https://docs.ntfy.sh/publish/#message-templating).
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException, RemoteDisconnected
from typing import IO, Any
from urllib.parse import urlsplit

from nanogpt_cli.run.addresses import is_loopback
from nanogpt_cli.version import __version__

TIMEOUT_S = 5.0  # seconds for connecting, and for each piece of the answer
_HEADERS = {
    "Content-Type": "application/json",
    "User-Agent": f"nanogpt-cli/{__version__}",
    "X-Template": "yes",
    "X-Message": "{{.text}}",
}
# Slack reads commands between these, such as <!channel>; & alone is harmless.
_BRACKETS = str.maketrans("<>", "‹›")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are refused: what is told is for the address that the user has given."""

    def redirect_request(self, *_: Any) -> None:
        return None


def post(address: str, text: str) -> str:
    """Send one line; why it failed, or "". It never raises, and says nothing of the address.

    Args:
        address: checked by ``addresses.check_address``.
        text: the message.
    """
    body = json.dumps({"text": text.translate(_BRACKETS)}).encode()
    request = urllib.request.Request(address, body, _HEADERS, method="POST")
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if is_loopback(urlsplit(address).hostname or ""):
        handlers.append(urllib.request.ProxyHandler({}))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT_S) as answer:
            return _judge(answer)
    except Exception as error:  # messages of some hold the address
        return _reason(error)


def _judge(answer: IO[bytes]) -> str:
    status = getattr(answer, "status", 0)
    return "" if 200 <= status < 300 else f"it answered {status}"


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        if 300 <= error.code < 400:
            return f"it answered {error.code}, a redirect, which is not followed"
        return f"it answered {error.code}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_S:.0f} s"
    if isinstance(error, RemoteDisconnected | ConnectionResetError):
        return "it closed the connection without an answer"
    if isinstance(error, HTTPException):
        return "its answer is not HTTP"
    reason = error.strerror if isinstance(error, OSError) else ""
    return reason or type(error).__name__
