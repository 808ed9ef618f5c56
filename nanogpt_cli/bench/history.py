"""The JSON line of a benchmark's result, and the file that collects such lines."""

from __future__ import annotations

import json
import os
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from nanogpt_cli import files, foreign_files
from nanogpt_cli.cli import console
from nanogpt_cli.run.events import plain
from nanogpt_cli.version import __version__


def _appendable(path: Path | None) -> Path | None:
    """Refuse what is no regular file before measuring: whoever writes to a named pipe waits."""
    if path is not None and foreign_files.present(path):
        foreign_files.check(path)
    return path


History = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="Where to append the result as a line of JSON.",
        callback=_appendable,
    ),
]


def line(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """A result with versions and machine."""
    from nanogpt_cli.machine import capabilities

    return {
        "bench": name,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": __version__,
        "torch": metadata.version("torch"),
        "machine": capabilities.cpu_name(),
        "cpus": os.cpu_count(),
        **result,
    }


def finish(name: str, result: dict[str, Any], out: Path | None, *, as_json: bool) -> None:
    """Append a result, with versions and machine, to ``out`` as JSON, and print it if asked."""
    found = line(name, result)
    if out is not None:
        with files.readable_os_errors("keep the result", out), out.open("a", encoding="utf-8") as f:
            f.write(json.dumps(plain(found), ensure_ascii=False, allow_nan=False) + "\n")
    if as_json:
        console.emit_json(found)
