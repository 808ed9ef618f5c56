"""The last gate of the dashboard: no character leaves it that could steer a terminal."""

from __future__ import annotations

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from nanogpt_cli.printable import printable


class Harmless(LineFilter):
    """Puts a dot, as wide as it, in the place of each control character.

    What enters a view is printable already (``RunView.fold``); this keeps every line, picture and
    export so whatever a widget is given, and its width as Textual has measured it.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002
        """The same segments, harmless."""
        if all(segment.control or segment.text.isprintable() for segment in segments):
            return segments
        return [s if s.control else Segment(_dotted(s.text), s.style) for s in segments]


def _dotted(text: str) -> str:
    return printable(text, "", lambda character: "·" * cell_len(character))
