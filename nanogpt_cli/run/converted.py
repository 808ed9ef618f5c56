"""Runs of TensorBoard's event files as run folders in the cache, which grow as the files do."""

from __future__ import annotations

import contextlib
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from nanogpt_cli import files, foreign_files, places
from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import printable
from nanogpt_cli.run import event_files, events, tags
from nanogpt_cli.run.folder import RunFolder, list_runs
from nanogpt_cli.run.log import EventWriter

_VERSION = 1  # of the conversion; another one converts anew
_STAMP = "source.json"
PAUSE_S = 1.0  # seconds between two looks at the files
_MOST_LAYERS = 1000
_BLOCK = 1000  # steps that stand together, which readers take in one piece; then their scalars
_UNFIT = re.compile(r'[<>:"/\\|?*\x00-\x1f]+')


class _BusyError(Exception):
    """Another program converts this folder."""


class Converted:
    """A folder with event files, and a run folder in the cache for each run in it.

    One program at a time converts a folder, until it ends; others read what that one writes.

    Args:
        root: the folder; it holds event files, see ``event_files.find``.
        report: receives lines about what cannot be read.

    Raises:
        UserError: TensorBoard's reader is not installed, or the cache cannot be written.
    """

    def __init__(self, root: Path, report: Callable[[str], None]) -> None:
        event_files.check_reader(root)
        self.root, self._report = root, report
        real = os.fsencode(root.resolve())
        self.cache = places.cache_home() / "tensorboard" / files.sha256_bytes(real)[:12]
        self._runs: dict[str, _Run] = {}
        self._held = contextlib.ExitStack()  # freed with this object, or by the system
        self._over = threading.Event()
        self._ours = self._lock()

    def _lock(self) -> bool:
        """Whether this program is the one that converts."""

        def refuse() -> None:
            raise _BusyError

        with files.readable_os_errors("convert event files", self.cache):
            self.cache.mkdir(parents=True, exist_ok=True)
            try:
                self._held.enter_context(files.locked(self.cache / "lock", refuse))
            except _BusyError:
                return False
        return True

    @property
    def runs(self) -> list[RunFolder]:
        """The run folders, the one with the newest values first."""
        if not self._ours:
            return list_runs(self.cache)
        known = sorted(self._runs.values(), key=lambda run: run.newest, reverse=True)
        return [run.folder for run in known]

    def update(self) -> None:
        """Take over what is new, new runs included.

        Raises:
            UserError: the cache cannot be written.
        """
        for name, paths in event_files.find(self.root).items() if self._ours else ():
            if name not in self._runs:
                taken = {run.folder.path.name for run in self._runs.values()}
                shown = self.root.resolve().name if name == "." else name
                self._runs[name] = _Run(self.cache / _file_name(shown, taken), self._report)
            with files.readable_os_errors("convert event files", self.cache):
                self._runs[name].update(paths)

    def follow(self) -> None:
        """Update in a background thread until the program ends, or ``close`` is called."""
        threading.Thread(target=self._follow, name="event files", daemon=True).start()

    def close(self) -> None:
        """Follow no longer, and let another program convert."""
        self._over.set()
        self._held.close()

    def _follow(self) -> None:
        while not self._over.wait(PAUSE_S):
            with contextlib.suppress(UserError):  # a disk that was full may have room again
                self.update()


class _Run:
    """One run: its event files, and the log they become."""

    def __init__(self, path: Path, report: Callable[[str], None]) -> None:
        self.folder = RunFolder(path)
        self.newest = 0.0
        self._report = report
        self._files = event_files.RunFiles()
        self._log: _Log | None = None
        self._seen: object = None
        self._settled = False

    def update(self, paths: list[Path]) -> None:
        """Bring the log up to date; files that have not changed since an earlier program cost
        nothing."""
        about = event_files.signature(paths)
        self.newest = max((change for _, change in about.values()), default=0)
        if self._seen is None and _stamp(self.folder) == [_VERSION, about]:
            self._seen, self._settled = about, True
        if about == self._seen and self._settled:
            return
        self._settled = about == self._seen
        self._seen = about
        self._files.read(paths)
        if self._log is None or not self._log.append(self._files, self._settled):
            problems = self._files.problems
            for text in problems if self._log is None else ():
                self._report(text)
            self._log = _Log(self.folder, self._files, str(paths[0].parent), problems)
        if event_files.signature(paths) == about:
            files.write_json(self.folder.path / _STAMP, [_VERSION, about])


def _stamp(folder: RunFolder) -> object:
    path = folder.path / _STAMP
    try:
        found = foreign_files.read_json(path) if foreign_files.present(folder.events) else None
    except UserError:
        return None
    return found


