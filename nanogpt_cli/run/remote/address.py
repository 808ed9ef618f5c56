"""``HOST:PATH``: a run folder on another machine, written as ``scp`` and ``rsync`` take it."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from nanogpt_cli import places

# A colon after a slash belongs to a local path. Neither part may begin like an option of ssh.
_ADDRESS = re.compile(
    r"(?:(?P<user>[\w.+\\][\w.+\\-]*)@)?"
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>\w[\w.-]*)):(?P<path>.*)",
    re.DOTALL | re.ASCII,
)
_LONGEST_NAME = 80  # characters of a run's or a host's name in the name of its copy


@dataclass(frozen=True)
class Address:
    """A folder on another machine.

    Attributes:
        text: as the user wrote it.
        destination: what ``ssh`` is given: a host or an alias of ``~/.ssh/config``, perhaps with a
            user before it.
        path: the folder there, relative to the user's home unless it begins with a slash.
    """

    text: str
    destination: str
    path: str

    @property
    def host(self) -> str:
        """The host without the user, for messages."""
        return self.destination.rpartition("@")[2]

    @property
    def candidates(self) -> tuple[str, ...]:
        """Where the run may be, as ``sh`` finds it from the home folder: like a local name."""
        path = re.sub(r"^~(/+|$)", "", self.path).rstrip("/")
        if self.path.startswith("/"):
            return (path or "/",)
        if not path:
            return ("./runs",)
        return (f"./{path}", f"./runs/{path}")

    @property
    def name(self) -> str:
        """``RUN@HOST``, fit for the name of a folder on every system."""
        last = self.candidates[0].rpartition("/")[2]
        return f"{_folder_name(last) or 'run'}@{_folder_name(self.host)}"

    def copies(self) -> Path:
        """The folder in the cache for copies of this run."""
        digest = hashlib.sha256(os.fsencode(f"{self.destination}\0{self.path}")).hexdigest()
        return places.mirrors_folder() / f"{self.name}-{digest[:8]}"


def parse(text: str) -> Address | None:
    """The address that a text is; ``None`` for a local name or path."""
    found = _ADDRESS.fullmatch(text)
    if found is None or "\0" in text or found["path"].startswith("//"):  # such as http://
        return None
    host = found["v6"] or found["host"]
    if os.name == "nt" and len(host) == 1:  # the letter of a drive
        return None
    destination = f"{found['user']}@{host}" if found["user"] else host
    return Address(text, destination, found["path"])


def _folder_name(text: str) -> str:
    kept = (c if c.isprintable() and c not in '<>:"/\\|?*' else "-" for c in text)
    return "".join(kept).strip(". ")[:_LONGEST_NAME]
