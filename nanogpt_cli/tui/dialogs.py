"""Modal screens: help, a yes-or-no question, a line of text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from nanogpt_cli.printable import printable
from nanogpt_cli.tui import keys, words
from nanogpt_cli.tui.desk import Desk


class HelpScreen(ModalScreen[None]):
    """Explains the words of a page, then every key, from the same table as the bindings."""

    CSS = """
    HelpScreen #dialog { width: auto; height: 90%; padding: 0 1; }
    HelpScreen VerticalScroll { width: 78; max-width: 100%; height: 1fr; }
    """
    BINDINGS: ClassVar[list[Any]] = [
        Binding("escape,q,question_mark", "dismiss", "close"),
        Binding("j,down", "scroll(2)", "down"),
        Binding("k,up", "scroll(-2)", "up"),
    ]

    def __init__(self, page: str, desk: Desk) -> None:
        super().__init__()
        self.page_name = page
        self.desk = desk
        self.readonly = desk.readonly

    def compose(self) -> ComposeResult:
        """Yield the table of keys."""
        with Vertical(id="dialog") as dialog, VerticalScroll():
            dialog.border_title = f"{self.page_name.capitalize()}: words, and keys below"
            dialog.border_subtitle = "j k scroll   esc closes"
            yield Static(self.words())
            yield Static(self.text())

    def words(self) -> Table:
        """The words of the page, and what they mean."""
        table = Table.grid(padding=(0, 2))
        table.add_column(justify="right", max_width=22)
        table.add_column()
        for word, meaning in words.on_page(self.page_name, self.desk.view.layers.names()):
            shown = words.plain(word) if self.desk.ascii_only else word
            table.add_row(Text(shown, style="bold"), Text(meaning))
        return table

    def text(self) -> Table:
        """The keys by group, those of use on the current page first; others are dimmed."""
        table = Table.grid(padding=(0, 2))
        table.add_column(justify="right")
        table.add_column()
        group = ""
        useful = {key.group for key in keys.KEYS if self.page_name in key.pages}
        for key in sorted(keys.KEYS, key=lambda key: key.group not in useful):
            if key.group != group:
                group = key.group
                table.add_row("", Text(f"\n{group}", style="bold"))
            here = keys.offered(key, self.page_name, self.readonly, self.desk.pages)
            shown = ", ".join([key.shown]) + (" =" if key.shown == "+" else "")
            note = "  (read-only)" if key.control and self.readonly else ""
            look = "" if here else "dim"
            table.add_row(Text(shown, style="bold cyan" if here else "dim"),
                          Text(key.label + note, style=look))  # fmt: skip
        table.add_row("", Text("\nThe mouse", style="bold"))
        for shown, meaning in keys.MOUSE:
            table.add_row(Text(shown, style="bold cyan"), Text(meaning))
        return table

    def action_scroll(self, lines: int) -> None:
        """Move by lines."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)


class Confirm(ModalScreen[bool]):
    """A yes-or-no question; only ``y`` and enter mean yes."""

    BINDINGS: ClassVar[list[Any]] = [
        Binding("y,enter", "answer(True)", "yes"),
        Binding("n,escape,q", "answer(False)", "no"),
    ]

    def __init__(self, question: str, detail: str = "") -> None:
        super().__init__()
        self.question, self.detail = printable(question), printable(detail)

    def compose(self) -> ComposeResult:
        """Yield question, consequence and keys."""
        with Vertical(id="dialog"):
            yield Static(Text(self.question, style="bold"))
            if self.detail:
                yield Static(Text(self.detail))
            yield Static(Text("\ny yes    n no", style="dim"))

    def action_answer(self, answer: bool) -> None:
        """Close with the answer."""
        self.dismiss(answer)


class Destroy(Confirm, inherit_bindings=False):
    """A question about what cannot be undone: ``y`` alone means yes."""

    BINDINGS: ClassVar[list[Any]] = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,q,enter", "answer(False)", "no"),
    ]


class Ask(ModalScreen[str | None]):
    """Asks for a line of text; escape gives ``None``.

    ``judge`` says of what is typed whether it is accepted, and a line about it.
    """

    BINDINGS: ClassVar[list[Any]] = [Binding("escape", "dismiss(None)", "cancel")]

    def __init__(
        self,
        question: str,
        value: str = "",
        hint: str = "",
        judge: Callable[[str], tuple[bool, str]] | None = None,
    ) -> None:
        super().__init__()
        self.question, self.hint = printable(question), printable(hint)
        self.value, self.judge = value, judge

    def compose(self) -> ComposeResult:
        """Yield question, input field and keys."""
        with Vertical(id="dialog"):
            yield Static(Text(self.question, style="bold"))
            if self.hint:
                yield Static(Text(self.hint, style="dim"))
            yield Input(value=self.value)
            if self.judge is not None:
                yield Static(id="judged")
            yield Static(Text("\nenter accepts    esc cancels", style="dim"))

    def on_input_changed(self, event: Input.Changed) -> None:
        """Say whether the text is accepted."""
        if self.judge is not None:
            sound, said = self.judge(event.value)
            look = "dim" if sound else "bold red"
            self.query_one("#judged", Static).update(Text(printable(said, ""), style=look))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Close with the text, if it is accepted."""
        if self.judge is None or self.judge(event.value)[0]:
            self.dismiss(event.value)
