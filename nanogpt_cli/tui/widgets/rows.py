"""RowsWidget: shows rows of styled text and repaints only the lines that changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.content import Content
from textual.dom import DOMNode
from textual.filter import LineFilter
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from nanogpt_cli.printable import printable
from nanogpt_cli.tui.drawing import palette
from nanogpt_cli.tui.drawing.plot import Row

# Replacements for --ascii, one character for one, so that the layout stays the same.
_ASCII = str.maketrans("─━│┤╌┅×·–…▲✖●○■◆▼★✓←→↓↑≤█▓▒░", "--|+-.x.-~!x*o#o!*v<>v^<#%+.")


class KeepsSize(Widget):
    """A widget that knows its size as soon as its page is chosen, not only once it is laid out.

    The size is that of the last time, so that a page which was open before is drawn before it is
    laid out, and its first frame is complete. Should the size have changed, it is drawn again.
    """

    _made_for: Size | None = None  # the size that the content was made for

    @property
    def shown(self) -> bool:
        """Whether it is displayed, and all that it is in."""
        node: DOMNode | None = self
        while node is not None:
            if node.styles.display == "none":
                return False
            node = node.parent
        return True

    @property
    def size(self) -> Size:
        """The size of the content; 0 if the widget, or one around it, is not displayed."""
        if not self.shown:
            return Size(0, 0)
        return self.outer_size - self.styles.gutter.totals

    def on_resize(self) -> None:
        """Request a new drawing if the last one was for another size."""
        request = getattr(self.app, "request_draw", None)
        if request is not None and self.size and self.size != self._made_for:
            request()


@dataclass(eq=False)
class _Look:
    """What all lines of a widget have in common.

    ``left`` and ``right`` are the border's parts of a line.
    """

    outer: Size
    inner: Size
    top: int  # lines above the content
    theme: str
    dark: bool
    filters: Sequence[LineFilter]
    ground: Style
    background: Color
    left: list[Segment] = field(default_factory=list)
    right: list[Segment] = field(default_factory=list)
    # By place, of the lines with a title: first cell, edge, style of the title, last cell.
    titled: dict[int, tuple[Segment, Segment, Style, Segment]] = field(default_factory=dict)
    styles: dict[str, Style] = field(default_factory=dict)  # of colour keys met so far

    def style(self, key: str) -> Style:
        """The style of a colour key on this ground."""
        found = self.styles.get(key)
        if found is None:
            found = self.styles[key] = self.ground + palette.style(key, self.dark)
        return found


class RowsWidget(KeepsSize):
    """A pane whose content is computed elsewhere, as rows of ``(text, colour key)``.

    Every segment has a style, because Textual's monochrome filter fails on ``None``. Every strip
    has exactly the pane's width, because another width would shift its neighbours.

    Finished lines are kept, with borders and after filters: Textual makes up to five strips of a
    line that has changed, and looks up the style of every line whenever one has.
    """

    DEFAULT_CSS = "RowsWidget { width: 1fr; height: 1fr; }"

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._rows: list[Row] = []
        self._finished: dict[int, Strip] = {}  # lines by their place in the widget
        self._look: _Look | None = None
        self._titles = "", ""
        self._titling: int | None = None  # the place of the title that is being set

    @property
    def dark(self) -> bool:
        """Whether the theme has a dark background."""
        return self.app.current_theme.dark

    def set_rows(self, rows: Sequence[Row]) -> None:
        """Show ``rows``, repainting the lines that changed."""
        old, self._rows = self._rows, list(rows)
        self._made_for = size = self.size
        common = min(len(old), len(self._rows))
        changed = [y for y in range(common) if old[y] != self._rows[y]]
        changed += range(common, max(len(old), len(self._rows)))
        if not changed:
            return
        top = self.styles.gutter.top
        for y in changed:
            self._finished.pop(y + top, None)
        # Neighbours are one region.
        cuts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(changed)) if b > a + 1)]
        blocks = [changed[a:b] for a, b in pairwise([*cuts, len(changed)])]
        self.refresh(*(Region(0, block[0], size.width, len(block)) for block in blocks))

    def set_title(self, title: str, subtitle: str = "") -> None:
        """Set the border texts; they are restyled only if they change."""
        title, subtitle = self._plain(printable(title)), self._plain(printable(subtitle))
        # As Content: Textual takes a bare string for markup.
        if title != self._titles[0]:
            self._titling = 0
            self.border_title = Content(title)
        if subtitle != self._titles[1]:
            self._titling = -1
            self.border_subtitle = Content(subtitle)
        self._titles, self._titling = (title, subtitle), None

    def refresh(
        self,
        *regions: Region,
        repaint: bool = True,
        layout: bool = False,
        recompose: bool = False,
    ) -> Self:
        """Repaint regions; if none are named everything, as it may look different.

        Textual repaints everything for a title, too, which changes the border's lines alone.
        """
        if self._titling is not None:
            regions = (self._border(self._titling),)
        elif repaint and not regions:
            self._look = None
        return super().refresh(*regions, repaint=repaint, layout=layout, recompose=recompose)

    def _border(self, place: int) -> Region:
        """The first line (0) or the last (-1), which is forgotten; relative to the content."""
        width, height = self.outer_size
        y, gutter = place % max(1, height), self.styles.gutter
        self._finished.pop(y, None)
        return Region(-gutter.left, y - gutter.top, width, 1)

    def notify_style_update(self) -> None:
        """Note that everything may look different."""
        super().notify_style_update()
        self._look = None

    def text(self) -> str:
        """The shown text, without colours."""
        return "\n".join("".join(piece for piece, _ in row) for row in self._rows)

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines inside ``crop``, of which only those that changed are made."""
        look, width = self._current_look(), self.outer_size.width
        lines = []
        for y in crop.line_range:
            line = self._finished.get(y)
            if line is None:
                line = self._finished[y] = self._finish(y, look)
            lines.append(line)
        x1, x2 = crop.column_span
        return lines if (x1, x2) == (0, width) else [line.crop(x1, x2) for line in lines]

    def slow_lines(self, crop: Region) -> list[Strip]:
        """The lines inside ``crop`` as Textual makes them: the twin of ``render_lines``."""
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        """A line of the content, without border and filters."""
        look = self._current_look()
        return Strip(self._segments(y, look), look.inner.width)

    def _finish(self, y: int, look: _Look) -> Strip:
        """A finished line, by its place in the widget."""
        if not 0 <= y - look.top < look.inner.height:
            return self._titled(0 if y == 0 else -1, y, look)
        segments = self._segments(y - look.top, look)
        for each in look.filters:
            segments = each.apply(segments, look.background)
        return Strip([*look.left, *segments, *look.right], look.outer.width)

    def _titled(self, place: int, y: int, look: _Look) -> Strip:
        """The first line (0) or the last (-1): that of an earlier title with another text in it."""
        width, title = look.outer.width, self._titles[place]
        size, known = cell_len(title), look.titled.get(place)
        if known and title and size <= width - 6:  # a longer one is shortened
            corner, edge, label, end = known
            text = Segment(f" {title} ", label)
            rest = Segment(edge.text * (width - 5 - size), edge.style)
            middle = [edge, text, rest] if place == 0 else [rest, text, edge]
            return Strip([corner, *middle, end], width)
        line = self.slow_lines(Region(0, y, width, 1))[0]
        found = list(line)
        if len(found) == 5 and title and found[2].text == f" {title} ":
            near = found[1] if place == 0 else found[3]
            if len(near.text) == 1 and found[2].style is not None:
                look.titled[place] = found[0], near, found[2].style, found[4]
        return line

    def _segments(self, y: int, look: _Look) -> list[Segment]:
        row = self._rows[y] if y < len(self._rows) else []
        segments = [Segment(self._plain(text), look.style(key)) for text, key in row if text]
        missing = look.inner.width - sum(cell_len(segment.text) for segment in segments)
        if missing < 0:
            return list(Strip(segments).crop(0, look.inner.width))
        return [*segments, Segment(" " * missing, look.ground)] if missing else segments

    def _current_look(self) -> _Look:
        """The look now; whatever may have changed it has set it to ``None``, but for these."""
        outer, theme, filters = self.outer_size, self.app.theme, self.get_line_filters()
        look = self._look
        if look and (outer, theme, filters) == (look.outer, look.theme, look.filters):
            return look
        self._finished.clear()
        gutter = self.styles.gutter
        self._look = look = _Look(
            outer, outer - gutter.totals, gutter.top, theme, self.dark, filters,
            self.rich_style, self.background_colors[1],
        )  # fmt: skip
        if look.inner.height > 0 and (gutter.left or gutter.right):
            line = self.slow_lines(Region(0, look.top, outer.width, 1))[0]
            look.left = list(line.crop(0, gutter.left))
            look.right = list(line.crop(outer.width - gutter.right))
        return look

    def _plain(self, text: str) -> str:
        return text.translate(_ASCII) if getattr(self.app, "ascii_only", False) else text
