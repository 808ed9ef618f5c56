"""SVG pictures: every character has its place whatever font a viewer has."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from helpers import load, opened, screen
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style

from nanogpt_cli.tui import export
from nanogpt_cli.tui.drawing import picture

SPACE = "{http://www.w3.org/2000/svg}"
GROUP = f"{SPACE}g"


def words_of(svg: str) -> list[tuple[int, int, str]]:
    """(row, first cell, text) of every piece of text."""
    group = ElementTree.fromstring(svg).find(GROUP)
    assert group is not None
    found = []
    for text in group.iter(f"{SPACE}text"):
        column = float(text.attrib["x"]) / picture._W
        row = float(text.attrib["y"]) / picture._H - 0.77
        assert abs(column - round(column)) < 0.01
        assert abs(row - round(row)) < 0.01
        found.append((round(row), round(column), text.text or ""))
    return found


def dots_of(svg: str) -> int:
    return svg.count("h2.4v2.4h-2.4z")


async def test_a_pictures_words_lie_where_the_screen_has_them(recordings: Path) -> None:
    async with opened(load(recordings / "small-shakespeare"), (100, 30)) as pilot:
        lines = screen(pilot).splitlines()
        svg = export.screen_svg(pilot.app, "a & b")
    for row, column, text in words_of(svg):
        assert lines[row][column : column + len(text)] == text
    drawn = "".join(text for *_, text in words_of(svg))
    shapes = set("─━│╌┤╭╮╰╯░▒▓█▀▁▂▃▄▅▆▇")
    plain = [c for line in lines for c in line if c not in shapes and not "⠀" <= c <= "⣿"]
    assert sorted(drawn) == sorted("".join(plain).replace(" ", ""))
    braille = [c for line in lines for c in line if "⠀" <= c <= "⣿"]
    assert dots_of(svg) == sum((ord(c) - 0x2800).bit_count() for c in braille)
    assert ElementTree.fromstring(svg).find(f"{SPACE}title").text == "a & b"  # type: ignore[union-attr]
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")  # nothing is fetched


@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), max_size=12), max_size=4))
def test_any_text_gives_a_picture_with_its_characters_in_order(texts: list[str]) -> None:
    bold = Style.parse("bold reverse #aabbcc on #102030")
    lines = [[Segment(text, bold), Segment(" end", None)] for text in texts]
    found = words_of(picture.svg(lines, 40, "t"))
    for row, text in enumerate(texts):
        assert (row, cell_len(text) + 1, "end") in found
        mine = [piece for y, _, piece in found if y == row]
        shown = [c for c in text if picture._shape(c, 0, 0) is None]
        assert sorted("".join(mine)) == sorted([*shown, *"end"])
