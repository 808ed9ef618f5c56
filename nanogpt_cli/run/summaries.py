"""Summaries of many runs: from the ends of a log at once, from the rest of it bit by bit.

A list of hundreds of runs cannot parse their logs. What it shows stands in the first and the last
lines, and a curve of a few dozen points in blocks between them. Only the lowest validation loss and
alarms need the rest, in which evaluations and the like are searched for without decoding the steps.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import BinaryIO, Final

from nanogpt_cli import foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.run import events, history, lines
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.follow import LONGEST_LINE

END: Final = 1 << 16  # bytes read at once of the beginning and the end of a log
SAMPLE: Final = 1 << 12  # bytes of a block in between
SAMPLES: Final = 24
POINTS: Final = 96  # points of a curve; one that grows is thinned to half of them
RECENT: Final = 8  # last steps, of which the speed is the median
ALARMS: Final = 1000  # newest alarms that are remembered


class Summary:
    """What a list shows of one run; ``refresh`` follows its log.

    Attributes:
        run: its folder.
        started, imported, ended, last_step: the last event of each kind; ``None`` without one, and
            for ``ended`` after a resume.
        began: when the run began, in seconds since the epoch; 0 if unknown.
        points: steps and losses along the run; speed: tokens per second lately, NaN if unknown.
        complete: whether all of the log was searched, so that ``best`` and ``alarms`` are exact.
        problem: why the log cannot be read; empty if it can.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.problem = ""
        self._stamp: tuple[int, int, int] | None = None  # inode, size, time of writing
        self._start_anew()

    def _start_anew(self) -> None:
        self.complete = False
        self.points: list[tuple[int, float]] = []
        self.last_step: events.Step | None = None
        # What lines before the end of the log say last, for an end that says nothing of it.
        self._before: events.Step | None = None
        self._went_on = False  # a step follows what ended the run
        self._told = False  # the end of the log tells whether the run goes on
        self.speed = math.nan
        self.pace = 0.0
        self.last_time = 0.0
        self._ours = True  # whether the lines begin as ours do
        self._seen = 0  # bytes up to which the end has been read
        self._gap = (0, 0)  # bytes not searched yet
        self._head: list[events.Event] = []
        self._middle: list[events.Event] = []
        self._forget()

    def _forget(self) -> None:
        """Forget what rare events said; they are folded again once the log has been searched."""
        self.started: events.RunStarted | None = None
        self.imported: events.RunImported | None = None
        self.ended: events.RunEnded | None = None
        self.began = 0.0
        self.doing = ""
        self.paused = self.stopping = False
        self._tail: list[events.Event] = []
        self._evals: list[tuple[int, float]] = []
        self._lowest = math.inf
        # With those that later ones replaced: a resume may make the later ones void.
        self._alarms: deque[events.Alarm] = deque(maxlen=ALARMS)

    @property
    def has_steps(self) -> bool:
        """Whether any step was made."""
        return bool(self.points)

    @property
    def best(self) -> float | None:
        """The lowest validation loss; unless ``complete``, the lowest that is known."""
        found = self._lowest
        if not self.complete and self.ended and self.ended.best_val_loss is not None:
            found = min(found, self.ended.best_val_loss)
        return found if math.isfinite(found) else None

    @property
    def step(self) -> int:
        """The latest step that is known; 0 before the first."""
        if self.last_step is not None:
            return self.last_step.step
        return self.points[-1][0] if self.points else self.started.step if self.started else 0

    @property
    def best_is_exact(self) -> bool:
        """Whether no evaluation that has not been read can be lower than ``best``."""
        ended = self.ended is not None and self.ended.best_val_loss is not None
        return self.complete or ended

    @property
    def alarms(self) -> list[events.Alarm]:
        """Alarms that are active, as far as they are known."""
        return history.active_alarms(self._alarms)

    @property
    def diverged(self) -> bool:
        """Whether the run ended as diverged or not finite, or its loss is diverging."""
        if self.ended and self.ended.reason in ("diverged", "non_finite"):
            return True
        return any(alarm.kind == "divergence" for alarm in self.alarms)

    def refresh(self, max_bytes: int = 1 << 22) -> bool:
        """Read what is new, at most about ``max_bytes``; returns whether anything changed."""
        try:
            about = self.run.events.stat()
        except OSError:
            return False
        stamp = (about.st_ino, about.st_size, about.st_mtime_ns)
        if stamp == self._stamp and self._seen >= about.st_size:
            return False
        try:
            with foreign_files.opened(self.run.events) as file:
                replaced = self._stamp is not None and self._stamp[0] != stamp[0]
                if self._stamp is None or replaced or about.st_size < self._seen:
                    self._start_anew()
                    self._read_ends(file, about.st_size)
                else:
                    self._read_new(file, max_bytes)
        except (UserError, OSError) as error:
            self.problem = str(getattr(error, "message", error))
            self._stamp, self._seen = stamp, about.st_size
            return True
        self.problem, self._stamp = "", stamp
        return True

    def search(self, max_bytes: int = 1 << 20) -> bool:
        """Search a piece of what lies between the ends; returns whether nothing is left."""
        start, end = self._gap
        if self.complete:
            return True
        try:
            with foreign_files.opened(self.run.events) as file:
                data = lines.read(file, start, min(end - start, max_bytes))
        except (UserError, OSError):
            data = b""
        whole = data.rfind(b"\n") + 1
        if not whole and data and len(data) < end - start and max_bytes < LONGEST_LINE:
            return self.search(max_bytes * 4)  # a line longer than the piece
        text = self._as_ours(data[:whole])
        self._middle += lines.rare(text)
        self._note_before(text)
        # The end of the file is where it was, so that a piece without an end of line is skipped.
        self._gap = (start + (whole or end - start), end)
        if self._gap[0] >= end:
            self._finish()
        return self.complete

    def _as_ours(self, text: bytes) -> bytes:
        return text if self._ours else lines.rewritten(text)

    def _finish(self) -> None:
        """All is known: fold it in its order; what the end alone tells stays."""
        found = [*self._head, *self._middle, *self._tail]
        resumed = any(isinstance(event, events.RunStarted) for event in self._tail)
        last_step = self.last_step or (None if resumed else self._before)
        ended, doing = self.ended, self.doing
        self._forget()
        self.complete = True
        for event in found:
            self._fold(event)
        if self._told or self._went_on:
            self.ended = ended
        self.doing, self.last_step = doing, last_step
        self._head, self._middle, self._tail = [], [], []

    def _note_before(self, text: bytes) -> None:
        """Keep what whole lines before the end say last; the end may hold samples only."""
        start = text.rfind(lines.START)
        steps = text[max(start, 0) :]
        found = lines.last_steps(steps, 1)
        self._before = found[0] if found else self._before if start < 0 else None
        step, ended = steps.rfind(lines.STEP), steps.rfind(lines.ENDED)
        if step != ended:
            self._went_on = step > ended

    def _read_ends(self, file: BinaryIO, size: int) -> None:
        """Read the beginning, the end, and blocks in between."""
        head = lines.read(file, 0, size if size <= 4 * END else END)
        whole = head.rfind(b"\n") + 1
        if size > len(head) and not whole:  # a first line of a long recipe
            head = lines.read(file, 0, min(size, 64 * END))
            whole = head.rfind(b"\n") + 1
        self._ours = lines.ours(head)
        if size <= len(head):
            self.complete = True
            self._sample_lines(self._as_ours(head[:whole]))
            self._take(head[:whole])
            self._seen = whole
            return
        begin = max(whole, size - END)
        tail = lines.read(file, begin, size - begin)
        cut = 0 if begin == whole else tail.find(b"\n") + 1
        end = max(cut, tail.rfind(b"\n") + 1)
        self._head = lines.rare(self._as_ours(head[:whole]))
        self._note_before(self._as_ours(head[:whole]))
        self._gap = (whole, begin + cut)
        self._sample_blocks(file, size)
        for event in self._head:
            self._fold(event)
        self._tail = []
        self._take(tail[cut:end])
        self._seen = begin + end
        if self._gap[0] >= self._gap[1]:
            self._finish()

    def _read_new(self, file: BinaryIO, max_bytes: int) -> None:
        data = lines.read(file, self._seen, max_bytes)
        whole = data.rfind(b"\n") + 1
        if not whole and len(data) == max_bytes:
            if max_bytes < LONGEST_LINE:
                self._read_new(file, max_bytes * 4)
                return
            whole = len(data)  # no line of a log is as long
        self._take(data[:whole])
        self._seen += whole

    def _take(self, text: bytes) -> None:
        """Fold whole lines that follow all that was taken before: rare events, and last steps."""
        text = self._as_ours(text)
        for event in lines.rare(text):
            self._fold(event)
        steps = text[max(text.rfind(lines.START), 0) :]  # those before a resume are void
        found = lines.last_steps(steps, RECENT)
        if found:
            self._take_steps(found)
        step, ended = steps.rfind(lines.STEP), steps.rfind(lines.ENDED)
        self._told = self._told or step != ended
        if step > ended:
            self.ended = None  # it goes on, as a log without a word of its start says
        sign = lines.last_sign(text)
        if sign is not None:
            self.last_time = max(self.last_time, sign.time)
            self.doing = sign.doing if isinstance(sign, events.Heartbeat) else ""

    def _take_steps(self, found: list[events.Step]) -> None:
        """The last steps, newest first, give loss, speed and pace."""
        self.last_step = found[0]
        self.last_time = max(self.last_time, found[0].time)
        self._add_point(found[0].step, found[0].loss)
        self.speed = _median([s.tokens_per_s for s in found if s.tokens_per_s is not None])
        pace = _median([step.step_s for step in found])
        self.pace = pace if math.isfinite(pace) else 0.0

    def _fold(self, event: events.Event) -> None:
        if not self.complete:
            self._tail.append(event)
        self.last_time = max(self.last_time, event.time)
        if isinstance(event, events.RunStarted):
            self._fold_start(event)
        elif isinstance(event, events.RunImported):
            self.imported = event
        elif isinstance(event, events.Eval):
            self._fold_eval(event)
        elif isinstance(event, events.Alarm):
            self._alarms.append(event)
        elif isinstance(event, events.Command):
            if event.name in ("pause", "resume"):
                self.paused = event.name == "pause"
            self.stopping = self.stopping or event.name == "stop"
        elif isinstance(event, events.RunEnded):
            self.ended, self.doing = event, ""

    def _fold_eval(self, event: events.Eval) -> None:
        self.doing = ""
        if self._evals and event.step <= self._evals[-1][0]:
            return  # made again by a resumed run
        self._evals.append((event.step, float(event.val_loss)))
        if math.isfinite(event.val_loss):
            self._lowest = min(self._lowest, event.val_loss)

    def _fold_start(self, event: events.RunStarted) -> None:
        """A start, or a resume: what came after its step is void."""
        self.began = self.began or event.time
        # The values per layer and what it said are not listed, and would take most of the memory.
        self.started = replace(event, expected={}, notes=())
        self.ended, self.doing = None, "starting"
        self.paused = self.stopping = False
        self._evals = [pair for pair in self._evals if pair[0] <= event.step]
        finite = [loss for _, loss in self._evals if math.isfinite(loss)]
        self._lowest = min(finite, default=math.inf)
        valid = [alarm for alarm in self._alarms if alarm.step <= event.step]
        self._alarms = deque(valid, maxlen=ALARMS)
        if self.last_step is not None and self.last_step.step > event.step:
            self.last_step = None

    def _sample_lines(self, text: bytes) -> None:
        """Points of a short log, evenly spread over its bytes."""
        places = (len(text) * number // SAMPLES for number in range(SAMPLES))
        for point in filter(None, (lines.point_at(text, place) for place in places)):
            self._add_point(*point)

    def _sample_blocks(self, file: BinaryIO, size: int) -> None:
        """Points of a long log: one from each of the blocks that are spread over it."""
        for number in range(SAMPLES):
            block = lines.read(file, size * number // SAMPLES, SAMPLE)
            point = lines.point_at(self._as_ours(block), 0)
            if point is not None:
                self._add_point(*point)

    def _add_point(self, step: int, loss: float) -> None:
        """Add a point; those of later steps were made before a resume and are void."""
        while self.points and self.points[-1][0] >= step:
            self.points.pop()
        self.points.append((step, float(loss)))
        if len(self.points) > POINTS:
            self.points = self.points[-1::-2][::-1]


def _median(values: list[float]) -> float:
    finite = sorted(value for value in values if math.isfinite(value))
    return finite[len(finite) // 2] if finite else math.nan
