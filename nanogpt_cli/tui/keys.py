"""The table of all keys of the dashboard, from which bindings, footer and help are made."""

from __future__ import annotations

from dataclasses import dataclass

PAGES = ("overview", "layers", "compare", "samples", "logs")
_CHARTED = ("overview", "layers", "compare")


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


KEYS = (
    Key("1", "1", "page('overview')", "loss, speed, heat map, latest sample", "Pages"),
    Key("2", "2", "page('layers')", "every statistic of every layer", "Pages"),
    Key("3", "3", "page('compare')", "several runs in one chart", "Pages"),
    Key("4", "4", "page('samples')", "what the model wrote, through training", "Pages"),
    Key("5", "5", "page('logs')", "alarms, events, the trainer's output", "Pages"),
    Key("question_mark", "?", "help", "this help", "Pages"),
    Key("ctrl+p", "ctrl+p", "command_palette", "find a command by name", "Pages"),
    Key("tab", "tab", "app.focus_next", "next pane", "Pages"),
    Key("shift+tab", "shift+tab", "app.focus_previous", "previous pane", "Pages"),
    Key("z", "z", "zoom_pane", "maximise the focused pane, and back", "Pages"),
    Key("escape", "esc", "leave", "back: leave a layer, a filter, the crosshair", "Pages"),
    Key("plus,equals_sign", "+", "zoom(1.5)", "zoom in", "Charts", _CHARTED, "zoom"),
    Key("minus", "-", "zoom(0.6667)", "zoom out", "Charts", _CHARTED),
    Key("h,left", "h ←", "pan(-1)", "left: the window, or the crosshair", "Charts", _CHARTED),
    Key("l,right", "l →", "pan(1)", "right: the window, or the crosshair", "Charts", _CHARTED),
    Key("H,shift+left", "H", "pan(-10)", "left, ten times as far", "Charts", _CHARTED),
    Key("L,shift+right", "L", "pan(10)", "right, ten times as far", "Charts", _CHARTED),
    Key("0", "0", "fit", "show everything", "Charts", _CHARTED),
    Key("f", "f", "follow", "follow the newest step", "Charts", _CHARTED),
    Key("c", "c", "crosshair", "crosshair with read-out", "Charts", _CHARTED, "crosshair"),
    Key("y", "y", "log_y", "logarithmic y axis", "Charts", _CHARTED, "log y"),
    Key("X", "X", "log_x", "logarithmic x axis", "Charts", _CHARTED),
    Key("x", "x", "axis", "x axis: step, tokens, time, FLOPs", "Charts", _CHARTED, "x axis"),
    Key("s", "s", "smooth(1)", "smoother", "Charts", _CHARTED, "smooth"),
    Key("S", "S", "smooth(-1)", "less smooth", "Charts", _CHARTED),
    Key("o", "o", "robust", "y axis without outliers (2-98 %)", "Charts", _CHARTED),
    Key("Y", "Y", "freeze_y", "hold the y axis where it is", "Charts", _CHARTED),
    Key("left_square_bracket", "[", "metric(-1)", "previous statistic or metric", "Lists",
        _CHARTED, "[ ] statistic"),
    Key("right_square_bracket", "]", "metric(1)", "next statistic or metric", "Lists", _CHARTED),
    Key("j,down", "j ↓", "row(1)", "next row", "Lists"),
    Key("k,up", "k ↑", "row(-1)", "previous row", "Lists"),
    Key("n,pagedown", "n", "turn(1)", "next page or sample", "Lists"),
    Key("p,pageup", "p", "turn(-1)", "previous page or sample", "Lists"),
    Key("enter", "enter", "open", "open the row: a layer, a run, the step of an alarm", "Lists",
        footer="open"),
    Key("slash", "/", "filter", "filter: text, glob*, /regex/, !not", "Lists",
        ("layers", "compare", "logs"), "filter"),
    Key("d", "d", "alternate", "the other side: histograms, differences, output", "Lists",
        ("layers", "samples", "logs"), "other view"),
    Key("C", "C", "color_map", "next colour map of the heat maps", "Lists", ("overview", "layers")),
    Key("N", "N", "normalise", "heat map: each layer on its own scale", "Lists",
        ("overview", "layers")),
    Key("space", "space", "hold", "hold the display; reading goes on", "Display", footer="hold"),
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
    Key("q,ctrl+q", "q", "detach", "leave the dashboard; the run is not touched", "Training",
        footer="detach"),
)  # fmt: skip


def footer(page: str, width: int, readonly: bool) -> list[tuple[str, str]]:
    """The bottom line: pages, as many keys as fit, and always help and detach."""
    number = {name: str(i) for i, name in enumerate(PAGES, 1)}
    long = [
        piece
        for name in PAGES
        for piece in (
            (f" {number[name]}", "key"),
            (f" {name.capitalize()} ", "select" if name == page else "dim"),
        )
    ]
    short = [
        piece
        for name in PAGES
        for piece in (
            (f" {number[name]}", "key"),
            (f"{name.capitalize() if name == page else ''} ", "select" if name == page else "dim"),
        )
    ]
    always = [(" ?", "key"), (" help ", "dim"), (" q", "key"), (" detach ", "dim")]
    pages = long if width >= 100 else short
    if not readonly or width < 80:
        note: list[tuple[str, str]] = []
    else:
        note = [(" read-only ", "warning")]
    used = sum(len(text) for text, _ in pages + always + note)
    middle: list[tuple[str, str]] = []
    for key in KEYS:
        if not key.footer or page not in key.pages or key.action == "detach":
            continue
        if key.control and readonly:
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


def actions_on(page: str) -> set[str]:
    """Names of the actions that have an effect on a page."""
    return {key.action.partition("(")[0] for key in KEYS if page in key.pages}
