"""The events of a run: a trainer yields them, ``events.jsonl`` holds one JSON object per line.

Every event has ``type`` (the class's key below) and ``time`` (seconds since the epoch, UTC). NaN
and infinities are written as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"`` so that
each line stays strict JSON, and come back as floats. Readers skip types and fields they do not
know.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from nanogpt_cli.parsing import parse_json
from nanogpt_cli.printable import json_escaped

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in a run."""

    type: ClassVar[str] = "event"
    time: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """The trainer is ready for its first step. ``step`` > 0 means resumed after that step.

    On resume every earlier event with a step greater than ``step`` is void: it will be repeated.
    ``peak_flops`` is that of one device, of which each of the ``processes`` has one. ``begun_from``
    describes the trained weights that the run began with before step 1; "" means the scheme's.
    """

    type: ClassVar[str] = "run_started"
    name: str
    step: int = 0
    max_steps: int = 0
    tokens_per_step: int = 0
    parameters: int = 0
    device: str = ""
    precision: str = ""
    host: str = ""
    pid: int = 0
    version: str = ""
    vocab_size: int = 0
    n_layer: int = 0
    flops_per_token: float = 0.0
    peak_flops: float | None = None
    processes: int = 1
    begun_from: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    # Statistic name -> expected value per layer at initialisation (see ``init/theory.py``).
    expected: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Step(Event):
    """One optimizer step. ``loss`` is the mean over all its tokens, before the update (nats).

    Learning rate, gradient norm and speed are ``None`` where whoever wrote the log does not know
    them.
    """

    type: ClassVar[str] = "step"
    step: int
    loss: float
    lr: float | None
    grad_norm: float | None
    tokens: int
    tokens_per_s: float | None
    step_s: float = 0.0
    clipped: bool = False
    skipped: bool = False


@dataclass(frozen=True, kw_only=True)
class Eval(Event):
    """One full pass over the validation split. ``val_loss`` in nats per token.

    ``std_error`` is the standard error of ``val_loss``, from the scatter of the windows' means;
    ``None`` where fewer than two windows were measured, or by a program that does not know.
    """

    type: ClassVar[str] = "eval"
    step: int
    val_loss: float
    bits_per_byte: float | None = None
    std_error: float | None = None
    train_loss: float | None = None
    seconds: float = 0.0
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Layers(Event):
    """Statistics of every block: ``stats[name][layer]``; see ``training/stats.py`` for the names.

    ``histograms`` stands in logs of version 0.1.0; they are events of their own now.
    """

    type: ClassVar[str] = "layers"
    step: int
    stats: Mapping[str, Any]
    every: int = 0
    cost: float = 0.0
    histograms: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Histograms(Event):
    """How values are spread in every block, at evaluations.

    ``histograms[name]`` is ``{"edges": [...], "counts": [[...] per layer]}``.
    """

    type: ClassVar[str] = "histograms"
    step: int
    histograms: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Scalars(Event):
    """Further numbers of a step by name, which another program has logged: ``values[tag]``."""

    type: ClassVar[str] = "scalars"
    step: int
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sample(Event):
    """Text the model wrote. ``text`` does not repeat ``prompt``."""

    type: ClassVar[str] = "sample"
    step: int
    prompt: str
    text: str
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Alarm(Event):
    """A condition that needs attention. ``active`` is false when the condition has cleared."""

    type: ClassVar[str] = "alarm"
    step: int
    kind: str
    severity: str  # "info" | "warning" | "error"
    message: str
    advice: str = ""
    layer: int | None = None
    value: float | None = None
    active: bool = True


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Event):
    """A checkpoint folder is complete on disk. ``path`` is relative to the run folder."""

    type: ClassVar[str] = "checkpoint"
    step: int
    path: str
    seconds: float = 0.0
    bytes: int = 0
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Command(Event):
    """A command from the user that the trainer has handled; ``result`` is its outcome."""

    type: ClassVar[str] = "command"
    step: int
    name: str
    argument: str = ""
    result: str = "done"


@dataclass(frozen=True, kw_only=True)
class Incident(Event):
    """A non-finite step, a loss spike or a divergence; ``path`` is the flight recorder's folder."""

    type: ClassVar[str] = "incident"
    step: int
    kind: str
    message: str
    path: str = ""
    action: str = ""


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """A line of commentary for people, e.g. why compilation was not used."""

    type: ClassVar[str] = "note"
    step: int = 0
    message: str = ""
    level: str = "info"


@dataclass(frozen=True, kw_only=True)
class RunImported(Event):
    """The run holds weights of another tool; nothing was trained in it. ``step`` is theirs."""

    type: ClassVar[str] = "run_imported"
    step: int
    source: str
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Heartbeat(Event):
    """The trainer is alive although no step has finished lately (``doing``: evaluate, save, …)."""

    type: ClassVar[str] = "heartbeat"
    step: int
    doing: str = ""


