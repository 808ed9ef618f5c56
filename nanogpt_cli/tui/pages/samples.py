"""Page 4: samples that the model wrote during training, side by side."""

from __future__ import annotations

import difflib
import re

from textual.app import ComposeResult
from textual.widget import Widget

from nanogpt_cli.run.events import Sample
from nanogpt_cli.tui.desk import Desk
from nanogpt_cli.tui.drawing.plot import Row
from nanogpt_cli.tui.pages.page import Across, Page
from nanogpt_cli.tui.widgets.panes import Pane, printable, sample_rows, table, wrap


class SamplesPage(Page):
    """A list of samples, the chosen one, and the one before it from the same prompt."""

    def __init__(self, desk: Desk, id: str) -> None:
        super().__init__(desk, id)
        self.chosen: int | None = None  # None: the newest
        self.differences = False

    def compose(self) -> ComposeResult:
        """Yield the list, the earlier text and the chosen text."""
        with Across():
            yield Pane(id="list")
            yield Pane(id="before")
            yield Pane(id="chosen")

    def first_focus(self) -> Widget | None:
        """The list."""
        return self.query_one("#list")

    def update(self, slow: bool = True) -> None:  # noqa: ARG002
        """Draw the three panes."""
        samples = list(self.desk.view.samples)
        listing, before, chosen = (
            self.query_one(f"#{n}", Pane) for n in ("list", "before", "chosen")
        )
        if not samples:
            listing.empty("none yet", "samples")
            before.empty("", "earlier")
            chosen.empty("the model has not written anything yet; g writes from a prompt", "sample")
            return
        index = self._index(len(samples))
        self._draw_list(listing, samples, index)
        sample = samples[index]
        earlier = next((s for s in reversed(samples[:index]) if s.prompt == sample.prompt), None)
        self._draw_text(chosen, sample, earlier)
        if earlier is None:
            before.empty("no earlier sample from this prompt", "earlier")
        else:
            self._draw_text(before, earlier, None)

    def _index(self, count: int) -> int:
        return count - 1 if self.chosen is None else min(max(self.chosen, 0), count - 1)

    def _draw_list(self, pane: Pane, samples: list[Sample], index: int) -> None:
        lines = [(f"{s.step:,}", printable(" ".join(s.text.split()))) for s in samples]
        room = max(1, pane.size.height - 1)
        first = max(0, min(index - room // 2, len(lines) - room))
        pane.set_rows(
            table(("step", "text"), lines[first : first + room], index - first, pane.size.width)
        )
        pane.set_title(f"samples ─ {index + 1} of {len(samples)}")

    def _draw_text(self, pane: Pane, sample: Sample, earlier: Sample | None) -> None:
        width, height = pane.size.width, pane.size.height
        if self.differences and earlier is not None:
            rows = difference_rows(earlier, sample, width)
        else:
            rows = sample_rows(sample.prompt, sample.text, width, height)
        pane.set_rows(rows[:height])
        note = " ─ new words marked" if self.differences and earlier is not None else ""
        pane.set_title(f"step {sample.step:,}{note}", f"temperature {sample.temperature:g}")

    def row(self, step: int) -> None:
        """Choose the next or previous sample."""
        count = len(self.desk.view.samples)
        if count:
            index = min(max(self._index(count) + step, 0), count - 1)
            self.chosen = None if index == count - 1 else index

    turn = row

    def alternate(self) -> None:
        """Mark or unmark the words that differ from the earlier sample."""
        self.differences = not self.differences


def difference_rows(earlier: Sample, sample: Sample, width: int) -> list[Row]:
    """The sample with those words marked that the earlier one lacks at that place."""
    old = re.findall(r"\S+", printable(earlier.prompt + earlier.text))
    text = printable(sample.prompt + sample.text)
    words = list(re.finditer(r"\S+", text))
    matcher = difflib.SequenceMatcher(a=old, b=[w.group() for w in words], autojunk=False)
    new: set[int] = set()
    for tag, _, _, start, end in matcher.get_opcodes():
        if tag in ("replace", "insert"):
            new.update(range(start, end))
    rows: list[Row] = []
    count = 0
    for line in wrap(text, max(4, width - 2)):
        row: Row = [(" ", "plain")]
        for piece in re.findall(r"\s+|\S+", line):
            key = "text"
            if not piece.isspace():
                key = "added" if count in new else "dim"
                count += 1
            row.append((piece, key))
        rows.append(row)
    return rows
