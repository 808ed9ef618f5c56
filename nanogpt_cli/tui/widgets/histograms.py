"""Histograms per layer, which a run records at its evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nanogpt_cli import units
from nanogpt_cli.tui.desk import Desk
from nanogpt_cli.tui.drawing.draw import sparkline
from nanogpt_cli.tui.drawing.plot import Row
from nanogpt_cli.tui.state.series import Floats
from nanogpt_cli.tui.widgets.panes import Pane


def rebinned(counts: Floats, bins: int) -> Floats:
    """The counts in at most ``bins`` bins, each the sum of neighbouring ones."""
    if len(counts) <= bins:
        return counts
    cuts = np.linspace(0, len(counts), bins + 1).astype(int)[:-1]
    return np.asarray(np.add.reduceat(counts, cuts))


def usable(histogram: Any) -> tuple[Floats, list[Floats]] | None:
    """Edges and counts per layer, or ``None`` if the logged value is no such histogram."""
    try:
        edges = np.array(histogram["edges"], float)
        counts = [np.array(row, float) for row in histogram["counts"]]
    except (TypeError, KeyError, ValueError):
        return None
    fits = all(row.ndim == 1 and len(row) == len(edges) - 1 for row in counts)
    return (edges, counts) if edges.ndim == 1 and len(edges) > 1 and fits and counts else None


class HistogramPane(Pane):
    """Each layer's distribution as a line of bars."""

    def draw(self, desk: Desk, selected: int) -> None:
        """Draw the histograms at or before the crosshair, or else the newest."""
        histograms = desk.view.layers.histograms
        if not histograms:
            self.empty("histograms are taken at evaluations; none yet", "distributions")
            return
        step = self._step(desk, sorted(histograms))
        rows: list[Row] = []
        found: Mapping[str, Any] = histograms[step]
        room = max(1, self.size.height // max(1, len(found)) - 1)
        for name, histogram in found.items():
            if (parts := usable(histogram)) is not None:
                rows += self._rows_of(name, *parts, room, selected, desk.ascii_only)
        self.set_rows(rows)
        self.set_title(f"distributions ─ step {step:,.0f}", "height: log of the count")

    def _step(self, desk: Desk, steps: list[float]) -> float:
        if desk.window.cursor is None:
            return steps[-1]
        axis, cursor = desk.window.axis, desk.window.cursor
        before = [step for step in steps if desk.view.steps.at(axis, step) <= cursor]
        return before[-1] if before else steps[0]

    def _rows_of(
        self, name: str, edges: Floats, counts: list[Floats], room: int, selected: int,
        ascii_only: bool,
    ) -> list[Row]:  # fmt: skip
        width = max(8, self.size.width - 8)
        low, high = units.number(float(edges[0]), 3), units.number(float(edges[-1]), 3)
        gap = " " * max(1, width - len(low) - len(high) - len(name) - 2)
        rows: list[Row] = [[(f" {name}  ", "title"), (f"{low}{gap}{high}", "axis")]]
        first = max(0, min(selected - room // 2, len(counts) - room))
        for layer in range(first, min(len(counts), first + room)):
            bars = sparkline(np.log1p(rebinned(counts[layer], width)), width, ascii_only=ascii_only)
            key = "select" if layer == selected else "axis"
            rows.append([(f" h.{layer}".ljust(6), key), (bars, "train")])
        return rows
