"""``nanogpt docs``: the manual, page by page, in the terminal."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanogpt_cli import places
from nanogpt_cli.cli import console, help_page, lazy, options
from nanogpt_cli.errors import UserError, nearest

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(docs)


def docs(
    topic: Annotated[
        str, typer.Argument(metavar="TOPIC", help="The page to read; without it, a list of pages.")
    ] = "",
    as_json: options.AsJson = False,
) -> None:
    """Read the manual: a list of its pages, or one of them.

    On a terminal a page that is longer than the screen opens in a pager. Into a pipe it is written
    as Markdown.
    """
    pages = {path.stem: path for path in sorted(places.docs_folder().glob("*.md"))}
    if topic and topic not in pages:
        _refuse(topic, list(pages))
    if as_json:
        console.emit_json({"pages": [_facts(path, topic) for path in _chosen(pages, topic)]})
    elif topic:
        _show(pages[topic].read_text(encoding="utf-8"))
    else:
        _list(pages)
    console.next_command("nanogpt docs" if topic else "nanogpt docs first-hour")


def _chosen(pages: dict[str, Path], topic: str) -> list[Path]:
    return [pages[topic]] if topic else list(pages.values())


def _refuse(topic: str, known: list[str]) -> None:
    near = nearest(topic, known)
    hint = f"did you mean {near}? " if near else ""
    if topic in lazy.TABLE:
        hint = f"nanogpt {topic} --help describes the command. "
    raise UserError(f"the manual has no page {topic!r}", f"{hint}pages: {', '.join(known)}")


def _facts(path: Path, topic: str) -> dict[str, Any]:
    """A page's facts for JSON, with its text if the page was named."""
    text = path.read_text(encoding="utf-8")
    facts = {"topic": path.stem, "title": title(text), "path": str(path)}
    return facts | {"text": text} if topic else facts


def title(text: str) -> str:
    """The heading at the start of a page, as plain text."""
    return text.partition("\n")[0].removeprefix("# ").replace("`", "")


def _list(pages: dict[str, Path]) -> None:
    rows = [(topic, title(path.read_text(encoding="utf-8"))) for topic, path in pages.items()]
    typer.echo("\n".join(help_page.columns(rows, help_page.terminal_width())))


def _show(text: str) -> None:
    """Render a page on a terminal, in a pager if it is long; elsewhere write the Markdown."""
    if not sys.stdout.isatty():
        typer.echo(text, nl=False)
        return
    import pydoc

    drawn = drawing(text)
    if drawn.count("\n") < console.stdout().height:
        typer.echo(drawn, nl=False)
        return
    # -R passes colours on, -S cuts lines that are wider than the screen instead of folding them.
    os.environ.setdefault("LESS", "-RS")
    pydoc.pager(drawn)


def drawing(text: str) -> str:
    """A page rendered for the terminal, with the escape codes that it understands."""
    from rich.markdown import CodeBlock, Markdown
    from rich.text import Text
    from rich.theme import Theme

    class Verbatim(CodeBlock):
        """A code block without line folding and background."""

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            del console, options
            yield Text(str(self.text).rstrip(), style="cyan", no_wrap=True, overflow="ignore")

    class Page(Markdown):
        elements = Markdown.elements | {"fence": Verbatim, "code_block": Verbatim}

    screen = console.stdout()
    plain = Theme({"markdown.code": "bold cyan"})  # Rich's own has a black background
    with screen.capture() as captured, screen.use_theme(plain):
        page = Page(_for_terminal(text), hyperlinks=False)
        screen.print(page, width=min(100, screen.width), crop=False)
    return captured.get()


def _for_terminal(text: str) -> str:
    """Replace links between pages by the command that opens them, and pictures by their text."""
    text = re.sub(r"!\[([^\]]*)\]\([^)]*\)", r"*(picture: \1)*", text)
    return re.sub(r"\[([^\]]*)\]\((\w[\w-]*)\.md(?:#[\w-]*)?\)", r"\1 (`nanogpt docs \2`)", text)
