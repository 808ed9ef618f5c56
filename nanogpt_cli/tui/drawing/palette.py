"""Colours by meaning: Paul Tol's colour-blind-safe sets for series, cividis and others for maps."""

from __future__ import annotations

from functools import lru_cache

from rich.color import Color
from rich.style import Style

# Paul Tol, "Colour schemes", technical note SRON/EPS/TN/09-002 (2021): "bright" on dark grounds,
# "high-contrast" and "vibrant" hues, darkened, on light ones.
_DARK = {
    "train": "bold #66CCEE", "raw": "#3a5f73", "val": "bold #EE6677", "lr": "#CCBB44",
    "grad": "#66CCEE", "speed": "#4db36b", "axis": "#7d8590", "cursor": "#d0d0d0",
    "error": "bold #ff6b6b", "warning": "bold #ffb454", "ok": "bold #4db36b", "dim": "#7d8590",
    "text": "#d8dee4", "title": "bold #d8dee4", "key": "bold #66CCEE", "select": "reverse",
    "theory": "#4a4f57", "bar": "#66CCEE", "track": "#3a3f47", "prompt": "bold #CCBB44",
    "added": "bold #66CCEE", "plain": "",
}  # fmt: skip
_LIGHT = {
    "train": "bold #004488", "raw": "#9db4cc", "val": "bold #BB2244", "lr": "#887700",
    "grad": "#004488", "speed": "#1b6e2e", "axis": "#6a6f76", "cursor": "#404040",
    "error": "bold #b00020", "warning": "bold #9a5a00", "ok": "bold #1b6e2e", "dim": "#6a6f76",
    "text": "#1f2328", "title": "bold #1f2328", "key": "bold #004488", "select": "reverse",
    "theory": "#c8ccd1", "bar": "#004488", "track": "#c8ccd1", "prompt": "bold #887700",
    "added": "bold #004488", "plain": "",
}  # fmt: skip
_RUNS_DARK = ("#66CCEE", "#EE6677", "#CCBB44", "#4db36b", "#AA3377", "#BBBBBB", "#4477AA")
_RUNS_LIGHT = ("#004488", "#BB2244", "#887700", "#1b6e2e", "#882255", "#555555", "#4477AA")

# Anchors along each map, dark to light; luminance increases steadily, so greyscale keeps the order.
_MAPS = {
    "cividis": (
        "00224e 123570 3b496c 575d6d 707173 8a8678 a59c74 c3b369 e1cc55 fee838"
    ),
    "viridis": (
        "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725"
    ),
    "grey": "1c1c1c 3a3a3a 585858 767676 949494 b2b2b2 d0d0d0 eeeeee",
    # Diverging around the middle: too small is blue, too large is orange.
    "balance": "1f4e9c 4a7fc4 8db4de c9d9ea f2f2f2 f5d9b8 f0ad65 dd7a22 a84d00",
}  # fmt: skip
COLOR_MAPS = ("cividis", "viridis", "grey")
SHADES = 24


def run_color(index: int) -> str:
    """The colour key of the ``index``-th compared run."""
    return f"run{index % len(_RUNS_DARK)}"


def band_color(key: str) -> str:
    """The colour key of a band behind the line of a compared run."""
    return key.replace("run", "band")


def _faint(code: str, dark: bool) -> str:
    """A colour near the ground, behind a line of the same hue."""
    ground, share = (0x1E, 0.45) if dark else (0xE8, 0.35)
    parts = (int(code[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(ground + (part - ground) * share):02x}" for part in parts)


@lru_cache(maxsize=4096)
def style(key: str, dark: bool = True) -> Style:
    """The style of a colour key; a key that contains ``#`` is itself a style."""
    if "#" in key:
        return Style.parse(key)
    if key.startswith("run"):
        return Style.parse((_RUNS_DARK if dark else _RUNS_LIGHT)[int(key[3:])])
    if key.startswith("band"):
        return Style.parse(_faint((_RUNS_DARK if dark else _RUNS_LIGHT)[int(key[4:])], dark))
    bold, _, name = key.rpartition(" ")
    base = Style.parse((_DARK if dark else _LIGHT)[name])
    return base + Style.parse(bold) if bold else base


@lru_cache(maxsize=8)
def shades(name: str) -> tuple[str, ...]:
    """``SHADES`` colours of a map, from its low end to its high one."""
    anchors = [tuple(int(code[i : i + 2], 16) for i in (0, 2, 4)) for code in _MAPS[name].split()]
    found = []
    for index in range(SHADES):
        place = index / (SHADES - 1) * (len(anchors) - 1)
        left = min(int(place), len(anchors) - 2)
        share = place - left
        mixed = (
            round(a + (b - a) * share)
            for a, b in zip(anchors[left], anchors[left + 1], strict=True)
        )
        found.append("#" + "".join(f"{part:02x}" for part in mixed))
    return tuple(found)


def ink_on(color: str) -> str:
    """Black or white, whichever is readable on ``color``."""
    red, green, blue = Color.parse(color).get_truecolor()
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"
