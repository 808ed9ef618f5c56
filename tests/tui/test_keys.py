"""Every key on every page, pressed at three sizes; and what the important ones do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import recorded
from helpers import SIZES, dashboard, load, look, opened, press, screen, until

from nanogpt_cli import shell
from nanogpt_cli.run import events
from nanogpt_cli.run.commands import take_commands
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.log import EventWriter
from nanogpt_cli.tui import keys
from nanogpt_cli.tui.app import HELD, Dashboard
from nanogpt_cli.tui.keys import KEYS, PAGES
from nanogpt_cli.tui.pages.logs import detail_rows
from nanogpt_cli.tui.widgets.charts import LineChart
from nanogpt_cli.tui.widgets.panes import Pane

LEAVING = {"Q", "ctrl+c", "q", "ctrl+q"}
# What is the same on all pages is pressed on one of them, turn by turn.
OPENED = [page for page in PAGES if page != "runs"]
EVERYWHERE = [key for key in KEYS if set(key.pages) >= set(OPENED)]


def presses_on(page: str) -> list[str]:
    """The keys to press on a page: those that mean something there, and its share of the rest."""
    mine = [k for k in KEYS if k not in EVERYWHERE and page in k.pages]
    if page in OPENED:
        mine += EVERYWHERE[OPENED.index(page) :: len(OPENED)]
    return [name for key in mine for name in key.keys.split(",") if name not in LEAVING]


# Every key on every page takes ten seconds; snapshots and other tests look at all sizes.
_OFTEN = (80, 24)


@pytest.mark.parametrize(
    "size",
    [s if s == _OFTEN else pytest.param(s, marks=pytest.mark.slow) for s in SIZES],
    ids=str,
)
async def test_every_key_on_every_page_at_every_size(runs: Path, size: tuple[int, int]) -> None:
    async with opened(load(runs / "small-shakespeare", runs / "deep"), size) as pilot:
        app = dashboard(pilot)
        for page in PAGES:
            await pilot.press(keys.number(page))
            await pilot.pause()
            assert app.page.id == page
            for name in presses_on(page):
                await pilot.press(name)
                if len(app.screen_stack) > 1:  # a dialog or the palette
                    await pilot.press("escape")
                if app.page.id != page:
                    await pilot.press(keys.number(page))
            assert app.is_running
            assert len(screen(pilot).splitlines()) == size[1]


def test_every_key_is_pressed_somewhere() -> None:
    pressed = {name for page in PAGES for name in presses_on(page)}
    assert pressed == {name for key in KEYS for name in key.keys.split(",")} - LEAVING


async def test_help_names_every_key(runs: Path) -> None:
    async with opened(load(runs / "small-shakespeare"), (120, 120)) as pilot:
        await press(pilot, "question_mark")
        shown = screen(pilot)
        for key in KEYS:
            assert key.label in shown, key
        await press(pilot, "escape")
        assert "learning rate" in screen(pilot)


def test_every_key_has_an_action_and_a_place_in_the_help() -> None:
    from nanogpt_cli.tui.app import Dashboard

    bound = {name for binding in Dashboard.BINDINGS for name in binding.key.split(",")}
    for key in KEYS:
        action = key.action.partition("(")[0]
        if not action.startswith("app."):
            assert hasattr(Dashboard, f"action_{action}"), key
            assert set(key.keys.split(",")) <= bound
        assert key.label
        assert set(key.pages) <= set(PAGES)
    for page in PAGES:
        # ctrl+c leaves the list, where there is no run in front to be stopped.
        here = [name for key in KEYS if page in key.pages for name in key.keys.split(",")]
        assert len(here) == len(set(here)), "a key is bound twice"


@pytest.mark.parametrize("page", PAGES)
def test_a_key_does_on_a_page_what_the_table_says(page: str) -> None:
    """Several may be bound to it; the first whose action the page knows is called."""
    known = keys.actions_on(page)
    for key in KEYS:
        for name in key.keys.split(",") if page in key.pages else ():
            bound = (k for k in KEYS if name in k.keys.split(","))
            called = next(k for k in bound if k.action.partition("(")[0] in known)
            assert called.action == key.action, key


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("page", PAGES)
def test_footer_fits_and_always_offers_help(page: str, readonly: bool) -> None:
    for width in range(41, 200):
        text = "".join(piece for piece, _ in keys.footer(page, width, readonly))
        assert "? help" in text
        assert "q leave" in text
        assert len(text) <= width


async def test_zoom_pan_fit_follow_and_crosshair(runs: Path) -> None:
    async with opened(load(runs / "small-shakespeare")) as pilot:
        window = dashboard(pilot).desk.window
        await press(pilot, "plus", "plus")
        assert window.low is not None
        assert window.high == pytest.approx(2000)
        before = window.low
        await press(pilot, "h")
        assert window.low < before
        assert not window.follow
        await press(pilot, "f")
        assert window.follow
        assert window.high == pytest.approx(2000)
        await press(pilot, "X", "plus", "h", "L", "L", "H", "H", "f")
        assert window.high == pytest.approx(2000)
        await press(pilot, "X", "0", "c", "H", "h")
        assert window.low is None
        assert window.cursor == pytest.approx(2000 - 11 * 2000 / 74, rel=0.01)
        assert "step 1,7" in screen(pilot)  # the read-out
        await press(pilot, "escape")
        assert window.cursor is None


async def test_axes_and_smoothing(runs: Path) -> None:
    async with opened(load(runs / "small-shakespeare")) as pilot:
        assert "smoothed over 50 steps ─ by step" in screen(pilot)
        await press(pilot, "S", "S")
        assert "smoothed over 2.5 steps ─ by step" in screen(pilot)
        await press(pilot, "x")
        assert "tokens" in screen(pilot).splitlines()[1]
        assert "30M" in screen(pilot)
        await press(pilot, "x")
        assert "2.5m" in screen(pilot)
        await press(pilot, "x")
        assert "FLOPs" in screen(pilot)
        await press(pilot, "x", "X")
        assert "by step, log scale" in screen(pilot)
        await press(pilot, "y")
        assert "log y" in screen(pilot)


@pytest.mark.parametrize(
    ("planned", "note"),
    [(20, "not smoothed"), (220, "over 10 steps"), (100_000, "over 50 steps")],
)
async def test_smoothing_fits_the_planned_length(planned: int, note: str, tmp_path: Path) -> None:
    recorded.write_run(tmp_path / "run", steps=20, max_steps=planned)
    async with opened(load(tmp_path / "run")) as pilot:
        assert f"{note} ─ by step" in screen(pilot)
        await press(pilot, *"ssss", "S")
        # One below the most, whatever the start.
        assert "smoothed over 50 steps ─ by step" in screen(pilot)
        await press(pilot, *"SSSSSS", "s")
        assert "smoothed over 2.5 steps ─ by step" in screen(pilot)


async def test_smoothing_does_not_change_with_the_zoom(runs: Path) -> None:
    async with opened(load(runs / "small-shakespeare")) as pilot:
        from nanogpt_cli.tui.widgets.charts import LineChart, value_at

        chart = dashboard(pilot).query_one("#loss", LineChart)
        before = [value_at(chart.traces[1], x) for x in (1500, 1700, 2000)]
        await press(pilot, "plus", "plus", "plus", "h")
        assert [value_at(chart.traces[1], x) for x in (1500, 1700, 2000)] == before


async def test_hold_stops_drawing_but_not_reading(runs: Path) -> None:
    sessions = load(runs / "small-shakespeare")
    async with opened(sessions) as pilot:
        await press(pilot, "space")
        assert "display held" in screen(pilot)
        held = screen(pilot)
        with (runs / "small-shakespeare" / "events.jsonl").open("a") as log:
            log.write('{"type":"step","time":1790000206.0,"step":2001,"loss":1.5,"lr":0.1,'
                      '"grad_norm":1,"tokens":1,"tokens_per_s":1}\n')  # fmt: skip
        look(pilot)
        await pilot.pause()
        assert sessions[0].view.step == 2001
        assert screen(pilot).splitlines()[2:] == held.splitlines()[2:]
        await press(pilot, "space")
        assert "2,001" in screen(pilot)


async def test_a_layer_opens_and_a_filter_fills_the_page(runs: Path) -> None:
    async with opened(load(runs / "deep")) as pilot:
        await press(pilot, "2", "j", "j", "enter")
        assert "h.2.attn_entropy" in screen(pilot)
        assert "h.20" not in screen(pilot)
        await press(pilot, "escape")
        assert "layers × time" in screen(pilot)
        await press(pilot, "slash", *"grad !h.1", "enter")
        shown = screen(pilot)
        names = ("grad_norm", "h.0.grad_norm", "h.2.grad_norm", "h.20.grad_norm")
        places = [shown.index(name) for name in names]
        assert places == sorted(places)
        assert "h.10.grad_norm" not in shown
        await press(pilot, "escape", "slash", *"h.23.dead", "enter")
        chart = next(c for c in dashboard(pilot).query("LineChart") if c.id == "grid-0")
        assert chart.size.width > 110  # one chart, the whole page
        await press(pilot, "slash", *"xyz", "enter")
        assert "nothing matches" in screen(pilot)


async def test_statistics_go_round(runs: Path) -> None:
    async with opened(load(runs / "small-shakespeare")) as pilot:
        await press(pilot, "2")
        seen = set()
        for _ in range(9):
            seen.add(screen(pilot).splitlines()[1].split("─")[1].strip())
            await press(pilot, "right_square_bracket")
        assert len(seen) == 9
        await press(pilot, "d")
        assert "distributions ─ step 2,000" in screen(pilot)


async def test_alarm_jumps_to_its_step(runs: Path) -> None:
    async with opened(load(runs / "deep")) as pilot:
        await press(pilot, "5", "slash", *"finite", "enter")
        shown = screen(pilot)
        assert "layer 23: gradient of" in shown
        assert "precision float32" in shown
        await press(pilot, "enter")
        app = dashboard(pilot)
        assert app.page.id == "overview"
        assert app.desk.window.cursor == 900
        assert "×" in screen(pilot)


@pytest.mark.parametrize("size", [(120, 40), (80, 24)])
async def test_logs_open_on_the_alarm_that_is_active(tmp_path: Path, size: tuple[int, int]) -> None:
    """Not on the evaluations after it; with the command that explains it."""
    folder = recorded.write_run(tmp_path / "run", layers=2, steps=400, max_steps=400)
    alarm = events.Alarm(step=100, kind="dead_units", layer=1, severity="warning",
                         message="60% of layer 1's units are dead", advice="wait")  # fmt: skip
    log = folder / "events.jsonl"
    lines = log.read_text().splitlines()
    at = next(n for n, line in enumerate(lines) if '"step":101,' in line)
    log.write_text("\n".join([*lines[:at], events.encode(alarm), *lines[at:]]) + "\n")
    async with opened(load(folder), size) as pilot:
        await press(pilot, "5")
        shown = screen(pilot)
        assert "60% of layer 1's units are dead" in shown
        assert "what it means: nanogpt explain dead-units" in shown
        await press(pilot, *["j"] * 50)
        assert "explain dead-units" not in screen(pilot)


async def test_a_foreign_logs_alarm_shows_no_command(tmp_path: Path) -> None:
    """Its kind is text from outside, and no page of ours."""
    alarm = events.Alarm(step=1, kind="x; reboot", severity="error", message="m", advice="a")
    rows = detail_rows(alarm, 60, "a")
    assert not any("explain" in text for row in rows for text, _ in row)


async def test_comparison(runs: Path) -> None:
    async with opened(load(runs / "small-shakespeare")) as pilot:
        await press(pilot, "3")
        assert "not opened" in screen(pilot)
        rows = screen(pilot)
        await press(pilot, *["j"] * (1 if rows.index("small-lr3e-4") < rows.index("deep") else 2))
        await press(pilot, "enter")
        look(pilot)
        await press(pilot, "0")
        shown = screen(pilot)
        names, values = dashboard(pilot).query_one("#diff", Pane).text().splitlines()
        assert names.index("small-lr3e-4") == values.index("0.0003")
        assert "finished" in shown
        await press(pilot, "right_square_bracket")
        assert "validation loss" in screen(pilot)


async def test_compare_turns_to_metrics_that_are_held_alone(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as write:
        for step in range(1, 9):
            write(events.Step(step=step, loss=1.0, lr=1e-3, grad_norm=None, tokens=step,
                              tokens_per_s=None))  # fmt: skip
            write(events.Scalars(step=step, values={"accuracy": step / 9}))
    async with opened(load(tmp_path), page="compare") as pilot:
        chart = dashboard(pilot).query_one("#overlay", LineChart)
        seen = []
        for _ in range(4):
            await press(pilot, "right_square_bracket")
            seen.append(chart.label)
            assert "nothing to compare yet" not in screen(pilot)
        assert seen == ["learning rate", "accuracy", "loss", "learning rate"]


@pytest.mark.parametrize("width", [80, 120])
async def test_what_differs_between_many_runs_is_a_row_for_each(tmp_path: Path, width: int) -> None:
    names = [f"long-run-{n}" for n in range(9)]
    for n, name in enumerate(names):
        recorded.write_run(tmp_path / name, steps=20, lr=(n + 1) * 1e-3, name=name)
    sessions = load(*(tmp_path / name for name in names))
    async with opened(sessions, (width, 40), page="compare") as pilot:
        await press(pilot, *["d"] * (width == 80), "enter")  # the first one is hidden
        pane = dashboard(pilot).query_one("#diff", Pane)
        told = [line.split() for line in pane.text().splitlines()]
        assert told == [
            ["optim.lr"],
            *([f"long-run-{n}", f"{(n + 1) * 1e-3:g}"] for n in range(1, 9)),
        ]
        chart = dashboard(pilot).query_one("#overlay", LineChart)
        colors = {trace.name: trace.color for trace in chart.traces}
        assert {row[0][0].strip(): row[0][1] for row in pane._rows[1:]} == colors


async def test_a_diverged_run_does_not_flatten_the_comparison(runs: Path) -> None:
    folder = recorded.write_run(runs / "boom", steps=300, max_steps=300, ended="diverged")
    log = (folder / "events.jsonl").read_text().splitlines()
    steps = [n for n, line in enumerate(log) if '"type":"step"' in line]
    for n in steps[-50:]:
        log[n] = json.dumps({**json.loads(log[n]), "loss": 1e6})
    (folder / "events.jsonl").write_text("\n".join(log) + "\n")
    names = ("small-shakespeare", "boom", "small-lr3e-4")
    for order in (names, names[::-1]):
        async with opened(load(*(runs / name for name in order)), page="compare") as pilot:
            chart = dashboard(pilot).query_one("#overlay", LineChart)
            assert chart.drawn is not None
            assert chart.drawn.y.high < 6
            assert "y axis without diverged runs" in screen(pilot)
            # For the shortest, whatever the order.
            assert "smoothed over 10 steps ─ by step" in screen(pilot)


@pytest.mark.parametrize("size", [(80, 24), (60, 15)])
async def test_a_remedy_is_on_every_screen(tmp_path: Path, size: tuple[int, int]) -> None:
    """Beside the alarm, and beside the end that it led to."""
    folder = recorded.write_run(tmp_path / "run", layers=2, nan=150, steps=200, ended="non_finite")
    async with opened(load(folder), size) as pilot:
        await press(pilot, "5")
        assert "precision float32" in " ".join(screen(pilot).replace("│", " ").split())
        await press(pilot, "slash", *"finite", "enter", "k")
        assert "precision float32" in " ".join(screen(pilot).replace("│", " ").split())


async def test_a_notice_is_in_the_bottom_line_and_covers_nothing(runs: Path) -> None:
    async with opened(load(runs / "small-shakespeare")) as pilot:
        before = screen(pilot).splitlines()
        await press(pilot, "e")
        after = screen(pilot).splitlines()
        assert after[:-1] == before[:-1]
        assert after[-1].startswith(" saved: ")
        assert "loss-1.svg" in after[-1]


async def test_a_command_to_type_is_shown_whole_however_long(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a folder of my own" / ("with a name " * 12).strip()
    shutil.copytree(runs / "small-shakespeare", folder)
    async with opened(load(folder), (60, 24)) as pilot:
        above = screen(pilot).splitlines()
        await press(pilot, "w")
        said = screen(pilot).replace("\n", " ")
        whole = shell.command("why", shell.path_word(folder))
        assert whole.replace(" ", "") in said.replace(" ", "")
        assert screen(pilot).splitlines()[0] == above[0]


async def test_samples_side_by_side(runs: Path) -> None:
    async with opened(load(runs / "small-shakespeare")) as pilot:
        await press(pilot, "4")
        assert "step 1,750" in screen(pilot)
        assert "step 2,000" in screen(pilot)
        await press(pilot, "p", "p", "p", "p", "d")
        assert "step 1,000 ─ new words marked" in screen(pilot)
        await press(pilot, "n")
        assert "5 of 8" in screen(pilot)


@pytest.mark.parametrize(
    ("presses", "sent"),
    [
        (("K", "y"), ("checkpoint", "")),
        (("E", "enter"), ("eval", "")),
        (("P", "y"), ("pause", "")),
        (("g", "end", *"!", "enter"), ("sample", "ROMEO:!")),
        (("M", "enter"), ("lr", "0.5")),
        (("Q", "y"), ("stop", "")),
        (("ctrl+c", "y"), ("stop", "")),
    ],
)
async def test_commands_after_confirmation(
    runs: Path, presses: tuple[str, ...], sent: tuple[str, str]
) -> None:
    folder = RunFolder(runs / "small-shakespeare")
    async with opened(load(folder.path)) as pilot:
        await press(pilot, presses[0])
        assert "esc cancels" in screen(pilot) or "y yes" in screen(pilot)
        await press(pilot, "escape")
        assert take_commands(folder) == []
        await press(pilot, *presses)
        assert take_commands(folder) == [sent]
        if sent[0] == "stop":
            assert pilot.app.return_value.stop


async def test_a_bad_factor_is_not_sent(runs: Path) -> None:
    folder = RunFolder(runs / "small-shakespeare")
    async with opened(load(folder.path)) as pilot:
        await press(pilot, "M", "ctrl+u", "minus", "2", "enter")
        assert take_commands(folder) == []
        assert "not a positive number" in screen(pilot)


async def test_readonly_sends_nothing(runs: Path) -> None:
    folder = RunFolder(runs / "small-shakespeare")
    async with opened(load(folder.path), readonly=True) as pilot:
        assert "read-only" in screen(pilot)
        await press(pilot, "K", "y", "P", "y", "E", "y", "g", "enter")
        assert take_commands(folder) == []
        await press(pilot, "ctrl+c")
        assert not pilot.app.return_value.stop


async def test_detach_leaves_the_run_alone(runs: Path) -> None:
    folder = RunFolder(runs / "small-shakespeare")
    async with opened(load(folder.path)) as pilot:
        await press(pilot, "q")
        assert not pilot.app.return_value.stop
    assert take_commands(folder) == []


async def test_export_writes_a_picture_and_the_numbers(runs: Path) -> None:
    folder = RunFolder(runs / "small-shakespeare")
    async with opened(load(folder.path)) as pilot:
        await press(pilot, "e")
    assert (folder.exports / "loss-1.svg").read_text().startswith("<svg")
    lines = (folder.exports / "loss-1.csv").read_text().splitlines()
    assert lines[0] == "series,step,value"
    assert sum(line.startswith("raw,") for line in lines) == 2000
    assert sum(line.startswith("val,") for line in lines) == 8


async def test_palette_offers_the_keys_by_name(runs: Path) -> None:
    async with opened(load(runs / "small-shakespeare")) as pilot:
        await press(pilot, "ctrl+p", *"logarithmic x")
        await pilot.pause(0.3)
        await press(pilot, "enter")
        await pilot.pause(0.3)
        assert dashboard(pilot).desk.window.log


async def test_releasing_a_held_display_looks_at_once(runs: Path) -> None:
    """A held display looks seldom; letting it go must not wait for its next look."""
    app = Dashboard(load(runs / "small-shakespeare"))
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: app.looks > 0)
        await press(pilot, "space")
        assert app._next_interval() == HELD
        before = app.looks
        await press(pilot, "space")
        await until(pilot, lambda: app.looks > before)  # far less than HELD seconds


async def test_w_shows_the_command_that_explains_the_step_under_the_crosshair(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Dashboard, "notify", lambda _, message, **__: said.append(message))
    async with opened(load(runs / "small-shakespeare"), (120, 40)) as pilot:
        await press(pilot, "1", "w", "c", "w")
        step = int(dashboard(pilot).desk.view.steps["step"][-1])
    assert said[0].startswith("nanogpt why ")
    assert said[1:] == [f"{said[0]} {step}"]
