"""Running one item in a process of its own, within a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nanogpt_cli.bench.on_gpu import report
from nanogpt_cli.bench.on_gpu.report import Setting

_CHILD = (sys.executable, "-m", "nanogpt_cli.bench.on_gpu.child")
_LOOK_S = 0.2
# What a process that is asked to end may take.
GRACE_S = 5.0
_LOG_BYTES = 1 << 16
# Parts of an item, each with name, status, seconds, facts, error and trace.
Parts = list[dict[str, Any]]


def run(
    name: str, setting: Setting, limit_s: float, home: Path, seen: Callable[[Parts], None]
) -> dict[str, Any]:
    """Carry out an item; whatever happens to its process becomes its result.

    Args:
        name: of the item.
        setting: where and how; its folder exists.
        limit_s: seconds after which the process is ended.
        home: ``NANOGPT_HOME`` of the process.
        seen: called with the parts so far whenever there are more.

    Returns:
        The item's result: status, seconds, error, trace and parts.
    """
    started = time.monotonic()
    parts, log = setting.folder / "parts.jsonl", setting.folder / "log.txt"
    given = asdict(setting) | {"parts": parts}
    command = [*_CHILD, name, json.dumps(given, default=str)]
    environment = os.environ | {
        "NANOGPT_HOME": str(home), "TORCHINDUCTOR_CACHE_DIR": str(home / "compiled"),
        "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            late = not _ended(process, started + limit_s, parts, seen)
        finally:
            end(process)
    result = outcome(report.read(parts), process.returncode, limit_s if late else 0.0, log)
    return {**result, "seconds": time.monotonic() - started}


def _ended(
    process: subprocess.Popen[bytes], deadline: float, parts: Path, seen: Callable[[Parts], None]
) -> bool:
    """Wait for a process; false if it does not end in time."""
    number = 0
    while True:
        try:
            process.wait(min(_LOOK_S, max(0.0, deadline - time.monotonic())))
            return True
        except subprocess.TimeoutExpired:
            if time.monotonic() >= deadline:
                return False
        found = report.read(parts)
        if len(found) > number:
            number = len(found)
            seen(found)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it has started: ask first, then kill."""
    if process.poll() is None:
        end_group(process.pid, signal.SIGINT)
    deadline = time.monotonic() + GRACE_S
    while _lives(process) and time.monotonic() < deadline:
        time.sleep(_LOOK_S / 10)
    if _lives(process):
        end_group(process.pid, signal.SIGKILL)
    if process.stdin is not None:
        process.stdin.close()
    process.wait()


def _lives(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process or one that it has started is still there."""
    if process.poll() is None:
        return True
    try:
        os.killpg(process.pid, 0)
    except OSError:
        return False
    return True


def end_group(leader: int, number: signal.Signals) -> None:
    """Send a signal to a process that leads a session, and to those it has started."""
    with contextlib.suppress(OSError):  # they are gone
        os.killpg(leader, number)


def outcome(parts: Parts, code: int, late_s: float, log: Path) -> dict[str, Any]:
    """The result of an item.

    Args:
        parts: those that are finished.
        code: exit code of its process.
        late_s: the limit that it did not keep, 0 if it did.
        log: what its process wrote.
    """
    error, trace = "", list[str]()
    status = next(
        (s for s in ("failed", "passed") if any(p["status"] == s for p in parts)), "skipped"
    )
    failed = [f"{part['name']}: {part['error']}" for part in parts if part["status"] == "failed"]
    if late_s:
        status, error, trace = "failed", f"not done after {late_s:.0f} s", _tail(log)
    elif code:
        trace = _tail(log)
        last = trace[-1] if trace else "it wrote nothing"
        status, error = "failed", f"its process ended with {_cause(code)}: {last}"
    elif not parts:
        status, error, trace = "failed", "it has no result", _tail(log)
    error = "; ".join([*failed, *([error] if error else [])])
    if status == "skipped":
        error = parts[0]["error"]
    return {"status": status, "error": error, "trace": trace, "parts": parts}


def _tail(log: Path) -> list[str]:
    """The last lines of what a process wrote."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_BYTES))
        text = file.read().decode("utf-8", "replace")
    return [line for line in text.splitlines() if line.strip()][-report.TRACE_LINES :]


def _cause(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