@dataclass(frozen=True, kw_only=True)
class System(Event):
    """What the machine and the trainer did in the last ``seconds``, on the first rank's host.

    ``None``, or absent from a mapping: the system does not tell. Bytes, seconds and shares of 1.

    Attributes:
        step: the newest when the event was written; ``time`` is that of the sample.
        seconds: since the sample before.
        steps: optimizer steps that ended in them.
        times: seconds of them by part of the training, see ``training/step_times.py``.
        cores: CPU cores the trainer may use.
        cpu: share of all the machine's cores that was busy.
        load: of the machine, over a minute.
        process_cpu: cores that the trainer and its children kept busy.
        memory_used, memory_total: of the machine; what caches hold is not used.
        group_used, group_limit: of the control group (container, job) with the least room.
        rss, children_rss: memory of the trainer, and of its ``children`` together.
        disk_free, disk_total: where checkpoints go.
        gpus: by UUID or name, see ``nvml.py``; of the trainer's own also ``torch_allocated``,
            ``torch_reserved`` and ``torch_peak`` (most that was allocated so far).
    """

    type: ClassVar[str] = "system"
    step: int
    seconds: float = 0.0
    steps: int = 0
    times: Mapping[str, Any] = field(default_factory=dict)
    cores: int | None = None
    cpu: float | None = None
    load: float | None = None
    process_cpu: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    group_used: int | None = None
    group_limit: int | None = None
    rss: int | None = None
    children: int | None = None
    children_rss: int | None = None
    disk_free: int | None = None
    disk_total: int | None = None
    gpus: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunEnded(Event):
    """The last event of a run, unless the process was killed.

    ``reason``: "finished", "stopped" (on request), "early_stop", "diverged" (all steps were made,
    but the loss rose and did not recover), "non_finite" or "error".
    """

    type: ClassVar[str] = "run_ended"
    step: int
    reason: str
    message: str = ""
    best_val_loss: float | None = None
    checkpoint: str = ""
    seconds: float = 0.0


EVENTS: dict[str, type[Event]] = {
    cls.type: cls
    for cls in (
        RunStarted, RunImported, Step, Eval, Layers, Histograms, Scalars, Sample, Alarm, Checkpoint,
        Command, Incident, Note, Heartbeat, System, RunEnded,
    )
}  # fmt: skip


def plain(value: Any) -> Any:
    """The value in a form that strict JSON can represent."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def encode(event: Event) -> str:
    """One line of strict JSON without the newline."""
    record = {"type": event.type}
    for item in fields(event):
        record[item.name] = plain(getattr(event, item.name))
    text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text if text.isprintable() else json_escaped(text)


def _is_numeric(annotation: Any) -> bool:
    return "float" in str(annotation) or annotation == "Mapping[str, Any]"


def _restored(value: Any) -> Any:
    """The inverse of ``plain`` inside numeric fields."""
    if isinstance(value, str):
        return _NON_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: _restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item) for item in value]
    return value


_NUMERIC = {
    name: {item.name for item in fields(cls) if _is_numeric(item.type)}
    for name, cls in EVENTS.items()
}
_TUPLES = {
    name: [item.name for item in fields(cls) if str(item.type).startswith("tuple")]
    for name, cls in EVENTS.items()
}
_FIELDS = {name: {item.name for item in fields(cls)} for name, cls in EVENTS.items()}


_KINDS: dict[str, type | tuple[type, ...]] = {
    "str": str, "bool": bool, "int": int, "float": (int, float), "None": type(None),
    "Mapping[str, Any]": dict, "tuple[str, ...]": (list, tuple),
}  # fmt: skip


def _types(annotation: str) -> tuple[type, ...]:
    found: list[type] = []
    for word in annotation.split(" | "):
        kinds = _KINDS[word]
        found += kinds if isinstance(kinds, tuple) else (kinds,)
    return tuple(found)


# Event -> (field, types its annotation allows).
ALLOWED = {
    kind: [(item.name, _types(str(item.type))) for item in fields(cls)]
    for kind, cls in EVENTS.items()
}


def sound(event: Event) -> bool:
    """Whether every field has the type of its annotation; a log may contain anything."""
    return all(isinstance(getattr(event, name), kinds) for name, kinds in ALLOWED[event.type])


def decode(line: str | bytes) -> Event | None:
    """The event of one line, or ``None`` for a type this version does not know.

    Unknown fields are dropped, so that an old reader can read a newer log.

    Raises:
        ValueError: the line is not a JSON object, a required field is missing, or one holds a value
            of another type.
    """
    record = parse_json(line)
    if not isinstance(record, dict) or not isinstance(record.get("type"), str):
        raise ValueError("not an event: a JSON object with a type is expected")
    cls = EVENTS.get(record.pop("type"))
    if cls is None:
        return None
    known = _FIELDS[cls.type]
    if not record.keys() <= known:
        record = {key: value for key, value in record.items() if key in known}
    for key in _NUMERIC[cls.type]:
        if isinstance(value := record.get(key), (str, dict, list)):
            record[key] = _restored(value)
    for key in _TUPLES[cls.type]:
        if isinstance(value := record.get(key), list):
            record[key] = tuple(value)
    try:
        event = cls(**record)
    except TypeError as error:
        raise ValueError(f"incomplete {cls.type} event: {error}") from error
    if not sound(event):
        raise ValueError(f"a field of this {cls.type} event holds a value of another type")
    return event
