"""What an item finds: parts with facts and checks, written down as soon as each is finished."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanogpt_cli.run.events import plain

# Lines of a traceback, or of a log, that are kept.
TRACE_LINES = 12
_LONGEST = 300


@dataclass(frozen=True)
class Setting:
    """Where and how an item runs.

    Attributes:
        device: "cuda" or "cpu", as ``train.device`` takes it.
        tiny: the smallest sizes, for trying the item itself; its figures mean nothing.
        folder: of this item alone, for data and runs.
        against: a checkout of nanoGPT, or ``None``.
    """

    device: str
    tiny: bool
    folder: Path
    against: Path | None = None

    def size(self, full: int, tiny: int) -> int:
        """A number that depends on whether sizes are to be tiny."""
        return tiny if self.tiny else full


class Skipped(Exception):  # noqa: N818 - no error
    """A part cannot be run here; says why."""


@dataclass
class Part:
    """One part of an item while it runs.

    Attributes:
        facts: figures by name.
        failed: checks that failed, as sentences.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def check(self, good: bool, otherwise: str) -> None:
        """Note a failure unless ``good``; the part goes on."""
        if not good:
            self.failed.append(otherwise)


class Report:
    """The parts of an item, each a line of JSON in ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def part(self, name: str) -> Iterator[Part]:
        """A part that is timed; an error inside is written down, and the item goes on."""
        part, started = Part(), time.perf_counter()
        status, error, trace = "passed", "", []
        try:
            yield part
        except Skipped as reason:
            status, error = "skipped", str(reason)
        except Exception as found:
            status, error = "failed", one_line(found)
            trace = "".join(traceback.format_exception(found)).splitlines()[-TRACE_LINES:]
        if part.failed:
            status = "failed"
            error = "; ".join([*part.failed, *([error] if error else [])])
        self._write(
            {
                "name": name, "status": status, "seconds": time.perf_counter() - started,
                "facts": part.facts, "error": error, "trace": trace,
            }
        )  # fmt: skip

    def _write(self, part: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(part), allow_nan=False, default=str) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The finished parts of an item; a line that is still being written is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def one_line(error: BaseException) -> str:
    """An exception as a traceback's last line, without its further lines."""
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text.strip()}"[:_LONGEST]