class _Log:
    """``events.jsonl`` of one run, written as a whole and then appended to."""

    def __init__(
        self, folder: RunFolder, source: event_files.RunFiles, place: str, problems: list[str]
    ) -> None:
        self._folder = folder
        self._metrics = tags.metrics(source.series)
        self._alone = _alone(self._metrics, source)
        self._tags, self._voided = len(source.series), source.voided
        self._sent: dict[str, int] = {}
        self._last_step, self._last_time, self._last_loss_step = -1, math.nan, 0
        self._tokens, self._best = 0, math.inf
        first = min((s.times[0] for s in source.series.values() if len(s)), default=time.time())
        begin = events.RunStarted(time=first, name=printable(folder.name, keep=""))
        texts = [(f"from event files of TensorBoard in {place}", "info")]
        texts += [(text, "info") for text in self._told()]
        texts += [(text, "warning") for text in problems]
        notes = [events.Note(time=first, message=printable(t), level=level) for t, level in texts]
        lines = (events.encode(e) + "\n" for e in (begin, *notes, *self._new(source, whole=True)))
        files.write_text(folder.events, "".join(lines))

    def _told(self) -> list[str]:
        """Which tag is which metric, in a sentence."""
        pairs = [f"{metric} is {tag}" for metric, tag in self._metrics.items() if metric != tag]
        return [", ".join(pairs)] if pairs else []

    def append(self, source: event_files.RunFiles, settled: bool) -> bool:
        """Append what is new; false if the log no longer holds and must be written anew.

        Args:
            source: what was read.
            settled: no file grows; else the newest step waits for the rest of its values.
        """
        if source.voided != self._voided or len(source.series) != self._tags:
            return False
        if any(
            len(s) > self._sent.get(tag, 0) and s.steps[self._sent.get(tag, 0)] <= self._last_step
            for tag, s in source.series.items()
        ):
            return False
        found = list(self._new(source, whole=settled))
        if self._alone != _alone(self._metrics, source):
            return False
        with EventWriter(self._folder.events) as write:
            for event in found:
                write(event)
        return True

    def _new(self, source: event_files.RunFiles, *, whole: bool) -> Iterator[events.Event]:
        """The events of values that were not sent yet, by step."""
        rows: dict[int, dict[str, tuple[float, float]]] = {}
        for tag, series in source.series.items():
            for n in range(self._sent.get(tag, 0), len(series)):
                rows.setdefault(series.steps[n], {})[tag] = series.times[n], series.values[n]
        steps = sorted(rows) if whole else sorted(rows)[:-1]
        later: list[events.Scalars] = []
        for number, step in enumerate(steps, 1):
            row = rows.pop(step)
            for tag in row:
                self._sent[tag] = self._sent.get(tag, 0) + 1
            for event in self._of_step(step, row):
                if isinstance(event, events.Scalars):
                    later.append(event)
                else:
                    yield event
            self._last_step = step
            if number % _BLOCK == 0 or number == len(steps):
                yield from later
                later = []

    def _of_step(self, step: int, row: dict[str, tuple[float, float]]) -> Iterator[events.Event]:
        known = {m: row[tag][1] for m, tag in self._metrics.items() if tag in row}
        if "loss" in known:
            yield self._step(step, row[self._metrics["loss"]][0], known)
        layers: dict[str, list[float]] = {}
        others = {}
        for tag, (at, value) in row.items():
            place = tags.layer(tag)
            if place and place[1] < _MOST_LAYERS:
                stat = layers.setdefault(place[0], [])
                stat += [math.nan] * (place[1] + 1 - len(stat))
                stat[place[1]] = value
                measured = at
            elif tag in self._alone:
                others[tag] = value
                told = at
        if layers:
            yield events.Layers(time=measured, step=step, stats=layers)
        if others:
            yield events.Scalars(time=told, step=step, values=others)
        if "val_loss" in known:
            yield self._eval(step, row[self._metrics["val_loss"]][0], known)

    def _step(self, step: int, at: float, known: dict[str, float]) -> events.Step:
        tokens = known.get("tokens", math.nan)
        self._tokens = int(tokens) if 0 <= tokens < 2**53 else self._tokens
        before, self._last_time = self._last_time, at
        seconds = (at - before) / max(1, step - self._last_loss_step) if before < at else 0.0
        self._last_loss_step = step
        return events.Step(
            time=at, step=step, loss=known["loss"], lr=known.get("lr"),
            grad_norm=known.get("grad_norm"), tokens=self._tokens,
            tokens_per_s=known.get("tokens_per_s"), step_s=seconds,
        )  # fmt: skip

    def _eval(self, step: int, at: float, known: dict[str, float]) -> events.Eval:
        loss = known["val_loss"]
        best = loss < self._best
        self._best = min(self._best, loss) if math.isfinite(loss) else self._best
        return events.Eval(
            time=at, step=step, val_loss=loss, bits_per_byte=known.get("bits_per_byte"), best=best
        )


def _alone(metrics: dict[str, str], source: event_files.RunFiles) -> set[str]:
    """Tags that become scalars: those of no metric, and those with values at other steps than it.

    Steps and evaluations exist where their losses were logged.
    """
    found = set(source.series)
    for metric, tag in metrics.items():
        loss = metrics.get("val_loss" if metric in ("val_loss", "bits_per_byte") else "loss")
        if loss and _covers(source.series[loss].steps, source.series[tag].steps):
            found.discard(tag)
    return found


def _covers(steps: Iterable[int], some: Iterable[int]) -> bool:
    return steps is some or set(some) <= set(steps)


def _file_name(name: str, taken: set[str]) -> str:
    """A folder's name for a run: its path in one word, different from those taken."""
    word = _UNFIT.sub("-", name).strip(" .-~")[:150] or "run"
    numbered = (word if n == 1 else f"{word}-{n}" for n in range(1, len(taken) + 2))
    return next(found for found in numbered if found not in taken)
