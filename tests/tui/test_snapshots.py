"""Screens as plain text, and one as a picture, with fixed data, clock and size.

``NANOGPT_UPDATE_SNAPSHOTS=1 pytest tests/tui/test_snapshots.py`` writes them anew; read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import SIZES, load, opened, press, screen

from nanogpt_cli.tui import export, keys
from nanogpt_cli.tui.drawing import palette

FOLDER = Path(__file__).parent / "snapshots"
PAGES = ("overview", "layers", "compare", "samples", "logs", "runs")


def check(name: str, text: str) -> None:
    path = FOLDER / name
    if os.environ.get("NANOGPT_UPDATE_SNAPSHOTS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{name} looks different now"


@pytest.mark.parametrize("size", [(200, 60), *SIZES], ids=lambda s: f"{s[0]}x{s[1]}")
async def test_pages(recordings: Path, size: tuple[int, int]) -> None:
    sessions = load(recordings / "small-shakespeare", recordings / "small-lr3e-4")
    async with opened(sessions, size) as pilot:
        for page in PAGES:
            await press(pilot, keys.number(page))
            check(f"{page}-{size[0]}x{size[1]}.txt", screen(pilot))


async def test_many_layers_with_a_nan_in_ascii(recordings: Path) -> None:
    async with opened(load(recordings / "deep"), (100, 30), ascii_only=True) as pilot:
        await press(pilot, "2", "c", "H")
        check("deep-ascii.txt", screen(pilot))
        for key in "12357":
            await press(pilot, key)
            assert screen(pilot).isascii()


async def test_picture(recordings: Path) -> None:
    async with opened(load(recordings / "small-shakespeare"), (80, 24)) as pilot:
        check("overview.svg", export.screen_svg(pilot.app, "nanogpt"))


async def test_no_color_is_grey_and_still_ordered(
    recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Textual's monochrome filter turns every colour grey, and fails on segments without style."""
    monkeypatch.setenv("NO_COLOR", "1")
    async with opened(load(recordings / "small-shakespeare")) as pilot:
        for key in "123457":
            await press(pilot, key)
        await press(pilot, "1")
        for strip in export.screen_strips(pilot.app):
            for segment in strip:
                for colour in (segment.style.color, segment.style.bgcolor) if segment.style else ():
                    if colour is not None and colour.triplet is not None:
                        red, green, blue = colour.triplet
                        assert red == green == blue


@pytest.mark.parametrize("name", palette.COLOR_MAPS)
def test_colour_maps_grow_steadily_lighter(name: str) -> None:
    """In greyscale, and for the colour-blind, more still looks like more."""
    from rich.color import Color

    light = []
    for code in palette.shades(name):
        red, green, blue = Color.parse(code).get_truecolor()
        light.append(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    assert light == sorted(light)
    assert light[-1] - light[0] > 100
