"""Page 5: alarms with advice, other events, and the trainer's output."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.widget import Widget

from nanogpt_cli import units
from nanogpt_cli.run import events, explained
from nanogpt_cli.tui.desk import Desk
from nanogpt_cli.tui.drawing.plot import Row
from nanogpt_cli.tui.pages.page import Across, Page
from nanogpt_cli.tui.state import patterns
from nanogpt_cli.tui.widgets.panes import Pane, printable, table, wrap

_BAD_ENDS = ("non_finite", "diverged", "error")
_NO_OUTPUT = "none kept: the trainer wrote it to its own terminal (train --tui keeps it)"


class LogsPage(Page):
    """Events on the left, details of the chosen one on the right, the trainer's output below."""

    def __init__(self, desk: Desk, id: str) -> None:
        super().__init__(desk, id)
        self.chosen: int | None = None  # None: what matters most

    def compose(self) -> ComposeResult:
        """Yield events, detail and output."""
        with Across(id="upper"):
            yield Pane(id="events")
            yield Pane(id="detail")
        yield Pane(id="output")

    def first_focus(self) -> Widget | None:
        """The list."""
        return self.query_one("#events")

    def found(self) -> list[events.Event]:
        """The events that pass the filter, oldest first."""
        return [
            event
            for event in self.desk.view.happenings
            if patterns.matches(self.filter, " ".join((event.type, *story(event))))
        ]

    def update(self, slow: bool = True) -> None:  # noqa: ARG002
        """Draw all three panes."""
        found = self.found()
        index = self._index(found)
        listing, detail = self.query_one("#events", Pane), self.query_one("#detail", Pane)
        if found:
            self._draw_list(listing, found, index)
            rows = detail_rows(found[index], detail.size.width, self._advice(found[index]))
            detail.set_rows(rows)
            detail.set_title("what happened", "enter shows the step")
        else:
            listing.empty("nothing matches" if self.filter else "nothing has happened yet")
            listing.set_title("events", self.desk.session.problems())
            detail.empty("", "what happened")
        self._draw_output(self.query_one("#output", Pane))

    def _index(self, found: Sequence[events.Event]) -> int:
        """The chosen event; until one is chosen the newest alarm that is active, else the newest.

        An alarm is what this page is opened for, and later evaluations would push it off a small
        screen.
        """
        if self.chosen is not None:
            return min(self.chosen, len(found) - 1)
        active = {id(alarm) for alarm in self.desk.view.active_alarms}
        raised = (i for i in reversed(range(len(found))) if id(found[i]) in active)
        return next(raised, len(found) - 1)

    def _advice(self, event: events.Event) -> str:
        """What to do about an event; about a bad end, what the last alarm before it says."""
        if isinstance(event, events.Alarm):
            return event.advice
        if isinstance(event, events.RunEnded) and event.reason in _BAD_ENDS:
            said = [alarm.advice for alarm in self.desk.view.active_alarms if alarm.advice]
            return said[-1] if said else ""
        return ""

    def _draw_list(self, pane: Pane, found: Sequence[events.Event], index: int) -> None:
        width = pane.size.width
        lines = [
            (f"{getattr(event, 'step', 0):,}", sign(event, self.desk.ascii_only), *story(event))
            for event in found
        ]
        room = max(1, pane.size.height - 1)
        first = max(0, min(index - room // 2, len(lines) - room))
        part = lines[first : first + room]
        rows = table(("step", " ", "what", "how"), part, index - first, width)
        for row, event in zip(rows[1:], found[first : first + room], strict=True):
            if row[0][1] == "text":
                row[0] = (row[0][0], severity(event))
        pane.set_rows(rows)
        active = len(self.desk.view.active_alarms)
        said = f"{active} alarm{'s' * (active != 1)} active" if active else "no alarm active"
        pane.set_title(f"events ─ {said}", self.desk.session.problems())

    def _draw_output(self, pane: Pane) -> None:
        state, width = self.desk.state(), pane.size.width
        text = self.desk.session.output()
        self.set_class(not text.strip(), "-silent")  # its room is then for the events
        if not text.strip():
            pane.empty(_NO_OUTPUT, "output")
            return
        bad = state.word in ("crashed", "failed")
        lines = [part for line in text.rstrip().splitlines() for part in wrap(line, width - 1)]
        shown = lines[-pane.size.height :]
        start = max((i for i, line in enumerate(lines) if line.startswith("Traceback")), default=-1)
        first = len(lines) - len(shown)
        rows: list[Row] = []
        for number, line in enumerate(shown, first):
            key = "error" if bad and 0 <= start <= number else "text"
            rows.append([(f" {line}", key)])
        pane.set_rows(rows)
        title = f"output ─ the run {state.word}" if bad else "output ─ stdout.log"
        pane.set_title(title, state.detail if bad else "")

    def row(self, step: int) -> None:
        """Choose the next or previous event."""
        found = self.found()
        if found:
            index = min(max(self._index(found) + step, 0), len(found) - 1)
            newest = index == len(found) - 1 and not self.desk.view.active_alarms
            self.chosen = None if newest else index

    turn = row

    def open(self) -> None:
        """Show the event's step in the charts."""
        found = self.found()
        if not found:
            return
        step = float(getattr(found[self._index(found)], "step", 0))
        window, view = self.desk.window, self.desk.view
        around = max(50.0, view.step * 0.05)
        low, high = max(0.0, step - around), min(max(step + around, 1.0), max(view.step, 1))
        window.show(view.steps.at(window.axis, low), view.steps.at(window.axis, high))
        window.cursor = view.steps.at(window.axis, step)
        self.app.action_page("overview")  # type: ignore[attr-defined]

    def step_in_question(self) -> int | None:
        """The step of the chosen alarm or incident; of other events none."""
        found = self.found()
        event = found[self._index(found)] if found else None
        return event.step if isinstance(event, events.Alarm | events.Incident) else None

    def alternate(self) -> None:
        """Show only the output, or all panes."""
        self.toggle_class("-other")

    def set_filter(self, pattern: str) -> None:
        """Show only events that match."""
        self.filter = pattern
        self.chosen = None


def severity(event: events.Event) -> str:
    """The colour key of an event."""
    if isinstance(event, events.Incident):
        return "error"
    if isinstance(event, events.Alarm):
        if not event.active:
            return "dim"
        return {"error": "error", "warning": "warning"}.get(event.severity, "text")
    return "text"


def sign(event: events.Event, ascii_only: bool = False) -> str:
    """A symbol for an event's severity."""
    if isinstance(event, events.Alarm) and not event.active:
        return "v" if ascii_only else "✓"
    shown = {"error": "x" if ascii_only else "✖", "warning": "!" if ascii_only else "▲"}
    return shown.get(severity(event), " ")


def story(event: events.Event) -> tuple[str, str]:
    """An event in two columns: its kind, and one line about it."""
    if isinstance(event, events.Alarm):
        named = event.layer is None or f"layer {event.layer}" in event.message
        where = "" if named else f"layer {event.layer}: "
        over = "" if event.active or "normal" in event.message else " (cleared)"
        return event.kind.replace("_", " "), printable(f"{where}{event.message}{over}")
    if isinstance(event, events.Eval):
        best = ", best so far" if event.best else ""
        return "evaluation", f"val loss {units.loss(event.val_loss)}{best}"
    if isinstance(event, events.Checkpoint):
        return "checkpoint", f"{event.path} ({units.size(event.bytes)})"
    if isinstance(event, events.Command):
        return "command", printable(f"{event.name} {event.argument}".strip() + f": {event.result}")
    if isinstance(event, events.Incident):
        return "incident", printable(f"{event.message} {event.action}".strip())
    if isinstance(event, events.RunImported):
        return "imported", printable(f"from {event.source}")
    if isinstance(event, events.RunStarted):
        return "resumed", f"after step {event.step:,}"
    if isinstance(event, events.RunEnded):
        return "end", printable(f"{event.reason} {event.message}".strip())
    return event.type, printable(str(getattr(event, "message", "")))


def detail_rows(event: events.Event, width: int, advice: str) -> list[Row]:
    """All details of an event, and what to do about it."""
    kind, line = story(event)
    rows: list[Row] = [[(f" {kind}", "title")]]
    parts: list[tuple[str, str]] = [(line, severity(event))]
    parts += [(advice, "text")] if advice else []
    if isinstance(event, events.Alarm | events.Incident):
        asked = explained.command(event.kind)
        parts += [(f"what it means: {asked}", "key")] if asked else []
    if isinstance(event, events.Alarm) and event.value is not None:
        parts += [(f"measured: {units.number(event.value)}", "dim")]
    if isinstance(event, events.Eval):
        bits = event.bits_per_byte
        parts += [(f"{units.number(bits)} bits per byte", "text")] if bits is not None else []
        if event.seconds:  # unknown of the evaluations of somebody else's loop
            parts += [(f"took {units.duration(event.seconds)}", "dim")]
    if isinstance(event, events.Incident) and event.path:
        parts += [(f"recorded in {event.path}; repeat the step: nanogpt replay", "dim")]
    for text, key in parts:
        rows += [[(f" {piece}", key)] for piece in wrap(text, max(8, width - 2))]
    return rows
