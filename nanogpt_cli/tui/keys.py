"""The table of all keys of the dashboard, from which bindings, footer and help are made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

PAGES = ("overview", "layers", "compare", "samples", "logs", "system", "runs")
# The pages about the runs that are open; on the list, keys act on the row under the cursor.
_OPENED = tuple(page for page in PAGES if page != "runs")
_CHARTED = ("overview", "layers", "compare")
_SCALED = (*_CHARTED, "system")
_LISTED = ("layers", "compare", "samples", "logs", "runs")
_RUNS = ("runs",)
_TURNED = ("layers", "compare", "samples", "logs", "system")
_EXPLAINED = ("overview", "layers", "logs")


@dataclass(frozen=True)
class Key:
    """One or more keys, the action they call, and its labels."""

    keys: str  # comma-separated, as Textual names them
    shown: str
    action: str
    label: str
    group: str
    pages: tuple[str, ...] = PAGES
    footer: str = ""  # short label; empty: only in the help
    control: bool = False  # speaks to the trainer or changes a folder; not when read-only


_X = "Along the x axis (all charts, on every page)"
_Y = "The y axis (the chart with the focus, which keeps it)"
_LISTS = "Lists and heat maps"
_LIST = "The list of runs (page 7)"

KEYS = (
    Key("1", "1", "page('overview')", "Overview: loss, speed, heat map, newest sample", "Pages"),
    Key("2", "2", "page('layers')", "Layers: every statistic of every layer", "Pages"),
    Key("3", "3", "page('compare')", "Compare: several runs in one chart", "Pages"),
    Key("4", "4", "page('samples')", "Samples: what the model wrote, through training", "Pages"),
    Key("5", "5", "page('logs')", "Logs: alarms, events, the trainer's output", "Pages"),
    Key("6", "6", "page('system')", "System: where the time goes, CPU, memory, disk, GPUs",
        "Pages"),
    Key("7", "7", "page('runs')", "Runs: all runs of the folder, to open and to select", "Pages"),
    Key("question_mark", "?", "help", "this help: the words and keys of the page", "Pages"),
    Key("ctrl+p", "ctrl+p", "command_palette", "find a command by name", "Pages"),
    Key("tab", "tab", "app.focus_next", "focus the next pane", "Pages"),
    Key("shift+tab", "shift+tab", "app.focus_previous", "focus the previous pane", "Pages"),
    Key("z", "z", "zoom_pane", "maximise the focused pane, and back", "Pages"),
    Key("escape", "esc", "leave", "back: leave a layer, a filter, the crosshair; then to Runs",
        "Pages"),
    Key("plus,equals_sign", "+", "zoom(1.5)", "zoom in", _X, _SCALED, "zoom"),
    Key("minus", "-", "zoom(0.6667)", "zoom out", _X, _SCALED),
    Key("h,left", "h ←", "pan(-1)", "left: the window, or the crosshair", _X, _SCALED),
    Key("l,right", "l →", "pan(1)", "right: the window, or the crosshair", _X, _SCALED),
    Key("H,shift+left", "H", "pan(-10)", "left, ten times as far", _X, _SCALED),
    Key("L,shift+right", "L", "pan(10)", "right, ten times as far", _X, _SCALED),
    Key("0", "0", "fit", "show everything", _X, _SCALED),
    Key("f", "f", "follow", "follow the newest step", _X, _SCALED),
    Key("c", "c", "crosshair", "crosshair: reads the values at one step", _X, _SCALED,
        "crosshair"),
    Key("x", "x", "axis", "x axis: step, tokens, time, FLOPs", _X, _SCALED, "x axis"),
    Key("X", "X", "log_x", "logarithmic x axis, and back", _X, _SCALED),
    Key("s", "s", "smooth(1)", "smooth over more steps", _X, _CHARTED, "smooth"),
    Key("S", "S", "smooth(-1)", "smooth over fewer steps", _X, _CHARTED),
    Key("y", "y", "log_y", "logarithmic y axis, and back", _Y, _SCALED, "log y"),
    Key("o", "o", "robust", "y axis over the middle 96 % of the values", _Y, _SCALED),
    Key("Y", "Y", "freeze_y", "hold the y axis as it is now", _Y, _SCALED),
    Key("left_square_bracket", "[", "metric(-1)", "previous statistic", _LISTS, _CHARTED,
        "[ ] statistic"),
    Key("right_square_bracket", "]", "metric(1)",
        "next statistic (Compare has its own)", _LISTS, _CHARTED),
    Key("j,down", "j ↓", "row(1)", "next row", _LISTS, _LISTED),
    Key("k,up", "k ↑", "row(-1)", "previous row", _LISTS, _LISTED),
    Key("n,pagedown", "n", "turn(1)", "next page of charts, next sample or event", _LISTS, _TURNED),
    Key("p,pageup", "p", "turn(-1)", "the one before", _LISTS, _TURNED),
    Key("enter", "enter", "open", "open the row: a layer, a run, the step of an event", _LISTS,
        ("layers", "compare", "logs", "runs"), "open"),
    Key("slash", "/", "filter", "filter this page: text, glob*, /regex/, !not", _LISTS,
        ("layers", "compare", "logs"), "filter"),
    Key("d", "d", "alternate", "other view: histograms, differences, output, …",
        _LISTS, ("layers", "compare", "samples", "logs", "system"), "other view"),
    Key("C", "C", "color_map", "next colours of the heat maps", _LISTS, ("overview", "layers")),
    Key("N", "N", "normalise", "heat maps: each layer against its own median", _LISTS,
        ("overview", "layers")),
    Key("m", "m", "metrics", "choose the metrics that Compare shows in a grid", _LISTS,
        ("compare",), "metrics"),
    Key("pagedown", "pgdn", "screenful(1)", "a screen down", _LIST, _RUNS),
    Key("pageup", "pgup", "screenful(-1)", "a screen up", _LIST, _RUNS),
    Key("home", "home", "end(-1)", "first run", _LIST, _RUNS),
    Key("end", "end", "end(1)", "last run", _LIST, _RUNS),
    Key("slash", "/", "filter", "filter runs: words, state:running lr>=1e-3 -tag:x", _LIST, _RUNS,
        "filter"),
    Key("space", "space", "select", "select the run for Compare, or not", _LIST, _RUNS, "select"),
    Key("s", "s", "sort(1)", "sort by the next column", _LIST, _RUNS, "sort"),
    Key("S", "S", "sort(-1)", "sort by the column before", _LIST, _RUNS),
    Key("r", "r", "reverse", "turn the order round", _LIST, _RUNS),
    Key("p", "p", "pin", "pin the run to the top, or not", _LIST, _RUNS, "pin"),
    Key("c", "c", "tint", "next colour of the run, then none", _LIST, _RUNS),
    Key("h", "h", "hide", "hide the run, or not", _LIST, _RUNS, "hide"),
    Key("H", "H", "show_hidden", "show hidden runs too, or not", _LIST, _RUNS),
    Key("n", "n", "note", "note of the run, kept in its folder", _LIST, _RUNS, "note", True),
    Key("T", "T", "tags", "tags of the run, kept in its folder", _LIST, _RUNS, "tags", True),
    Key("d,ctrl+d", "d", "delete", "delete the run, once you agree; never one in training",
        _LIST, _RUNS, control=True),
    Key("space", "space", "hold", "hold the display; reading continues", "Display", _OPENED,
        footer="hold"),
    Key("w", "w", "why", "the command that explains the event, or the crosshair's step", "Display",
        _EXPLAINED, "why"),
    Key("t", "t", "theme", "next theme", "Display"),
    Key("e", "e", "export", "save the focused pane as SVG and CSV", "Display"),
    Key("P", "P", "ask('pause')", "pause or resume training", "Training", _OPENED, control=True),
    Key("K", "K", "ask('checkpoint')", "save a checkpoint now", "Training", _OPENED, control=True),
    Key("E", "E", "ask('eval')", "evaluate now", "Training", _OPENED, control=True),
    Key("g", "g", "ask('sample')", "write a sample from a prompt, of an ended run too", "Training",
        _OPENED, control=True, footer="generate"),
    Key("M", "M", "ask('lr')", "multiply the learning rate", "Training", _OPENED, control=True),
    Key("Q,ctrl+c", "Q", "ask('stop')", "stop training, checkpoint saved", "Training",
        _OPENED, control=True),
    Key("Q,ctrl+c", "Q", "detach", "leave the dashboard, from the list too", "Training", _RUNS),
    Key("q,ctrl+q", "q", "detach", "leave the dashboard; training continues", "Training",
        footer="leave"),
)  # fmt: skip


def offered(key: Key, page: str, readonly: bool, shown: tuple[str, ...] = PAGES) -> bool:
    """Whether a key has an effect on a page, in a dashboard with those pages."""
    goes_to = re.fullmatch(r"page\('(\w+)'\)", key.action)
    if goes_to and (goes_to.group(1) not in shown or len(shown) == 1):
        return False
    return page in key.pages and not (key.control and readonly)


_ALWAYS = len(" ? help  q leave ")  # what every footer ends with
_KEYS = 24  # columns of keys that a footer should have room for before it spreads the pages


@lru_cache
def footer(
    page: str, width: int, readonly: bool, shown: tuple[str, ...] = PAGES
) -> list[tuple[str, str]]:
    """The bottom line: pages, as many keys as fit, and always help and how to leave."""
    always = [(" ?", "key"), (" help ", "dim"), (" q", "key"), (" leave ", "dim")]
    noted = readonly and width >= 80 and len(shown) > 1
    note = [(" read-only ", "warning")] if noted else []
    room = width - sum(len(text) for text, _ in note)
    pages = _pages(page, room) if len(shown) > 1 else [(f" {page.capitalize()} ", "select")]
    used = sum(len(text) for text, _ in pages + always + note)
    middle: list[tuple[str, str]] = []
    for key in sorted(KEYS, key=lambda key: key.action.partition("(")[0] not in _FIRST[page]):
        if not key.footer or key.action == "detach" or not offered(key, page, readonly, shown):
            continue
        inside = key.footer.startswith(key.shown)  # the key is the word's first letter
        rest = key.footer[len(key.shown) :] if inside else f" {key.footer}"
        pieces = [(f" {key.shown}", "key"), (f"{rest} ", "dim")]
        size = sum(len(text) for text, _ in pieces)
        if used + size <= width:
            middle += pieces
            used += size
    gap = max(0, width - used)
    return [*pages, (" " * (gap // 2), "plain"), *middle, (" " * (gap - gap // 2), "plain"),
            *note, *always]  # fmt: skip


def named_at(line: Sequence[tuple[str, str]], column: int, page: str) -> Key | None:
    """The key that a bottom line names at a column."""
    shown = ""
    for text, look in line:
        shown = text.strip() if look == "key" else "" if look == "plain" else shown
        if column < len(text):
            return next((key for key in KEYS if key.shown == shown and page in key.pages), None)
        column -= len(text)
    return None


# What the mouse does, for the help.
MOUSE = (
    ("click", "a chart: the crosshair there, which a drag moves; a list: chooses the row"),
    ("click twice", "opens the row"),
    ("wheel", "a chart: zooms around the pointer; a list: next or previous row"),
    ("bottom line", "click a page or a key there"),
    ("shift", "held: the terminal marks text, as without a dashboard"),
)

# What a page is used for most, which its footer names even where few keys fit.
_FIRST = {
    "overview": ("crosshair", "zoom"),
    "layers": ("metric", "open"),
    "compare": ("open", "metrics"),
    "samples": ("ask", "alternate"),
    "logs": ("open", "filter"),
    "system": ("alternate", "zoom"),
    "runs": ("open", "select", "filter", "sort"),
}


def number(page: str) -> str:
    """The key of a page."""
    return next(key.keys for key in KEYS if key.action == f"page('{page}')")


def _pages(page: str, width: int) -> list[tuple[str, str]]:
    """Numbers and names of the pages; where those do not fit, the name of the one in front."""
    named = sum(len(name) + 2 for name in PAGES) + _ALWAYS
    gap, pieces = " " if width >= 2 * len(PAGES) + named + _KEYS else "", []
    for name in PAGES:
        shown = name.capitalize() if width >= named or name == page else ""
        look = "select" if name == page else "dim"
        pieces += [(f" {number(name)}", "key"), (f"{gap}{shown}{gap}", look)]
    return pieces


def actions_on(page: str) -> set[str]:
    """Names of the actions that have an effect on a page."""
    return {key.action.partition("(")[0] for key in KEYS if page in key.pages}
