"""Event files as TensorBoard's own writer makes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

event_pb2 = pytest.importorskip("tensorboard.compat.proto.event_pb2")
from tensorboard.compat.proto import summary_pb2  # noqa: E402
from tensorboard.plugins.scalar import metadata  # noqa: E402
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # noqa: E402
from tensorboard.util import tensor_util  # noqa: E402

START = 1.79e9


class Writer:
    """Writes one event file; use as a context manager.

    Args:
        folder: of the run.
        tensors: write scalars as TensorFlow 2 does.
        suffix: of the file's name, where a folder gets several files in one second.
    """

    def __init__(self, folder: Path, *, tensors: bool = False, suffix: str = "") -> None:
        self._writer = EventFileWriter(str(folder), filename_suffix=suffix)
        self._tensors, self._named = tensors, set[str]()

    def put(self, step: int, values: Mapping[str, float], at: float | None = None) -> None:
        event = event_pb2.Event(wall_time=START + step if at is None else at, step=step)
        for tag, value in values.items():
            item = event.summary.value.add(tag=tag)
            if self._tensors:
                item.tensor.CopyFrom(tensor_util.make_tensor_proto(value, dtype="float32"))
                if tag not in self._named:  # later records do without
                    about = metadata.create_summary_metadata("", "")
                    item.metadata.CopyFrom(about)
                    self._named.add(tag)
            else:
                item.simple_value = value
        self._writer.add_event(event)

    def picture(self, step: int) -> None:
        image = summary_pb2.Summary.Image(height=1, width=1, encoded_image_string=b"\x89PNG")
        event = event_pb2.Event(wall_time=START + step, step=step)
        event.summary.value.add(tag="generated", image=image)
        self._writer.add_event(event)

    def flush(self) -> None:
        self._writer.flush()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: Any) -> None:
        self._writer.close()


def write(folder: Path, rows: Iterable[tuple[int, Mapping[str, float]]], **settings: Any) -> Path:
    """An event file with these values by step; its path."""
    before = set(folder.glob("*")) if folder.is_dir() else set()
    with Writer(folder, **settings) as writer:
        for step, values in rows:
            writer.put(step, values)
    (made,) = set(folder.glob("*tfevents*")) - before
    return made
