"""A session with NVML, replayed: stands for ``pynvml`` where there is no GPU.

``nvml_synthetic.json`` is hand-made from NVML's documented interface and was recorded on no GPU: of
each function, what it returns call by call (the last value for ever), for each device by index, or
``{"error": ...}``. A real session written in this form replays in the same way.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

RECORDING = Path(__file__).with_name("nvml_synthetic.json")


class NvmlError(Exception):
    """Stands for ``pynvml.NVMLError``."""


class Replay:
    """Answers as the recording does; what it does not hold is an unknown function."""

    def __init__(self, path: Path = RECORDING, **changed: Any) -> None:
        self.calls: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["calls"] | changed
        self.counts: dict[tuple[str, Any], int] = {}

    def __getattr__(self, name: str) -> Any:
        if name not in self.calls:
            raise AttributeError(name)
        return lambda *arguments: self._answer(name, arguments)

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> Any:
        told = self.calls[name]
        if arguments and isinstance(told, dict) and "error" not in told:
            told = told[":".join(map(str, arguments))]
        number = self.counts[name, arguments] = self.counts.get((name, arguments), -1) + 1
        value = told[min(number, len(told) - 1)] if isinstance(told, list) else told
        if isinstance(value, dict) and "error" in value:
            raise NvmlError(value["error"])
        return SimpleNamespace(**value) if isinstance(value, dict) else value
