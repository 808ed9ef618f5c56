"""Sinks: destinations of events besides ``events.jsonl``.

A sink is called with each event. ``csv`` is built in; the others need a library, which is imported
when the sink is opened.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from types import ModuleType
from typing import Any, TextIO

from nanogpt_cli import foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder

Sink = Callable[[events.Event], None]

COLUMNS = (
    "step", "time", "loss", "val_loss", "bits_per_byte", "lr", "grad_norm", "tokens",
    "tokens_per_s",
)  # fmt: skip
# Characters that W&B refuses in the identity of a run.
_UNSAFE_ID = re.compile(r"[/\\#?%:]")


@contextlib.contextmanager
def opened(
    names: Sequence[str], run: RunFolder, failed: Callable[[str], None] = lambda _: None
) -> Iterator[list[Sink]]:
    """Open the named sinks for the duration of the block.

    Args:
        names: as in ``log.sinks``.
        run: the run they describe.
        failed: receives a sentence when a sink raises. That sink gets no more events; the run goes
            on, whatever a library or a server does.

    Raises:
        UserError: a library is missing; the message names the extra to install.
    """
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_tolerant(name, run, failed)) for name in names]


@contextlib.contextmanager
def _tolerant(name: str, run: RunFolder, failed: Callable[[str], None]) -> Iterator[Sink]:
    """A sink that never raises, neither for an event nor when it is closed."""
    stack = contextlib.ExitStack()
    sink: Sink | None = stack.enter_context(_SINKS[name](run))

    def take(event: events.Event) -> None:
        nonlocal sink
        if sink is None:
            return
        try:
            sink(event)
        except Exception as error:  # a library may raise anything
            sink = None
            reason = " ".join(str(error).split())[:200]
            failed(f"the sink {name} failed and is left out: {type(error).__name__}: {reason}")

    try:
        yield take
    finally:
        with contextlib.suppress(Exception):
            stack.close()


def scalars(event: events.Event) -> dict[str, float]:
    """The numbers of an event by name, per-layer statistics as ``layers/NAME/LAYER``."""
    if isinstance(event, events.Step):
        names = ("loss", "lr", "grad_norm", "tokens", "tokens_per_s")
        return {f"train/{name}": float(getattr(event, name)) for name in names}
    if isinstance(event, events.Eval):
        found = {"val/loss": event.val_loss}
        if event.bits_per_byte is not None:
            found["val/bits_per_byte"] = event.bits_per_byte
        return found
    if isinstance(event, events.Layers):
        return {
            f"layers/{name}/{layer}": float(value)
            for name, row in event.stats.items()
            for layer, value in enumerate(row)
        }
    if isinstance(event, events.System):
        return _system_scalars(event)
    return {}


def _system_scalars(event: events.System) -> dict[str, float]:
    """Of a sample of the machine what is known: ``system/NAME``, ``time/PART``, ``gpu/0/NAME``."""
    found: dict[str, Any] = {
        f"system/{item.name}": getattr(event, item.name)
        for item in fields(event)
        if item.name not in ("time", "step")
    }
    found |= {f"time/{part}": seconds for part, seconds in event.times.items()}
    for number, gpu in enumerate(event.gpus.values()):
        found |= {f"gpu/{number}/{name}": value for name, value in gpu.items()}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def write_csv(found: Iterator[events.Event], file: TextIO) -> None:
    """Steps and evaluations as comma-separated values, one row each."""
    take = _csv_writer(file)
    for event in found:
        take(event)


def _csv_writer(file: TextIO, *, header: bool = True) -> Sink:
    writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
    if header:
        writer.writeheader()

    def take(event: events.Event) -> None:
        if isinstance(event, events.Step | events.Eval):
            row = {name: getattr(event, name, "") for name in COLUMNS}
            writer.writerow({k: "" if v is None else v for k, v in row.items()})

    return take


@contextlib.contextmanager
def _csv(run: RunFolder) -> Iterator[Sink]:
    """``metrics.csv`` in the run folder; a resumed run adds to it."""
    path = run.path / "metrics.csv"
    fresh = not foreign_files.present(path) or foreign_files.check(path).st_size == 0
    with path.open("a", newline="", encoding="utf-8", buffering=1) as file:
        yield _csv_writer(file, header=fresh)


@contextlib.contextmanager
def _tensorboard(run: RunFolder) -> Iterator[Sink]:
    """Event files for TensorBoard in ``RUN/tensorboard``."""
    _required("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter  # needs both libraries

    writer: Any = SummaryWriter(str(run.path / "tensorboard"))

    def take(event: events.Event) -> None:
        step = getattr(event, "step", 0)
        for name, value in scalars(event).items():
            writer.add_scalar(name, value, step, walltime=event.time)
        if isinstance(event, events.Sample):
            writer.add_text("sample", f"{event.prompt}{event.text}", step)

    try:
        yield take
    finally:
        writer.close()


@contextlib.contextmanager
def _hosted(name: str, run: RunFolder) -> Iterator[Sink]:
    """Weights & Biases, or trackio, which has the same interface."""
    library: Any = _required(name, name)
    live: Any = None

    def take(event: events.Event) -> None:
        nonlocal live
        if isinstance(event, events.RunStarted) and live is None:
            keys: dict[str, Any] = {"project": "nanogpt-cli", "name": run.name}
            keys["config"] = dict(event.recipe)
            if name == "wandb":
                keys |= {
                    "id": _UNSAFE_ID.sub("-", run.name),
                    "resume": "allow",
                    "dir": str(run.path),
                }
            live = library.init(**keys)
        values: Mapping[str, float] = scalars(event)
        if values:
            library.log(dict(values), step=getattr(event, "step", 0))

    try:
        yield take
    finally:
        if live is not None:
            library.finish()


def check(names: Sequence[str]) -> None:
    """Check that the sinks can be opened, before a run folder is created.

    Raises:
        UserError: a library is missing; the message names the extra to install.
    """
    for name in names:
        if name != "csv":
            _required(name, name)


def _required(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"log.sinks asks for {module}, which is not installed",
            f"pip install 'nanogpt-cli[{extra}]', or take it out of log.sinks",
        ) from None


_SINKS: dict[str, Callable[[RunFolder], contextlib.AbstractContextManager[Sink]]] = {
    "csv": _csv,
    "tensorboard": _tensorboard,
    "wandb": lambda run: _hosted("wandb", run),
    "trackio": lambda run: _hosted("trackio", run),
}
