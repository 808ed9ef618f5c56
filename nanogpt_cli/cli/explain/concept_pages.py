"""Concept pages of ``nanogpt explain`` on the terminal: text, table, chart and verdicts."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, Final

from nanogpt_cli.cli import console, help_page
from nanogpt_cli.printable import draws

if TYPE_CHECKING:
    from rich.text import Text

    from nanogpt_cli.explain.concept import Claim, ConceptPage, Picture

_WIDEST: Final = 100
_HEIGHT: Final = 6  # rows of a chart, its axis included
_COLOURS: Final = ("cyan", "yellow", "magenta", "green")
_KINDS: Final = ("line", "dash")
_VERDICTS: Final = {
    "en": {"true": "true", "false": "false", "half true": "half true"},
    "de": {"true": "wahr", "false": "falsch", "half true": "halb wahr"},
}
_STYLES: Final = {"true": "green", "false": "bold red", "half true": "yellow"}
_CLAIMS: Final = {"en": "Often claimed", "de": "Oft behauptet"}


def show(page: ConceptPage) -> None:
    """Print a page, as wide as the terminal up to ``_WIDEST``."""
    from rich.text import Text

    width = min(_WIDEST, help_page.terminal_width())

    def say(*texts: str) -> None:
        for text in texts:
            for line in textwrap.wrap(text, width) or [""]:
                _put(Text(line))

    _put(console.styled((page.name, "bold"), f": {page.question}"))
    if page.model:
        _put(Text(page.model, "dim"))
    for text in page.paragraphs:
        say("", text)
    if page.table:
        say("")
        for i, line in enumerate(_table(page.table, width)):
            _put(Text(line, "bold" if i == 0 else ""))
    if page.picture:
        say("")
        _draw(page.picture, width)
    if page.claims:
        say("")
        _claims(page.claims, page.language, width)
    for text in page.after:
        say("", text)
    say("")
    for action in page.actions:
        _action(action.text, action.command, width)


def _put(text: Text) -> None:
    """Print a line that is as wide as it shall be."""
    console.stdout().print(text, soft_wrap=True)


def _action(text: str, command: str, width: int) -> None:
    if len(text) + len(command) + 2 <= width:
        _put(console.styled(f"{text} ", (command, "cyan")))
    else:
        _put(console.styled(text))
        _put(console.styled("  ", (command, "cyan")))


def _table(rows: tuple[tuple[str, ...], ...], width: int) -> list[str]:
    """Columns as wide as they need, those of numbers ending together.

    A last column of words wraps. Columns of numbers that do not fit follow below, beside the first
    one again.
    """
    columns = list(zip(*rows, strict=True))
    sizes = [max(map(len, column)) for column in columns]
    numbers = [all(cell[:1] in "+-−×∞–0123456789" for cell in column[1:]) for column in columns]
    gap = 2 if sum(sizes) + 2 * (len(sizes) - 1) <= width or not numbers[-1] else 1
    ends = [f"{{:>{size}}}" if right else f"{{:<{size}}}"
            for size, right in zip(sizes, numbers, strict=True)]  # fmt: skip
    if not numbers[-1]:
        left = sum(sizes[:-1]) + gap * (len(sizes) - 1)
        lines = []
        for row in rows:
            first, *more = textwrap.wrap(row[-1], max(20, width - left)) or [""]
            cells = [end.format(cell) for end, cell in zip(ends, row[:-1], strict=False)]
            lines += [(" " * gap).join([*cells, first]).rstrip()]
            lines += [" " * left + line for line in more]
        return lines
    chosen = [[0]]
    for n in range(1, len(columns)):
        taken = sum(sizes[i] + gap for i in chosen[-1]) + sizes[n]
        chosen = [*chosen[:-1], [*chosen[-1], n]] if taken <= width else [*chosen, [0, n]]
    return [
        (" " * gap).join(ends[n].format(row[n]) for n in shown).rstrip()
        for shown in chosen
        for row in rows
    ]


def _claims(claims: tuple[Claim, ...], language: str, width: int) -> None:
    from rich.text import Text

    words = _VERDICTS[language]
    size = max(map(len, words.values()))
    _put(Text(_CLAIMS[language], "bold"))
    text_size = max(len(claim.text) for claim in claims)
    margin = size + text_size + 4
    for claim in claims:
        lines = textwrap.wrap(claim.why, max(24, width - margin)) or [""]
        verdict = (f"{words[claim.verdict]:<{size}}", _STYLES[claim.verdict])
        _put(console.styled(verdict, f"  {claim.text:<{text_size}}  {lines[0]}"))
        for line in lines[1:]:
            _put(Text(" " * margin + line))


def _draw(picture: Picture, width: int) -> None:
    import numpy as np
    from rich.text import Text

    from nanogpt_cli.tui.drawing.plot import PlotOptions, Trace, plot

    plain = not draws(sys.stdout)
    title: list[str | tuple[str, str]] = [picture.title]
    traces = []
    for n, curve in enumerate(picture.curves):
        colour, kind = _COLOURS[n % len(_COLOURS)], _KINDS[min(n, 1)]
        sign = {"line": "*" if plain else "━", "dash": "-" if plain else "╌"}[kind]
        title += ["   ", (f"{sign}{sign} {curve.name}", colour)]
        y = np.asarray(curve.values, dtype=np.float64)
        traces.append(Trace(curve.name, np.arange(len(y), dtype=np.float64), y, colour, kind))
    x = max(1.0, max(len(curve.values) for curve in picture.curves) - 1.0)
    chosen = PlotOptions(log_y=picture.log_y, x_axis=picture.x_axis, ascii_only=plain)
    names = " ".join(curve.name for curve in picture.curves)
    if len(picture.title) + len(names) + 6 * len(picture.curves) > width:
        title[1] = "\n"
    _put(console.styled(*title))
    for row in plot(traces, (0.0, x), width, _HEIGHT, chosen).rows:
        text = Text()
        for piece, key in row:
            text.append(piece, key if key in _COLOURS else "dim" if key == "axis" else "")
        text.rstrip()
        _put(text)
