"""An SVG of a screen, which looks the same in every viewer.

Every cell has its place whatever the viewer's font is: braille, blocks and lines are drawn as
shapes, and each word of text begins where its first cell lies.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from rich.cells import cell_len
from rich.color import blend_rgb
from rich.color_triplet import ColorTriplet
from rich.segment import Segment
from rich.style import Style
from rich.terminal_theme import SVG_EXPORT_THEME as THEME

_W, _H, _SIZE = 8.4, 17.0, 14  # a cell and its font, whose glyphs are 0.6 of the size wide
_MARGIN, _TOP = 8.0, 30.0
_FONTS = "'DejaVu Sans Mono', Menlo, Consolas, 'Liberation Mono', monospace"
# The arms of line characters: left, right, up, down.
_LINES = {
    **dict.fromkeys("─━╌┅", "lr"), **dict.fromkeys("│┃", "ud"), "┤": "lud", "├": "rud", "┼": "lrud",
    **dict.fromkeys("╭┌", "rd"), **dict.fromkeys("╮┐", "ld"), **dict.fromkeys("╰└", "ru"),
    **dict.fromkeys("╯┘", "lu"),
}  # fmt: skip
_SHADES = {"░": 0.25, "▒": 0.5, "▓": 0.75}
_WORDS = re.compile(r"[!-~]+|[^\s]")  # ASCII words, whose width is sure, and single characters


def svg(lines: Sequence[Sequence[Segment]], width: int, title: str) -> str:
    """An SVG of lines of segments, ``width`` cells wide; the same content gives the same bytes."""
    shapes: dict[str, list[str]] = defaultdict(list)  # path data by its attributes, in order
    ground: dict[str, list[str]] = defaultdict(list)
    words: list[str] = []
    for row, line in enumerate(lines):
        column = 0
        for text, style, control in line:
            if control:
                continue
            ink, paper = _colours(style or Style())
            size = cell_len(text)
            if paper != _hex(THEME.background_color):
                ground[paper].append(_rectangle(column, row, size, 0, 1))
            for offset, piece in _pieces(text):
                place = column + offset
                shape = _shape(piece, place, row)
                if shape is None:
                    words.append(_word(piece, place, row, ink, bool(style and style.bold)))
                else:
                    shapes[shape[0].format(ink)].append(shape[1])
            column += size
    body = [
        f'<path fill="{paper}" shape-rendering="crispEdges" d="{"".join(parts)}"/>'
        for paper, parts in ground.items()
    ]
    body += [f'<path {look} d="{"".join(parts)}"/>' for look, parts in shapes.items()]
    return _document(body + words, width, len(lines), title)


def _document(body: list[str], width: int, height: int, title: str) -> str:
    w, h = 2 * _MARGIN + width * _W, _TOP + height * _H + _MARGIN
    middle, name = f"{w / 2:g}", escape(title)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w:g} {h:g}" width="{w:g}" '
        f'height="{h:g}" role="img" font-family="{_FONTS}" font-size="{_SIZE}">'
    )
    frame = (
        f'<title>{name}</title><rect width="{w:g}" height="{h:g}" rx="8" '
        f'fill="{_hex(THEME.background_color)}"/><text x="{middle}" y="20" text-anchor="middle" '
        f'fill="{_hex(THEME.foreground_color)}">{name}</text>'
    )
    group = f'<g transform="translate({_MARGIN:g} {_TOP:g})">'
    return "\n".join([head, frame, group, *body, "</g>", "</svg>", ""])


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """(first cell, piece) of all words, and of the characters that are shapes or not ASCII."""
    for found in _WORDS.finditer(text):
        yield cell_len(text[: found.start()]), found.group()


def _word(text: str, column: int, row: int, ink: str, bold: bool) -> str:
    x, y = column * _W, row * _H + 0.77 * _H
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.4g}" y="{y:.5g}" fill="{ink}"{weight}>{escape(text)}</text>'


def _shape(piece: str, column: int, row: int) -> tuple[str, str] | None:
    """(attributes with a place for the colour, path data) of a character that is a shape."""
    if len(piece) > 1:
        return None
    code, fill = ord(piece), 'fill="{}"'
    if 0x2800 <= code <= 0x28FF:
        return fill, "".join(_dots(code - 0x2800, column, row))
    if 0x2581 <= code <= 0x2588:  # lower eighths
        return fill, _rectangle(column, row, 1, 1 - (code - 0x2580) / 8, 1)
    if piece == "▀":
        return fill, _rectangle(column, row, 1, 0, 0.5)
    if piece in _SHADES:
        return f'{fill} fill-opacity="{_SHADES[piece]}"', _rectangle(column, row, 1, 0, 1)
    if piece in _LINES:
        x, y = (column + 0.5) * _W, (row + 0.5) * _H
        half, tall = f"{_W / 2:g}", f"{_H / 2:g}"
        ends = {"l": f"h-{half}", "r": f"h{half}", "u": f"v-{tall}", "d": f"v{tall}"}
        thick = 2.4 if piece in "━┃┅" else 1.2
        dashes = ' stroke-dasharray="2.8 1.4"' if piece in "╌┅" else ""
        path = "".join(f"M{x:.5g} {y:.5g}{ends[arm]}" for arm in _LINES[piece])
        return f'fill="none" stroke="{{}}" stroke-width="{thick}"{dashes}', path
    return None


def _dots(bits: int, column: int, row: int) -> Iterator[str]:
    """The dots of a braille cell (Unicode chapter 21.1)."""
    for bit, (x, y) in enumerate(((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3))):
        if bits >> bit & 1:
            left, top = (column + 0.25 + 0.5 * x) * _W - 1.2, (row + (2 * y + 1) / 8) * _H - 1.2
            yield f"M{left:.5g} {top:.5g}h2.4v2.4h-2.4z"


def _rectangle(column: int, row: int, cells: int, top: float, bottom: float) -> str:
    """Path data of a part of some cells, from ``top`` to ``bottom`` (0 is the upper edge)."""
    x, y, w, h = column * _W, (row + top) * _H, cells * _W, (bottom - top) * _H
    return f"M{x:.5g} {y:.5g}h{w:.5g}v{h:.5g}h{-w:.5g}z"


def _colours(style: Style) -> tuple[str, str]:
    """The colours of text and ground."""
    ink = style.color.get_truecolor(THEME) if style.color else THEME.foreground_color
    paper = THEME.background_color
    if style.bgcolor and not style.bgcolor.is_default:
        paper = style.bgcolor.get_truecolor(THEME, foreground=False)
    if style.color and style.color.is_default:
        ink = THEME.foreground_color
    if style.reverse:
        ink, paper = paper, ink
    if style.dim:
        ink = blend_rgb(ink, paper, 0.4)
    return _hex(ink), _hex(paper)


def _hex(color: ColorTriplet) -> str:
    return color.hex
