"""The last filter of the dashboard's output, which lets no control character through."""

from __future__ import annotations

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from nanogpt_cli.printable import printable


class Harmless(LineFilter):
    """Replaces each control character by dots of the same width.

    Texts in a view are printable already (``RunView.fold``). This filter guarantees it for every
    line, picture and export, whatever a widget is given, and keeps the width that Textual measured.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002
        """The same segments without control characters."""
        if all(segment.control or segment.text.isprintable() for segment in segments):
            return segments
        return [s if s.control else Segment(_dotted(s.text), s.style) for s in segments]


def _dotted(text: str) -> str:
    return printable(text, "", lambda character: "·" * cell_len(character))
