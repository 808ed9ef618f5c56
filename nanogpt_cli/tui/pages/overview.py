"""Page 1: loss, speed, layer statistics and the newest sample."""

from __future__ import annotations

from textual.app import ComposeResult

from nanogpt_cli import units
from nanogpt_cli.tui.drawing import heat, traces
from nanogpt_cli.tui.pages.page import Across, Down, Page
from nanogpt_cli.tui.widgets.charts import LineChart
from nanogpt_cli.tui.widgets.panes import HeatPane, SamplePane, SparkStrip


class OverviewPage(Page):
    """The most important charts on one page."""

    def compose(self) -> ComposeResult:
        """Yield charts above, heat map and sample below."""
        with Across(id="top"):
            yield LineChart("loss", id="loss")
            with Down(id="side"):
                yield LineChart("learning rate", id="lr")
                yield LineChart("gradient norm", id="grad")
                yield LineChart("tokens/s", id="speed")
        yield SparkStrip(id="sparks")
        with Across(id="bottom"):
            yield HeatPane(id="heat")
            yield SamplePane(id="sample")

    def update(self, slow: bool = True) -> None:
        """Draw the loss every time, the rest once a second."""
        desk, view = self.desk, self.desk.view
        window, level = desk.window, desk.smoothing
        chart = self.query_one("#loss", LineChart)
        chart.empty = self._why_empty()
        note = f"{traces.smoothing_note(level)} ─ {traces.axis_note(window.axis, window.log)}"
        shown = traces.loss_traces(view, window.axis, level)
        marks = traces.alarm_marks(view, window.axis)
        chart.show(shown, window, note=note, marks=marks)
        if not slow:
            return
        for name, metric, color, note in (
            ("lr", "lr", "lr", traces.latest(view, "lr")),
            ("grad", "grad_norm", "grad", self._clip_note()),
            ("speed", "tokens_per_s", "speed", self._speed_note()),
        ):
            side = self.query_one(f"#{name}", LineChart)
            side.empty = "–"
            found = traces.metric_traces(view, metric, window.axis, level, color)
            side.show(found, window, full=chart.full, note=note)
        if self.query_one("#bottom").display:
            if desk.statistic not in view.layers.names() and view.layers.names():
                desk.statistic = heat.order(view.layers.names())[0]
            self.query_one(HeatPane).draw(desk)
            self.query_one(SamplePane).draw(desk)
        if self.query_one(SparkStrip).display:
            self.query_one(SparkStrip).draw(desk)

    def _why_empty(self) -> str:
        view, session = self.desk.view, self.desk.session
        state = session.state()
        if state.word in ("crashed", "failed", "folder gone"):
            last = [line for line in session.output().splitlines() if line.strip()][-1:]
            return f"{state.word}: {last[0].strip() if last else state.detail} (5 shows more)"
        if session.loading:
            return "reading the log …"
        if state.word in ("idle", "imported"):
            return f"{state.word}: {state.detail}"
        if view.started is None:
            return "waiting for the trainer: it loads, builds and compiles the model first"
        if tags := view.scalars.tags():
            return f"no loss in this log; Compare (3) shows its {len(tags)} metrics, [ ] turns them"
        if not view.started.device:  # converted from another program's log
            return "this log holds no numbers yet (5 shows what is known of it)"
        parameters = f"{units.si(view.started.parameters)} parameters on {view.started.device}"
        return f"{parameters}: the first step is being computed"

    def _clip_note(self) -> str:
        view = self.desk.view
        share = view.steps.clip_share()
        clip = f"clipped {units.percent(share)} · " if share else ""
        return clip + traces.latest(view, "grad_norm") if len(view.steps) else ""

    def _speed_note(self) -> str:
        view = self.desk.view
        mfu = f"MFU {units.percent(view.mfu)} · " if view.mfu else ""
        return mfu + traces.latest(view, "tokens_per_s") if len(view.steps) else ""

    def metric(self, step: int) -> None:
        """Show the heat map's next statistic."""
        self.desk.statistic = next_statistic(self.desk.view.layers.names(), self.desk, step)


def next_statistic(names: list[str], desk: object, step: int) -> str:
    """The statistic ``step`` places after the desk's."""
    current = str(getattr(desk, "statistic", ""))
    ordered = heat.order(names)
    if current not in ordered:
        return ordered[0] if ordered else current
    return ordered[(ordered.index(current) + step) % len(ordered)]
