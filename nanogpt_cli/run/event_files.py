"""Scalars in TensorBoard's event files, found as TensorBoard finds them: a run is a folder.

The records are read by ``tensorboard``'s own reader, which is imported when it is needed.
"""

from __future__ import annotations

import importlib
import math
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nanogpt_cli import extras, foreign_files
from nanogpt_cli.errors import UserError

_MARK = "tfevents"  # in the name of every event file
_MOST_FOLDERS = 20_000
MOST_TAGS = 5000  # in one run; further ones are counted
_LARGEST_STEP = 2**53


def find(root: Path) -> dict[str, list[Path]]:
    """Every run below a folder: its path from there ("." for the folder itself), and its files.

    An event file stands for its folder. Where nothing is found the mapping is empty.
    """
    if _MARK in root.name and root.is_file():
        root = root.parent
    found: dict[str, list[Path]] = {}
    for seen, (folder, below, names) in enumerate(os.walk(root)):
        if seen > _MOST_FOLDERS:
            break
        below.sort()
        if "events.jsonl" in names and seen:  # a run of ours; its own sink repeats it
            below.clear()
            continue
        if files := [Path(folder) / name for name in sorted(names) if _MARK in name]:
            found[Path(folder).relative_to(root).as_posix()] = files
    return found


def check_reader(root: Path) -> None:
    """Raise unless TensorBoard's reader is installed.

    Raises:
        UserError: it is not; the message names the extra.
    """
    if extras.EXTRAS["tensorboard"].missing:
        raise UserError(
            f"{root} holds event files of TensorBoard, and its reader is not installed",
            extras.install_command("tensorboard"),
        )


class Series:
    """The values of one tag by step, which increases; times are seconds since the epoch."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.times = array("d")
        self.values = array("d")

    def __len__(self) -> int:
        return len(self.steps)

    def put(self, step: int, time: float, value: float) -> int:
        """Add a value; a step that is not after the last one voids what it repeats: so many."""
        gone = self.cut(step) if self.steps and step <= self.steps[-1] else 0
        self.steps.append(step)
        self.times.append(time)
        self.values.append(value)
        return gone

    def cut(self, step: int) -> int:
        """Void the values from a step on; how many there were."""
        first = bisect_left(self.steps, step)
        gone = len(self.steps) - first
        for column in (self.steps, self.times, self.values):
            del column[first:]
        return gone


class RunFiles:
    """The event files of one run, read as far as they go; ``read`` again reads what was added.

    Attributes:
        series: by tag.
        voided: values that were voided so far: a run was started again, or steps went back.
        repeated: those of them for which no restart was recorded.
    """

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}
        self.voided = self.repeated = 0
        self._files: dict[Path, _File] = {}
        self._left_out: set[str] = set()

    def read(self, files: list[Path]) -> bool:
        """Read new records of these files, in the order of their names; whether there were any."""
        news = False
        for path in files:
            if path not in self._files:
                self._files[path] = _File(path)
            for event in self._files[path].events():
                news = True
                self._take(event, self._files[path])
        return news

    @property
    def problems(self) -> list[str]:
        """Sentences about what cannot be read."""
        found = [text for file in self._files.values() if (text := file.problem())]
        if self.repeated:
            found.append(f"steps went back; values that were logged again: {self.repeated:,}")
        if self._left_out:
            found.append(f"tags beyond the first {MOST_TAGS:,} left out: {len(self._left_out):,}")
        return found

    def _take(self, event: Any, file: _File) -> None:
        step, time = int(event.step), float(event.wall_time)
        if not 0 <= step <= _LARGEST_STEP or not math.isfinite(time):
            file.odd += 1
            return
        if event.HasField("session_log") and event.session_log.status == event.session_log.START:
            self.voided += sum(series.cut(step) for series in self.series.values())
            return
        for value in event.summary.value if event.HasField("summary") else ():
            number = file.scalar(value)
            if number is None:
                continue
            series = self.series.get(value.tag)
            if series is None:
                if len(self.series) >= MOST_TAGS:
                    self._left_out.add(value.tag)
                    continue
                series = self.series[value.tag] = Series()
            last = series.steps[-1] if len(series) else -1
            gone = series.put(step, time, number)
            self.voided += gone
            self.repeated += gone if step < last else 0


class _File:
    """One event file: records by TensorBoard's reader, and how far it came."""

    def __init__(self, path: Path) -> None:
        self.path, self.odd = path, 0
        self._offset = 0
        self._scalars: set[str] = set()  # tags of tensors that their first record calls scalars
        self._loader: Any = None
        self._failure = ""

    def events(self) -> Iterator[Any]:
        """The next whole records, parsed."""
        try:
            if foreign_files.check(self.path).st_size <= self._offset:
                return
            event_class = _module("tensorboard.compat.proto.event_pb2").Event
            if self._loader is None:
                reader = _module("tensorboard.backend.event_processing.event_file_loader")
                self._loader = reader.RawEventFileLoader(str(self.path))
            for record in self._loader.Load():
                self._offset += len(record) + 16  # its length and two checksums
                try:
                    event = event_class.FromString(record)
                except Exception:  # protobuf's DecodeError
                    self.odd += 1
                    continue
                yield event
        except UserError as error:
            self._failure = error.message
        except UnicodeEncodeError:
            self._failure = f"{self.path}: TensorBoard's reader takes names in UTF-8 alone"
        except Exception as error:  # a library may raise anything
            self._failure = f"{self.path}: {type(error).__name__}"

    def problem(self) -> str:
        """What of it cannot be read; "" if it is read to its end."""
        if self._failure:
            return self._failure
        try:
            rest = self.path.stat().st_size - self._offset
        except OSError:
            rest = 0
        if rest > 0:
            return (
                f"{self.path}: its last {rest:,} bytes cannot be read, because they are still "
                "being written, cut off or damaged"
            )
        return f"{self.path}: records that make no sense: {self.odd:,}" if self.odd else ""

    def scalar(self, value: Any) -> float | None:
        """The number in a summary's value; ``None`` if it is none (an image, a text, …)."""
        kind = value.WhichOneof("value")
        if kind == "simple_value":
            return float(value.simple_value)
        if kind != "tensor":
            return None
        if value.metadata.plugin_data.plugin_name == "scalars":
            self._scalars.add(value.tag)
        if value.tag not in self._scalars or value.tensor.tensor_shape.dim:
            return None
        try:
            return float(_module("tensorboard.util.tensor_util").make_ndarray(value.tensor))
        except (TypeError, ValueError):
            return None


def _module(name: str) -> Any:
    return importlib.import_module(name)


def signature(files: list[Path]) -> Mapping[str, list[int]]:
    """Sizes and times of change of files, by name; it differs when they have grown."""
    found = {}
    for path in files:
        try:
            about = path.stat()
        except OSError:
            continue
        found[path.name] = [about.st_size, about.st_mtime_ns]
    return found
