"""The table of all keys of the dashboard, from which bindings, footer and help are made."""

from __future__ import annotations

import re
from dataclasses import dataclass

PAGES = ("overview", "layers", "compare", "samples", "logs", "system")
_CHARTED = ("overview", "layers", "compare")
_SCALED = (*_CHARTED, "system")
_LISTED = ("layers", "compare", "samples", "logs")
_TURNED = ("layers", "samples", "logs", "system")
_EXPLAINED = ("overview", "layers", "logs")
_NAMED = 68  # columns from which the footer has room for the names of all pages
_TIGHT = 48  # and below which there is none between their numbers


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
    control: bool = False  # sends a command to the trainer; disabled when read-only


_X = "Along the x axis (all charts, on every page)"
_Y = "The y axis (the chart with the focus, which keeps it)"
_LISTS = "Lists and heat maps"

KEYS = (
    Key("1", "1", "page('overview')", "Overview: loss, speed, heat map, newest sample", "Pages"),
    Key("2", "2", "page('layers')", "Layers: every statistic of every layer", "Pages"),
    Key("3", "3", "page('compare')", "Compare: several runs in one chart", "Pages"),
    Key("4", "4", "page('samples')", "Samples: what the model wrote, through training", "Pages"),
    Key("5", "5", "page('logs')", "Logs: alarms, events, the trainer's output", "Pages"),
    Key("6", "6", "page('system')", "System: where the time goes, CPU, memory, disk, GPUs",
        "Pages"),
    Key("question_mark", "?", "help", "this help: the words and keys of the page", "Pages"),
    Key("ctrl+p", "ctrl+p", "command_palette", "find a command by name", "Pages"),
    Key("tab", "tab", "app.focus_next", "focus the next pane", "Pages"),
    Key("shift+tab", "shift+tab", "app.focus_previous", "focus the previous pane", "Pages"),
    Key("z", "z", "zoom_pane", "maximise the focused pane, and back", "Pages"),
    Key("escape", "esc", "leave", "back: leave a layer, a filter, the crosshair", "Pages"),
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
        ("layers", "compare", "logs"), "open"),
    Key("slash", "/", "filter", "filter this page: text, glob*, /regex/, !not", _LISTS,
        ("layers", "compare", "logs"), "filter"),
    Key("d", "d", "alternate", "other view: histograms, differences, output, …",
        _LISTS, ("layers", "compare", "samples", "logs", "system"), "other view"),
    Key("C", "C", "color_map", "next colours of the heat maps", _LISTS, ("overview", "layers")),
    Key("N", "N", "normalise", "heat maps: each layer against its own median", _LISTS,
        ("overview", "layers")),
    Key("space", "space", "hold", "hold the display; reading goes on", "Display", footer="hold"),
    Key("w", "w", "why", "the command that explains the event, or the crosshair's step", "Display",
        _EXPLAINED, "why"),
    Key("t", "t", "theme", "next theme", "Display"),
    Key("e", "e", "export", "save the focused pane as SVG and CSV", "Display"),
    Key("P", "P", "ask('pause')", "pause or resume training", "Training", control=True),
    Key("K", "K", "ask('checkpoint')", "save a checkpoint now", "Training", control=True),
    Key("E", "E", "ask('eval')", "evaluate now", "Training", control=True),
    Key("g", "g", "ask('sample')", "write a sample from a prompt, of an ended run too", "Training",
        control=True, footer="generate"),
    Key("M", "M", "ask('lr')", "multiply the learning rate", "Training", control=True),
    Key("Q,ctrl+c", "Q", "ask('stop')", "stop training, checkpoint saved", "Training",
        control=True),
    Key("q,ctrl+q", "q", "detach", "leave the dashboard; training goes on", "Training",
        footer="leave"),
)  # fmt: skip


def offered(key: Key, page: str, readonly: bool, shown: tuple[str, ...] = PAGES) -> bool:
    """Whether a key has an effect on a page, in a dashboard with those pages."""
    goes_to = re.fullmatch(r"page\('(\w+)'\)", key.action)
    if goes_to and (goes_to.group(1) not in shown or len(shown) == 1):
        return False
    return page in key.pages and not (key.control and readonly)


def footer(
    page: str, width: int, readonly: bool, shown: tuple[str, ...] = PAGES
) -> list[tuple[str, str]]:
    """The bottom line: pages, as many keys as fit, and always help and how to leave."""
    always = [(" ?", "key"), (" help ", "dim"), (" q", "key"), (" leave ", "dim")]
    pages = _pages(page, width) if len(shown) > 1 else [(f" {page.capitalize()} ", "select")]
    if not readonly or width < 80 or len(shown) == 1:
        note: list[tuple[str, str]] = []
    else:
        note = [(" read-only ", "warning")]
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


# What a page is used for most, which its footer names even where few keys fit.
_FIRST = {
    "overview": ("crosshair", "zoom"),
    "layers": ("metric", "open"),
    "compare": ("open", "alternate"),
    "samples": ("ask", "alternate"),
    "logs": ("open", "filter"),
    "system": ("alternate", "zoom"),
}


def _pages(page: str, width: int) -> list[tuple[str, str]]:
    """Numbers and names of the pages; where those do not fit, the name of the one in front."""
    gap, pieces = " " if width >= 100 else "", []
    for number, name in enumerate(PAGES, 1):
        shown = name.capitalize() if width >= _NAMED or name == page else ""
        look = "select" if name == page else "dim"
        pieces += [(f" {number}", "key"), (f"{gap}{shown}{gap}", look)]
        if _TIGHT <= width < _NAMED:
            pieces.append((" ", "dim"))
    return pieces


def actions_on(page: str) -> set[str]:
    """Names of the actions that have an effect on a page."""
    return {key.action.partition("(")[0] for key in KEYS if page in key.pages}
