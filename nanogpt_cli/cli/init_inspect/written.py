"""Files and the dashboard that ``nanogpt init-inspect`` makes of what it found."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_cli import charts, files
from nanogpt_cli.cli import console, pictures
from nanogpt_cli.cli.init_inspect import verdicts as answers
from nanogpt_cli.errors import UserError
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.log import EventWriter

if TYPE_CHECKING:
    from nanogpt_cli.init.inspect import Inspection
    from nanogpt_cli.init.lint import Verdict
    from nanogpt_cli.init.signals import Signals

_PANELS = (
    ("Residual stream (RMS)", ("stream_rms",), True),
    ("Branches (RMS)", ("attn_rms", "mlp_rms"), True),
    ("Gradient of the stream (RMS)", ("grad_rms",), True),
    ("Cosine between positions", ("cosine",), False),
)
_LABELS = {
    "stream_rms": "stream",
    "attn_rms": "attention",
    "mlp_rms": "MLP",
    "grad_rms": "gradient",
}


@dataclass(frozen=True)
class Files:
    """Files to write, and whether to open the dashboard."""

    csv: Path | None
    png: Path | None
    svg: Path | None
    tui: bool

    def check(self) -> None:
        """Refuse what could not be drawn, before anything is computed."""
        if self.tui:
            from nanogpt_cli.tui import terminal

            if reason := terminal.why_not():
                raise UserError(f"--tui opens no dashboard: {reason}", "leave it out")
        for path in (self.png, self.svg):
            if path:
                pictures.check(path)


@dataclass(frozen=True)
class About:
    """The model that was inspected, as pictures and the dashboard name it."""

    label: str
    title: str
    parameters: int
    vocab_size: int
    n_layer: int


def write(
    wanted: Files,
    about: About,
    expected: Signals | None,
    found: Inspection | None,
    verdicts: Sequence[Verdict],
) -> None:
    """Write the files, and open the dashboard."""
    signals = found.signals if found else None
    if wanted.csv:
        _write_csv(wanted.csv, expected, found)
        console.say(f"wrote {wanted.csv}")
    for path in (wanted.png, wanted.svg):
        if path:
            pictures.write(path, figure(about.title, signals, expected, verdicts))
            console.say(f"wrote {path}")
    if wanted.tui:
        _open_dashboard(about, signals, expected)


def _write_csv(path: Path, expected: Signals | None, found: Inspection | None) -> None:
    """Write one line per block (0 is the embedding) with measured and expected columns."""
    columns: dict[str, list[float]] = {}
    for label, signals in (("measured", found and found.signals), ("expected", expected)):
        if not signals:
            continue
        for name, values in signals.to_dict().items():
            for key, row in _series(name, values):
                columns[f"{key}_{label}"] = row
    length = max(map(len, columns.values()))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["block", *columns])
    for i in range(length):
        cells = [row[i - length] if i >= length - len(row) else "" for row in columns.values()]
        writer.writerow([i, *cells])
    files.write_text(path, out.getvalue())


def _series(name: str, values: Any) -> list[tuple[str, list[float]]]:
    if isinstance(values, dict):
        return [(f"weight_grad_{key}", row) for key, row in values.items() if row]
    return [(name, values)] if isinstance(values, list) and values else []


def figure(
    title: str, measured: Signals | None, expected: Signals | None, found: Sequence[Verdict]
) -> charts.Figure:
    """Four panels over depth, measured values as points and expected ones as lines.

    The verdicts stand below.
    """
    panels = []
    for heading, names, log in _PANELS:
        marks = [
            mark
            for colour, name in enumerate(names)
            for mark in _marks(name, colour, measured, expected)
        ]
        panels.append(charts.Panel(heading, marks, "block", log_y=log, x_axis="block"))
    said = [f"{answers.MARKS[v.severity]} {v.text}" for v in answers.by_severity(found)]
    return charts.Figure(title, panels, 2, said)


def _marks(
    name: str, colour: int, measured: Signals | None, expected: Signals | None
) -> Iterator[charts.Mark]:
    kinds: tuple[tuple[Signals | None, charts.Kind, str], ...] = (
        (expected, "line", "expected"), (measured, "dots", "measured"),
    )  # fmt: skip
    for signals, kind, label in kinds:
        values = [] if signals is None else getattr(signals, name)
        if not values or max(values) <= 0:
            continue
        first = 0 if name in ("stream_rms", "grad_rms", "cosine") else 1
        x = range(first, first + len(values))
        label = f"{_LABELS.get(name, name)}, {label}"
        yield charts.Mark(label, x, values, kind, colour)


def _open_dashboard(about: About, measured: Signals | None, expected: Signals | None) -> None:
    """Open the dashboard's Layers page on the inspection, in a temporary run folder."""
    from nanogpt_cli.tui.app import Dashboard
    from nanogpt_cli.tui.state.session import RunSession

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "init-inspect"
        write_run(run, about, measured, expected)
        Dashboard([RunSession(run)], readonly=True, page="layers").run()


def write_run(
    folder: Path, about: About, measured: Signals | None, expected: Signals | None
) -> None:
    """Write a run folder whose log contains the inspection as step 0."""
    from nanogpt_cli.init.expected import statistics

    shown = measured or expected
    assert shown is not None
    folder.mkdir(parents=True)
    writer = EventWriter(RunFolder(folder).events)
    writer(
        events.RunStarted(
            name=about.label,
            parameters=about.parameters,
            vocab_size=about.vocab_size,
            n_layer=about.n_layer,
            expected=statistics(expected) if expected else {},
        )
    )
    writer(events.Layers(step=0, stats=statistics(shown)))
    writer(events.RunEnded(step=0, reason="finished"))
    writer.close()
