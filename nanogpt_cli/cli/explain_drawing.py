"""Concept pages of ``nanogpt explain`` on the terminal: text, table, chart and verdicts."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, Final

from nanogpt_cli.cli import console

if TYPE_CHECKING:
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

    out = console.stdout()
    width = min(_WIDEST, out.width)

    def say(*texts: str) -> None:
        for text in texts:
            for line in textwrap.wrap(text, width) or [""]:
                out.print(Text(line))

    out.print(console.styled((page.name, "bold"), f": {page.question}"))
    if page.model:
        out.print(Text(page.model, "dim"))
    for text in page.paragraphs:
        say("", text)
    if page.table:
        say("")
        for i, line in enumerate(_table(page.table, width)):
            out.print(Text(line, "bold" if i == 0 else ""))
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


def _action(text: str, command: str, width: int) -> None:
    if len(text) + len(command) + 2 <= width:
        console.stdout().print(console.styled(f"{text} ", (command, "cyan")))
    else:
        console.stdout().print(console.styled(text))
        console.stdout().print(console.styled("  ", (command, "cyan")))


def _table(rows: tuple[tuple[str, ...], ...], width: int) -> list[str]:
    """Columns as wide as they need; the last one wraps. Columns of numbers end together."""
    columns = list(zip(*rows, strict=True))
    sizes = [max(map(len, column)) for column in columns]
    left = sum(sizes[:-1]) + 2 * (len(sizes) - 1)
    number = [all(cell[:1] in "+-−×0123456789–" for cell in column[1:]) for column in columns]
    lines = []
    for row in rows:
        cells = [f"{cell:>{size}}" if right else f"{cell:<{size}}"
                 for cell, size, right in zip(row[:-1], sizes, number, strict=False)]  # fmt: skip
        last = f"{row[-1]:>{sizes[-1]}}" if number[-1] else row[-1]
        wrapped = textwrap.wrap(last, max(20, width - left), drop_whitespace=not number[-1]) or [""]
        lines.append("  ".join([*cells, wrapped[0]]).rstrip())
        lines += [" " * left + more for more in wrapped[1:]]
    return lines


def _claims(claims: tuple[Claim, ...], language: str, width: int) -> None:
    from rich.text import Text

    words = _VERDICTS[language]
    out, size = console.stdout(), max(map(len, words.values()))
    out.print(Text(_CLAIMS[language], "bold"))
    text_size = max(len(claim.text) for claim in claims)
    margin = size + text_size + 4
    for claim in claims:
        lines = textwrap.wrap(claim.why, max(24, width - margin)) or [""]
        verdict = (f"{words[claim.verdict]:<{size}}", _STYLES[claim.verdict])
        out.print(console.styled(verdict, f"  {claim.text:<{text_size}}  {lines[0]}"))
        for line in lines[1:]:
            out.print(Text(" " * margin + line))


def _draw(picture: Picture, width: int) -> None:
    import numpy as np
    from rich.text import Text

    from nanogpt_cli.tui.plot import PlotOptions, Trace, plot

    plain = not console.draws(sys.stdout)
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
    out = console.stdout()
    out.print(console.styled(*title))
    for row in plot(traces, (0.0, x), width, _HEIGHT, chosen).rows:
        text = Text()
        for piece, key in row:
            text.append(piece, key if key in _COLOURS else "dim" if key == "axis" else "")
        text.rstrip()
        out.print(text)
