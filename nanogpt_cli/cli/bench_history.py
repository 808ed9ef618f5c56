"""The last line of a benchmark, and the file that keeps such lines over time."""

from __future__ import annotations

import json
import os
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from nanogpt_cli import __version__, files
from nanogpt_cli.cli import console
from nanogpt_cli.events import plain


def finish(name: str, result: dict[str, Any], out: Path | None) -> None:
    """Print a result with its circumstances as one line of JSON, and append it to a file."""
    from nanogpt_cli.core import machine

    line = {
        "bench": name,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": __version__,
        "torch": metadata.version("torch"),
        "machine": machine.cpu_name(),
        "cpus": os.cpu_count(),
        **result,
    }
    if out is not None:
        with files.readable_os_errors("keep the result", out), out.open("a", encoding="utf-8") as f:
            f.write(json.dumps(plain(line), ensure_ascii=False, allow_nan=False) + "\n")
    console.emit_json(line)
