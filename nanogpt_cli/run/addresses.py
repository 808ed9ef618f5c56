"""The address that is told how a run goes, and how it is kept a secret.

Whoever knows the address can write there, so it is kept out of everything that is recorded or
shown: there it is ``hidden``, which leaves the host.
"""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

from nanogpt_cli.errors import UserError

ENVIRONMENT = "NANOGPT_NOTIFY"
_KEY = "log.notify"
_HIDDEN = "/…"


def hidden(address: str) -> str:
    """An address without what may be secret: ``https://HOST/…``; "" stays as it is."""
    if not address or address.endswith(_HIDDEN):
        return address
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{_HIDDEN}"


def is_whole(address: str) -> bool:
    """Whether this is an address to send to, neither empty nor hidden."""
    return bool(address) and not address.endswith(_HIDDEN)


def check_address(address: str) -> str:
    """Return an address as recipes hold it: whole, hidden (in the recipe of a run) or "".

    Raises:
        ValueError: it is none; the message says why, without the address.
    """
    if not address:
        return address
    whole = address.removesuffix(_HIDDEN)
    try:
        parts = urlsplit(whole)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{_KEY}: not a URL ({error.__class__.__name__})") from None
    if not (whole.isascii() and whole.isprintable()) or " " in whole or len(whole) > 2000:
        problem = "a URL has at most 2000 ASCII characters and no spaces"
    elif parts.scheme not in ("http", "https") or not host:
        problem = "https://HOST/PATH is expected"
    elif parts.scheme == "http" and not is_loopback(host):
        problem = "http:// is for this computer alone; use https://"
    elif parts.username is not None or parts.password is not None:
        problem = "a name and password before the host are not sent; ntfy takes ?auth=… at the end"
    else:
        return address
    raise ValueError(f"{_KEY}: {problem}")


def is_loopback(host: str) -> bool:
    """Whether a host is this computer."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address(asked: str) -> str:
    """Where to send: what the recipe asks for if it is whole, else the environment's; "": nowhere.

    Raises:
        UserError: what the environment holds is no address.
    """
    if is_whole(asked):
        return asked
    found = os.environ.get(ENVIRONMENT, "").strip()
    try:
        if found.endswith(_HIDDEN):
            raise ValueError(f"{_KEY}: the whole address is expected")
        return check_address(found)
    except ValueError as error:
        problem = str(error).removeprefix(f"{_KEY}: ")
        raise UserError(
            f"{ENVIRONMENT} in the environment: {problem}",
            f"for example {ENVIRONMENT}=https://ntfy.sh/TOPIC; unset it to disable notifications",
        ) from None


def keep(asked: str) -> None:
    """Leave an address in the environment, for processes that get a recipe in which it is hidden.

    Raises:
        UserError: as ``address``.
    """
    if found := address(asked):
        os.environ[ENVIRONMENT] = found
