"""What is wrong with a remote address, in words that say what to do."""

from __future__ import annotations

from collections.abc import Sequence

from nanogpt_cli import shell, units
from nanogpt_cli.errors import UserError
from nanogpt_cli.run.remote.address import Address


class NotARunError(UserError):
    """An address leads to a folder of runs, and not to a run.

    Attributes:
        runs: addresses of the runs in it, newest first.
    """

    def __init__(self, address: Address, folder: str, names: Sequence[str]) -> None:
        self.runs = [f"{_host(address)}:{folder}/{name}" for name in names]
        super().__init__(
            f"{address.text} is not a run but a folder of {units.counted(len(names), 'run')}",
            f"name one: {shell.hint('watch', self.runs[0])}",
        )


def unreachable(destination: str, reason: str) -> UserError:
    """No connection could be made."""
    low = reason.lower()
    by_hand = f"try `ssh {shell.quoted(destination)}` by itself"
    hints = (
        ("resolve hostname", "check the name; aliases stand in ~/.ssh/config"),
        (
            "host key verification",
            f"{by_hand}: it shows the host's key and asks whether it is right",
        ),
        ("permission denied", f"{by_hand}; check user and key there, or give user@host:path"),
        ("too many authentication", f"{by_hand}; IdentitiesOnly in ~/.ssh/config may help"),
        ("connection refused", "no ssh server answers there; a port can be set in ~/.ssh/config"),
        ("posix shell", "only machines with sh can be watched; copy the run folder here instead"),
    )
    hint = next((text for words, text in hints if words in low), by_hand)
    return UserError(f"cannot connect to {destination}: {reason}", hint)


def lost(host: str, reason: str) -> UserError:
    """The connection broke before everything was here."""
    return UserError(
        f"the connection to {host} broke: {reason}",
        "run the command again; it continues from there",
    )


def no_folder(address: Address) -> UserError:
    """The folder is not there."""
    wanted = " or ".join(path.removeprefix("./") for path in address.candidates)
    return UserError(
        f"there is no folder {wanted} on {address.host}",
        "paths begin in your home folder there; "
        f"{shell.hint('watch', f'{_host(address)}:')} lists the runs in its runs/",
    )


def no_run(address: Address) -> UserError:
    """The folder is there, and no run is in it."""
    return UserError(
        f"{address.text!r} is not a run: it has no recipe.toml and no events.jsonl",
        "name the run folder: HOST:runs/NAME",
    )


def _host(address: Address) -> str:
    """The address up to its colon, as the user wrote it."""
    return address.text[: len(address.text) - len(address.path) - 1]
