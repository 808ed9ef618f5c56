"""The actions of the list of runs, and the choice of Compare's metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.cells import cell_len

from nanogpt_cli import units
from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import printable
from nanogpt_cli.run import notes, removal
from nanogpt_cli.tui.dialogs import Ask, Destroy
from nanogpt_cli.tui.pages.compare import ComparePage
from nanogpt_cli.tui.pages.runs import RunsPage
from nanogpt_cli.tui.state.entries import Entry
from nanogpt_cli.tui.trainer_actions import TrainerActions


class RunActions(TrainerActions):
    """What the keys of page Runs do; see ``tui/keys.py``."""

    def action_leave(self) -> None:
        """Go back; where nothing is open on the page, to the list that the run was opened from."""
        page, opened = self.page, self.screen.maximized is not None
        if page.id == "runs" or opened or not self.desk.workspace.visited:
            super().action_leave()
        elif page.back():
            self.call_after_refresh(self.draw, True)
        elif page.filter or self.desk.window.cursor is not None:
            super().action_leave()
        else:
            self.action_page("runs")

    async def action_filter(self) -> None:
        """Ask for a filter; that of the list of runs is a query, checked as it is typed."""
        if self.page.id != "runs":
            await super().action_filter()
            return
        workspace = self.desk.workspace

        def judge(text: str) -> tuple[bool, str]:
            try:
                found = workspace.matching(text)
            except UserError as error:
                return False, ": ".join(filter(None, (error.message, error.hint)))
            return True, f"{found} of {len(workspace.entries)} runs match"

        def take(text: str | None) -> None:
            if text is not None:
                workspace.set_filter(text)
                self._redraw()

        hint = "state:running lr>=1e-3 model.init=gpt2 -note:try tag:baseline"
        await self.push_screen(Ask("filter runs", workspace.filter, hint, judge), take)

    def _on_entry(self, act: Callable[[Entry], Any]) -> None:
        """Do something with the run under the cursor, and say what prevents it."""
        entry = self.desk.workspace.entry()
        if entry is None:
            return
        self.desk.workspace.current = entry.path  # the cursor follows the run, not the row
        try:
            act(entry)
        except UserError as error:
            said = ": ".join(filter(None, (error.message, error.hint)))
            # A path can be longer than the line; which run it is the list shows.
            said = said.replace(str(entry.run.path), entry.name)
            self.notify(said, severity="error", timeout=12)
        self.call_after_refresh(self.draw, True)

    def action_screenful(self, step: int) -> None:
        """A screen of runs down or up."""
        self.query_one(RunsPage).screenful(step)
        self._redraw()

    def action_end(self, step: int) -> None:
        """The last run, or the first."""
        self.desk.workspace.move(step * len(self.desk.workspace.entries))
        self._redraw()

    def action_select(self) -> None:
        """Choose the run for Compare, or no longer, and go to the next row."""
        self._on_entry(self._select)

    def _select(self, entry: Entry) -> None:
        chosen = self.desk.workspace.select(entry)
        (self.desk.keep if chosen else self.desk.drop)(entry.path)
        self.desk.workspace.move(1)
        self.look_now()

    def action_sort(self, step: int) -> None:
        """Order the list by the next column, or the one before."""
        self.desk.workspace.next_sort(step)
        self._redraw()

    def action_reverse(self) -> None:
        """Turn the order of the list round."""
        self.desk.workspace.reverse = not self.desk.workspace.reverse
        self._redraw()

    def action_pin(self) -> None:
        """Keep the run at the top, or no longer."""
        self._on_entry(lambda e: self.desk.workspace.change(e, pinned=not e.notes.pinned))

    def action_tint(self) -> None:
        """Give the run the next colour, after the last one none."""

        def act(entry: Entry) -> None:
            old = entry.notes.color
            new = 0 if old is None else old + 1 if old + 1 < notes.COLORS else None
            self.desk.workspace.change(entry, color=new)

        self._on_entry(act)

    def action_hide(self) -> None:
        """Leave the run out of the list, or no longer."""

        def act(entry: Entry) -> None:
            workspace = self.desk.workspace
            rows = workspace.rows()
            workspace.change(entry, hidden=not entry.notes.hidden)
            if entry.notes.hidden and not workspace.show_hidden:
                at = rows.index(entry)
                others = [*rows[at + 1 :], *reversed(rows[:at])]
                workspace.current = others[0].path if others else None

        self._on_entry(act)

    def action_show_hidden(self) -> None:
        """List hidden runs too, or no longer."""
        self.desk.workspace.show_hidden = not self.desk.workspace.show_hidden
        self._redraw()

    async def action_note(self) -> None:
        """Ask for the run's note."""
        await self._ask_about(
            "note of", lambda e: e.notes.note, "one line, kept in the run's folder; empty: none",
            lambda _, text: {"note": notes.checked_note(text)},
        )  # fmt: skip

    async def action_tags(self) -> None:
        """Ask for the run's tags."""
        await self._ask_about(
            "tags of", lambda e: " ".join(e.notes.tags), "words: baseline seed-2; empty: none",
            lambda _, text: {"tags": notes.edited_tags((), text)},
        )  # fmt: skip

    async def _ask_about(
        self,
        question: str,
        value: Callable[[Entry], str],
        hint: str,
        changes: Callable[[Entry, str], dict[str, Any]],
    ) -> None:
        workspace = self.desk.workspace
        entry = workspace.entry()
        if entry is None:
            return
        if why_not := workspace.why_unwritten(entry):
            self.notify(why_not, severity="warning")
            return

        def judge(text: str) -> tuple[bool, str]:
            try:
                changes(entry, text)
            except UserError as error:
                return False, f"{error.message}: {error.hint}"
            return True, ""

        def take(text: str | None) -> None:
            if text is not None:
                workspace.current = entry.path
                self._on_entry(lambda entry: workspace.change(entry, **changes(entry, text)))

        title = f"{question} {_brief(entry.name, 36)}"
        await self.push_screen(Ask(title, value(entry), hint, judge), take)

    async def action_delete(self) -> None:
        """Delete the run, after it was checked and the user has agreed."""
        workspace = self.desk.workspace
        if workspace.readonly:
            self.notify("read-only: nothing is deleted", severity="warning")
            return
        entry = workspace.entry()
        self._on_entry(lambda entry: removal.check_removable(entry.run))
        if entry is None or not _removable(entry):
            return

        def answered(yes: bool | None) -> None:
            if yes:
                workspace.current = entry.path
                self._on_entry(self._delete)

        question = f"Delete {_brief(entry.name, 30)} for ever?"
        where = _brief(str(entry.run.path), 90)
        detail = f"{where}: its log, checkpoints, samples and exports."
        await self.push_screen(Destroy(question, detail), answered)

    def _delete(self, entry: Entry) -> None:
        self.desk.workspace.delete(entry)
        self.desk.forget(entry.path)
        self.notify(str(entry.run.path), title="deleted")

    async def action_metrics(self) -> None:
        """Ask which metrics Compare shows."""
        page = self.query_one("#compare", ComparePage)

        def take(text: str | None) -> None:
            if text is not None:
                page.choose(text)
                self._redraw()

        hint = "names or patterns: loss val_loss resid_rms/0; empty: one at a time"
        await self.push_screen(Ask("metrics", " ".join(page.chosen), hint, page.judge), take)


def _brief(text: str, cells: int) -> str:
    """A name that leaves room for a dialog's keys on a small screen, whatever it holds."""
    return units.shortened(printable(text, ""), cells, cell_len)


def _removable(entry: Entry) -> bool:
    try:
        removal.check_removable(entry.run)
    except UserError:
        return False
    return True
