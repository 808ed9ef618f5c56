"""Commands to a running trainer: files in the run folder's ``control``."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

from nanogpt_cli import files, foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.run.folder import RunFolder

COMMANDS = ("pause", "resume", "checkpoint", "eval", "sample", "lr", "stop")
_LONGEST_ARGUMENT = 1 << 20  # bytes; prompts are the longest arguments


def send_command(run: RunFolder, name: str, argument: str = "") -> Path:
    """Write a command file for the trainer of ``run``, which answers with a ``command`` event.

    File names sort by time, so that commands are executed in the order they were given.
    """
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}", f"one of: {', '.join(COMMANDS)}")
    path = run.control / f"{time.time_ns():020d}-{uuid.uuid4().hex[:6]}-{name}"
    files.write_text(path, argument)
    return path


def take_commands(run: RunFolder) -> list[tuple[str, str]]:
    """The pending ``(name, argument)`` commands, oldest first; their files are removed."""
    try:
        names = sorted(entry.name for entry in os.scandir(run.control))
    except OSError:
        return []
    taken = []
    for file_name in names:
        if file_name.startswith(files.TEMPORARY_PREFIX):
            continue
        path = run.control / file_name
        try:
            argument = foreign_files.read_bytes(path, _LONGEST_ARGUMENT).decode("utf-8", "replace")
            path.unlink()
        except (UserError, OSError):
            continue
        taken.append((file_name.rsplit("-", 1)[-1], argument))
    return taken
