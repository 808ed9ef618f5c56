"""A run as lines on a terminal: one live line while it trains, one kept line per event."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, TextIO, cast

from nanogpt_cli.cli import console
from nanogpt_cli.run import events, explained, news

if TYPE_CHECKING:
    from rich.progress import Progress

# Without a terminal, a line at most this often.
_QUIET_S = 10.0


class TrainConsole:
    """A sink that draws events on stderr. Use as a context manager."""

    def __init__(self) -> None:
        self.live = console.stderr().is_terminal
        self._progress: Progress | None = None
        self._smooth = math.nan
        self._val = math.nan
        self._speed = math.nan
        self._max_steps = self._made = 0
        self._last_line = 0.0
        self._diverging = False
        self._explained: set[str] = set()
        self._bell = "off"
        self._news = news.News("")

    def __enter__(self) -> TrainConsole:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._close()
        if isinstance(error, Exception):
            self._ring(events.RunEnded(step=self._made, reason="error", message=str(error)))

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __call__(self, event: events.Event) -> None:
        """Show one event."""
        match event:
            case events.RunStarted():
                self._start(event)
            case events.Step():
                self._step(event)
            case events.Eval():
                self._val = event.val_loss
                self._line(
                    f"step {event.step:>6}  val loss {event.val_loss:.4f}"
                    + (f"  {event.bits_per_byte:.3f} bits/byte" if event.bits_per_byte else "")
                    + ("  best so far" if event.best and not self._diverging else "")
                )
            case events.Checkpoint():
                self._line(f"step {event.step:>6}  saved {event.path}", dim=True)
            case events.Sample():
                self._line(f"step {event.step:>6}  sample: {_one_line(event)}", dim=True)
            case events.Alarm(kind="divergence", active=False):
                self._diverging = False
            case events.Alarm() if event.severity != "info":
                self._diverging = self._diverging or event.kind == "divergence"
                self._line(f"step {event.step:>6}  {event.severity}: {event.message}")
                self._line(f"             {event.advice}", dim=True)
                self._offer(event.kind)
            case events.Incident():
                self._line(f"step {event.step:>6}  incident: {event.message} ({event.action})")
            case events.Command():
                argument = f" {event.argument}" if event.argument else ""
                self._line(f"step {event.step:>6}  {event.name}{argument}: {event.result}")
            case events.Note():
                self._line(event.message, dim=True)
            case _:
                pass
        self._ring(event)

    def _ring(self, event: events.Event) -> None:
        """Tell a terminal the news as the recipe asks; files and pipes get nothing."""
        if self.live and self._bell != "off" and (text := self._news(event)):
            # Not sys.stderr, which a live line has put itself in front of.
            console.write(cast(TextIO, console.stderr().file), news.sequence(self._bell, text))

    def _offer(self, kind: str) -> None:
        """Name the page about an alarm, once for each kind."""
        if kind not in self._explained and (command := explained.command(kind)):
            self._explained.add(kind)
            self._line(f"             what it means: {command}", dim=True)

    def _line(self, text: str, *, dim: bool = False) -> None:
        target = self._progress.console if self._progress else console.stderr()
        target.print(text, style="dim" if dim else None)

    def _start(self, event: events.RunStarted) -> None:
        self._max_steps = event.max_steps
        self._bell, self._news = news.bell_of(event.recipe), news.News(event.name)
        for note in event.notes:
            self._line(note, dim=True)
        self._line(
            f"{event.name}: {console.count(event.parameters)} parameters on {event.device} "
            f"({event.precision}), {event.max_steps} step{'s' * (event.max_steps != 1)} of "
            f"{console.count(event.tokens_per_step)} tokens"
            + (f", from step {event.step}" if event.step else "")
        )
        if self.live:
            self._open(event.step)

    def _open(self, step: int) -> None:
        """The live line; a run that rolled back gets a new one."""
        from rich.progress import BarColumn, Progress, TextColumn

        self._close()
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}"),
            console=console.stderr(),
            refresh_per_second=4,
            transient=True,
        )
        self._task = self._progress.add_task("", total=self._max_steps, completed=step, numbers="")
        self._progress.start()

    def _step(self, event: events.Step) -> None:
        self._made = event.step
        if math.isfinite(event.loss):
            known = math.isfinite(self._smooth)
            self._smooth = 0.9 * self._smooth + 0.1 * event.loss if known else event.loss
        known = math.isfinite(self._speed)
        self._speed = 0.9 * self._speed + 0.1 * event.step_s if known else event.step_s
        if self._progress is not None:
            self._progress.update(self._task, completed=event.step, numbers=self._numbers(event))
        elif time.monotonic() - self._last_line > _QUIET_S:
            self._last_line = time.monotonic()
            self._line(f"step {event.step}/{self._max_steps}  {self._numbers(event)}")

    def _numbers(self, event: events.Step) -> str:
        val = f"{self._val:.4f}" if math.isfinite(self._val) else "-"
        eta = console.duration((self._max_steps - event.step) * self._speed)
        return (
            f"loss {self._smooth:.4f}  val {val}  lr {event.lr or 0.0:.2e}  "
            f"{console.count(event.tokens_per_s or 0.0)} tok/s  eta {eta}"
        )


def _one_line(event: events.Sample) -> str:
    text = (event.prompt + event.text).replace("\n", " ⏎ ")
    return text if len(text) <= 120 else text[:119] + "…"
