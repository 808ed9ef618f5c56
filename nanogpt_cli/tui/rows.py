"""RowsWidget: shows rows of styled text and repaints only the lines that changed."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from nanogpt_cli.printable import printable
from nanogpt_cli.tui import palette
from nanogpt_cli.tui.plot import Row

_Look = tuple[int, Style, bool]  # width, ground, whether the theme is dark
# Replacements for --ascii, one character for one, so that the layout stays the same.
_ASCII = str.maketrans("─━│┤╌┅×·–…▲✖●○■◆▼★✓←→↓↑≤█▓▒░", "--|+-.x.-~!x*o#o!*v<>v^<#%+.")


class RowsWidget(Widget):
    """A pane whose content is computed elsewhere, as rows of ``(text, colour key)``.

    Every segment has a style, because Textual's monochrome filter fails on ``None``. Every strip
    has exactly the pane's width, because another width would shift its neighbours.
    """

    DEFAULT_CSS = "RowsWidget { width: 1fr; height: 1fr; }"

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._rows: list[Row] = []
        self._strips: dict[int, Strip] = {}
        self._look: _Look | None = None
        self._titles = "", ""

    @property
    def dark(self) -> bool:
        """Whether the theme has a dark background."""
        return self.app.current_theme.dark

    def set_rows(self, rows: Sequence[Row]) -> None:
        """Show ``rows``, repainting the lines that changed."""
        old, self._rows = self._rows, list(rows)
        changed = [
            y
            for y in range(max(len(old), len(self._rows)))
            if (old[y] if y < len(old) else None)
            != (self._rows[y] if y < len(self._rows) else None)
        ]
        if not changed:
            return
        for y in changed:
            self._strips.pop(y, None)
        width = self.size.width
        if len(changed) > 0.7 * max(1, self.size.height):
            self.refresh()
        else:
            self.refresh(*(Region(0, y, width, 1) for y in changed))

    def set_title(self, title: str, subtitle: str = "") -> None:
        """Set the border texts; they are restyled only if they change."""
        titles = self._plain(printable(title)), self._plain(printable(subtitle))
        if titles != self._titles:
            self._titles = titles
            # As Text: Textual takes a bare string for markup.
            self.border_title, self.border_subtitle = map(Text, titles)

    def on_resize(self) -> None:
        """Request a new drawing, because the rows were made for another size."""
        request = getattr(self.app, "request_draw", None)
        if request is not None:
            request()

    def text(self) -> str:
        """The shown text, without colours."""
        return "\n".join("".join(piece for piece, _ in row) for row in self._rows)

    def render_lines(self, crop: Region) -> list[Strip]:
        """The strips inside ``crop``. What all lines have in common is looked up once for them."""
        self._renew_look()
        return super().render_lines(crop)

    def _renew_look(self) -> _Look:
        look = (self.size.width, self.rich_style, self.dark)
        if look != self._look:
            self._strips.clear()
            self._look = look
        return look

    def render_line(self, y: int) -> Strip:
        """The strip of one line."""
        strip = self._strips.get(y)
        if strip is None:
            row = self._rows[y] if y < len(self._rows) else []
            strip = self._strips[y] = self._strip(row)
        return strip

    def _plain(self, text: str) -> str:
        return text.translate(_ASCII) if getattr(self.app, "ascii_only", False) else text

    def _strip(self, row: Row) -> Strip:
        width, ground, dark = self._look or self._renew_look()
        row = [(self._plain(text), key) for text, key in row]
        segments = [Segment(text, ground + palette.style(key, dark)) for text, key in row if text]
        strip = Strip(segments, sum(cell_len(text) for text, _ in row))
        return strip.adjust_cell_length(width, ground)
