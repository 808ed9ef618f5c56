"""Page 7: all runs of a folder, as a list that follows it."""

from __future__ import annotations

import math
import time

from textual.app import ComposeResult
from textual.widget import Widget

from nanogpt_cli.tui.desk import Desk
from nanogpt_cli.tui.pages import runs_table
from nanogpt_cli.tui.pages.page import Page
from nanogpt_cli.tui.widgets.panes import Pane

FASTEST, SLOWEST = 1.0, 5.0  # seconds between two looks at the folder
SHARE = 0.02  # share of one core that looking may use


class RunsPage(Page):
    """The list, and below it what it has no room for of the run under the cursor.

    It looks at the folder by itself, and only while it is in front: the other pages are about runs
    that are open, which the dashboard follows.
    """

    def __init__(self, desk: Desk, id: str) -> None:
        super().__init__(desk, id)
        self._drawn = 0.0
        self._looked = False
        self._spent = time.process_time()

    def compose(self) -> ComposeResult:
        """Yield the list and the details."""
        yield Pane(id="list")
        yield Pane(id="about")

    def on_mount(self) -> None:
        """Begin to follow the folder."""
        if self.desk.live:
            self.set_timer(0.01, self._follow)

    def first_focus(self) -> Widget | None:
        """The list."""
        return self.query_one("#list")

    @property
    def filter(self) -> str:  # type: ignore[override]
        """The query that the runs match."""
        return self.desk.workspace.filter

    def set_filter(self, pattern: str) -> None:
        """List only the runs that match a query.

        Raises:
            UserError: it is no query.
        """
        self.desk.workspace.set_filter(pattern)

    def _follow(self) -> None:
        """Look at the folder if this page is in front, and look again after a while."""
        pause, workspace = 0.2, self.desk.workspace
        if self.app.is_running and getattr(self.app, "page", None) is self:
            changed = workspace.look()
            quiet = time.monotonic() - self._drawn
            if not self._looked or (changed and quiet > 0.1) or quiet > FASTEST:
                self._looked = True
                self.app.draw(force=True)
            pause = 0.01 if workspace.busy else self._pause()
        self.set_timer(pause, self._follow)

    def _pause(self) -> float:
        """Seconds until the next look, so that this process (not only its looks) stays cheap."""
        now = time.process_time()
        cost, self._spent = now - self._spent, now
        return min(SLOWEST, max(FASTEST, cost / SHARE))

    def update(self, slow: bool = True) -> None:  # noqa: ARG002
        """Draw list and details."""
        workspace = self.desk.workspace
        workspace.visited = True
        if not self._looked and not self.desk.live:
            workspace.look(math.inf)  # a single picture shows all at once
        self._looked, self._drawn = True, time.monotonic()
        pane, about = self.query_one("#list", Pane), self.query_one("#about", Pane)
        entries = workspace.rows()
        if not entries:
            pane.empty(self._why_empty(), "runs")
            about.empty("", "run")
            return
        pane.set_rows(
            runs_table.rows(workspace, entries, pane.size.width, pane.size.height,
                            ascii_only=self.desk.ascii_only)
        )  # fmt: skip
        where = "those named" if workspace.folders else f"{workspace.root.resolve().name}/"
        shown = f"{len(entries)} of {len(workspace.entries)}"
        pane.set_title(f"runs ─ {where}", f"{shown} ─ enter opens, space selects, / filters")
        entry = workspace.entry()
        if entry is not None:
            about.set_rows(runs_table.about(entry, about.size.width, workspace.clock()))
            about.set_title(entry.name)

    def _why_empty(self) -> str:
        workspace = self.desk.workspace
        if not workspace.entries and workspace.busy:
            return "reading …"
        if workspace.problem:
            return workspace.problem
        if workspace.filter:
            return f"no run matches {workspace.filter}; esc shows all"
        if workspace.entries:
            return "all runs are hidden; H shows them"
        return f"no run in {workspace.root}/ yet; nanogpt train small begins one"

    def row(self, step: int) -> None:
        """Next or previous run."""
        self.desk.workspace.move(step)

    def screenful(self, step: int) -> None:
        """A screen of runs further."""
        self.row(step * max(1, self.query_one("#list", Pane).size.height - 2))

    def open(self) -> None:
        """Bring the run to the front."""
        entry = self.desk.workspace.entry()
        if entry is not None:
            self.desk.bring(entry.path)
            self.app.action_page("overview")  # type: ignore[attr-defined]
